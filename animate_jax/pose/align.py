"""Simple ways to put a driving motion into the reference's picture, and the cut of the picture around its person.

`retarget.py` is the better one and the default; these are what peers do, for comparison and for their weights.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from animate_jax.pose.keypoints import Keypoints

Canvas = tuple[int, int]  # height, width

NECK, RIGHT_HIP, LEFT_HIP = 1, 8, 11
TORSO_AND_LEGS = (1, 8), (1, 11), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5), (0, 1)
SEEN = 0.3  # confidence from which a point counts
SHORTEST = 1e-6  # lengths below, in pixels or picture heights, are none


def pixels(keypoints: Keypoints, canvas: Canvas) -> Float[np.ndarray, "*frames 18 2"]:
    return keypoints.body * np.array([canvas[1], canvas[0]], np.float32)


def align_none(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """The motion as it is, its picture fitted into the canvas: centred, whole, undistorted."""
    scale = min(canvas[0] / driving_canvas[0], canvas[1] / driving_canvas[1])
    shift = (np.array(canvas[::-1]) - scale * np.array(driving_canvas[::-1])) / 2
    return _similarity(driving, driving_canvas, canvas, scale, shift)


def align_global(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """One similarity (scale and shift) for the whole clip, as MimicMotion aligns: limbs keep their proportions.

    The scale is the median ratio of bone lengths both people show; a bone of the clip counts at its 90th percentile
    over frames, since foreshortening only ever shortens it. The shift puts the neck of the first frame that shows
    one onto the reference's. With nothing in common the motion is fitted into the canvas as it is.

    Args:
        driving: [F] frames, in units of `driving_canvas`.
        reference: one frame (no leading axis), in units of `canvas`.
        canvas: the picture to be made.

    Returns:
        [F] keypoints in units of `canvas`.
    """
    driven, target = pixels(driving, driving_canvas), pixels(reference, canvas)
    seen_driven, seen_target = driving.body_confidence > SEEN, reference.body_confidence > SEEN
    ratios = []
    for a, b in TORSO_AND_LEGS:
        frames = seen_driven[:, a] & seen_driven[:, b]
        if frames.any() and seen_target[a] and seen_target[b]:
            length = np.percentile(np.linalg.norm(driven[frames, a] - driven[frames, b], axis=-1), 90)
            if length > 1:
                ratios.append(np.linalg.norm(target[a] - target[b]) / length)
    anchor = next((p for p in (NECK, RIGHT_HIP, LEFT_HIP) if seen_target[p] and seen_driven[:, p].any()), None)
    if not ratios or anchor is None:
        return align_none(driving, driving_canvas, reference, canvas)
    scale = float(np.median(ratios))
    first = int(np.argmax(seen_driven[:, anchor]))
    return _similarity(driving, driving_canvas, canvas, scale, target[anchor] - scale * driven[first, anchor])


def _similarity(driving: Keypoints, driving_canvas: Canvas, canvas: Canvas, scale: float, shift) -> Keypoints:
    """Pixels of the driving canvas -> pixels * scale + shift of the canvas."""
    (height, width), (driving_height, driving_width) = canvas, driving_canvas
    factor = scale * driving_width / width, scale * driving_height / height
    return driving.moved(factor, (float(shift[0] / width), float(shift[1] / height)))


def align_musepose(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """MusePose's `pose_align.py`: per-limb scales and one shift, all measured in the first frame.

    For its weights, which were sampled with it. Lengths are in picture heights, limbs are scaled outwards from the
    neck, whose own path is only shifted. Face points are shifted but not scaled. Scales that cannot be measured are
    1. A deviation: there, missing body points count with the detector's guess, which we do not keep.
    """
    aspect, own_aspect = canvas[1] / canvas[0], driving_canvas[1] / driving_canvas[0]
    unit, own_unit = np.array([aspect, 1]), np.array([own_aspect, 1])
    ref, drv = reference.body * unit, driving.body[0] * own_unit
    ref_seen, drv_seen = reference.body_confidence > SEEN, driving.body_confidence[0] > SEEN

    def ratio(*pairs: tuple[int, int]) -> float:
        pairs = [p for p in pairs if ref_seen[list(p)].all() and drv_seen[list(p)].all()]
        mean = lambda points: np.mean([np.linalg.norm(points[a] - points[b]) for a, b in pairs])  # noqa: E731
        return float(mean(ref) / mean(drv)) if pairs and mean(drv) > SHORTEST else 1.0

    scale = {
        "neck": ratio((0, 1)), "face": ratio((16, 17)), "shoulder": ratio((2, 5)),
        "upper_arm": ratio((2, 3), (5, 6)), "lower_arm": ratio((3, 4), (6, 7)),
        "thigh": ratio((8, 9), (11, 12)), "shin": ratio((9, 10), (12, 13)),
    }  # fmt: skip
    body = [8, 11]
    known = ref_seen[[1, *body]].all() and drv_seen[[1, *body]].all()
    length = lambda points: np.linalg.norm(points[1] - points[body].mean(0))  # noqa: E731
    scale["body"] = float(length(ref) / length(drv)) if known and length(drv) > SHORTEST else 1.0
    knuckles = []
    for hand in range(2):
        for finger in (1, 5, 9, 13, 17):
            both = [(k.hands_confidence[..., hand, :].reshape(-1, 21)[0, [0, finger]] > SEEN).all()
                    for k in (reference, driving)]  # fmt: skip
            if all(both):
                a = np.linalg.norm((reference.hands[hand, 0] - reference.hands[hand, finger]) * unit)
                b = np.linalg.norm((driving.hands[0, hand, 0] - driving.hands[0, hand, finger]) * own_unit)
                knuckles += [a / b] if b > SHORTEST else []
    arms = [scale["upper_arm"], scale["lower_arm"]]
    scale["hand"] = float(np.mean([np.mean(knuckles), *arms] if knuckles else arms))

    before = driving.body * own_unit
    after = before.copy()
    tree = (
        (0, 1, "neck"), *((p, 0, "face") for p in (14, 15, 16, 17)), (2, 1, "shoulder"), (5, 1, "shoulder"),
        (3, 2, "upper_arm"), (6, 5, "upper_arm"), (4, 3, "lower_arm"), (7, 6, "lower_arm"),
        (8, 1, "body"), (11, 1, "body"), (9, 8, "thigh"), (12, 11, "thigh"), (10, 9, "shin"), (13, 12, "shin"),
    )  # fmt: skip
    for child, parent, name in tree:
        after[:, child] = after[:, parent] + scale[name] * (before[:, child] - before[:, parent])
    hands = driving.hands * own_unit
    wrists = [7, 4]  # of the left and the right hand
    hands = after[:, wrists, None] + scale["hand"] * (hands - before[:, wrists, None])
    offset = ref[1] - drv[1] if ref_seen[1] and drv_seen[1] else np.zeros(2)
    place = lambda points: ((points + offset) / unit).astype(np.float32)  # noqa: E731
    return dataclasses.replace(driving, body=place(after), hands=place(hands), face=place(driving.face * own_unit))


def portrait(keypoints: Keypoints, canvas: Canvas, aspect: float, margin: float = 0.12
             ) -> tuple[float, float, float, float]:  # fmt: skip
    """The cut of a picture that shows its person in the proportions of the result.

    Args:
        keypoints: one frame, in units of `canvas`.
        aspect: width / height of the result.
        margin: free space around the person, as a share of the person's height.

    Returns:
        left, top, right, bottom in pixels; may reach outside the picture. With nobody in it, the largest centred cut.
    """
    height, width = canvas
    keypoints = keypoints.bounded()
    points = pixels(keypoints, canvas)[keypoints.body_confidence > SEEN]
    if len(points) < 2:
        size = min(height, width / aspect)
        center = np.array([width / 2, height / 2])
    else:
        low, high = points.min(0), points.max(0)
        tall = max(high[1] - low[1], 1.0)
        low = low - margin * tall * np.array([1, 1.4])  # the crown of the head lies above every keypoint
        high = high + margin * tall
        size = max(high[1] - low[1], (high[0] - low[0]) / aspect)
        center = (low + high) / 2
    half = np.array([size * aspect, size]) / 2
    (left, top), (right, bottom) = center - half, center + half
    return float(left), float(top), float(right), float(bottom)
