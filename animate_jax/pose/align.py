"""Aligns a driving motion with the person of the reference image, by one of four methods; and crops around that person.

`retarget` is the most accurate method and the default. The others are those of MimicMotion and MusePose, for comparison
and for MusePose's weights.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from animate_jax.pose.keypoints import MIN_CONFIDENCE, MIN_LENGTH, Canvas, Keypoints, to_pixels
from animate_jax.pose.retarget import retarget

AlignMethod = Literal["none", "global", "musepose", "bones"]
ALIGN_METHODS: tuple[AlignMethod, ...] = get_args(AlignMethod)

NECK, RIGHT_HIP, LEFT_HIP = 1, 8, 11
TORSO_AND_LEGS = (1, 8), (1, 11), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5), (0, 1)
# MusePose's tree: child, parent, the limb whose scale applies.
MUSEPOSE_TREE = (
    (0, 1, "neck"),
    *((point, 0, "face") for point in (14, 15, 16, 17)),
    *((2, 1, "shoulder"), (5, 1, "shoulder"), (3, 2, "upper_arm"), (6, 5, "upper_arm")),
    *((4, 3, "lower_arm"), (7, 6, "lower_arm"), (8, 1, "body"), (11, 1, "body")),
    *((9, 8, "thigh"), (12, 11, "thigh"), (10, 9, "shin"), (13, 12, "shin")),
)
WRISTS = [7, 4]  # of the left and the right hand
ANKLES = [10, 13]
FACE = [0, 14, 15, 16, 17]
CROWN = 0.8  # of the distance from the neck to the middle of the face: so far above that the head ends
EDGES = 0.0, 0.02, 0.0  # free space that `keep_inside` leaves: beside, above and below the joints and the crown
INSIDE_QUANTILE = 0.95  # over frames
SMALLEST = 0.5
MAX_OUTSIDE = 0.05  # share of joints up to which a motion is left as it is


def align_motion(
    driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas, method: AlignMethod = "bones"
) -> Keypoints:
    """Aligns a driving motion with the person of the reference image.

    Args:
        driving: [F] frames, in units of `driving_canvas` (height, width).
        reference: one frame (no leading axis), in units of `canvas`.
        canvas: height, width of the output.
        method: "bones": `retarget`; "global": as in MimicMotion; "musepose": as in MusePose; "none": no alignment.

    Returns:
        [F] keypoints in units of `canvas`; all numbers are finite, also where those of the inputs are not.
    """
    functions = {"none": align_none, "global": align_global, "musepose": align_musepose, "bones": align_bones}
    return functions[method](driving.bounded(), driving_canvas, reference.bounded(), canvas)


def keep_inside(fitted: Keypoints, reference: Keypoints) -> Keypoints:
    """Scales and shifts a fitted motion, the same in all frames, so that it stays in the picture.

    Up to `MAX_OUTSIDE` of the joints, and the crown of the head in as many frames, may leave it. Only joints that the
    reference shows inside the picture have to; a reference closer to an edge than `EDGES` may stay there. A person who
    stands is scaled about the floor. Frames beyond `INSIDE_QUANTILE` on either side do not count, and nobody becomes
    smaller than `SMALLEST`.

    Args:
        fitted: [F] frames, in units of the picture.
        reference: one frame (no leading axis), in the same units.
    """
    own, own_seen = _with_crown(reference.bounded())
    points, seen = _with_crown(fitted)
    wanted = own_seen & ((own > 0) & (own < 1)).all(-1)
    seen = seen & wanted
    frames = seen.any(-1)
    outside = seen & ((points < 0) | (points > 1)).any(-1)
    if all(outside[:, part].sum() <= MAX_OUTSIDE * seen[:, part].sum() for part in (slice(-1), -1)):
        return fitted
    body = points[frames].astype(np.float64)
    low = np.where(seen[frames, :, None], body, np.inf).min(1)
    high = np.where(seen[frames, :, None], body, -np.inf).max(1)
    low, high = np.quantile(low, 1 - INSIDE_QUANTILE, 0), np.quantile(high, INSIDE_QUANTILE, 0)
    least = np.minimum((EDGES[0], EDGES[1]), own[wanted].min(0))
    most = np.maximum((1 - EDGES[0], 1 - EDGES[2]), own[wanted].max(0))
    scale = min(1.0, *((most - least) / np.maximum(high - low, 1e-9)))
    standing = seen[frames][:, ANKLES].all(-1)
    if standing.any():
        floor = np.quantile(body[standing][:, ANKLES, 1].max(-1), 0.5)
        if low[1] < least[1] < floor:
            scale = min(scale, (min(floor, most[1]) - least[1]) / (floor - low[1]))
    else:
        floor = high[1]
    scale = max(scale, SMALLEST)
    fixed = np.array([(low[0] + high[0]) / 2, floor])
    low, high = (scale * (edge - fixed) + fixed for edge in (low, high))
    shift = np.where(low < least, least - low, np.minimum(most - high, 0))
    offset = (1 - scale) * fixed + shift
    return fitted.affine((scale, scale), (float(offset[0]), float(offset[1])))


def _with_crown(keypoints: Keypoints) -> tuple[Float[np.ndarray, "*f 19 2"], Bool[np.ndarray, "*f 19"]]:
    """The body's joints and the crown of its head, and which are seen."""
    seen = keypoints.body_confidence > MIN_CONFIDENCE
    there = seen[..., FACE, None]
    middle = (keypoints.body[..., FACE, :] * there).sum(-2) / np.maximum(there.sum(-2), 1)
    crown = middle + CROWN * (middle - keypoints.body[..., NECK, :])
    known = seen[..., NECK] & there.any((-1, -2))
    return np.concatenate([keypoints.body, crown[..., None, :]], -2), np.concatenate([seen, known[..., None]], -1)


def align_bones(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """`retarget`; `align_none` when the two people have no visible bone in common."""
    retargeted = retarget(driving, driving_canvas, reference, canvas)
    return align_none(driving, driving_canvas, reference, canvas) if retargeted is None else retargeted


def align_none(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """Fits the driving canvas into the output's, centered and undistorted; the pose itself stays as it is."""
    scale = min(canvas[0] / driving_canvas[0], canvas[1] / driving_canvas[1])
    shift = (np.array(canvas[::-1]) - scale * np.array(driving_canvas[::-1])) / 2
    return _similarity(driving, driving_canvas, canvas, scale, shift)


def align_global(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """One scale and shift for the whole clip, as in MimicMotion: the driving person's proportions are kept.

    The scale is the median ratio of the lengths of bones that both people show. A bone's length in the clip is the 90th
    percentile over frames, since foreshortening only shortens it. The shift moves the neck of the first frame that
    shows one onto the reference's. Without a bone in common: `align_none`.

    Args:
        driving: [F] frames, in units of `driving_canvas`.
        reference: one frame (no leading axis), in units of `canvas`.
        canvas: height, width of the output.

    Returns:
        [F] keypoints in units of `canvas`.
    """
    driven, target = to_pixels(driving, driving_canvas), to_pixels(reference, canvas)
    seen_driven, seen_target = driving.body_confidence > MIN_CONFIDENCE, reference.body_confidence > MIN_CONFIDENCE
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
    return driving.affine(factor, (float(shift[0] / width), float(shift[1] / height)))


def align_musepose(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """MusePose's `pose_align.py`: per-limb scales and one shift, all measured in the first frame.

    For its weights. Lengths are in image heights. Limbs are scaled outwards from the neck; the neck and the points of
    the face are only shifted. Scales that cannot be measured are 1. A deviation: MusePose measures missing body points
    at the detector's guess, which our keypoints do not keep.
    """
    unit, driving_unit = (np.array([width / height, 1]) for height, width in (canvas, driving_canvas))
    scale = _musepose_scales(driving[0], driving_unit, reference, unit)
    before = driving.body * driving_unit
    after = before.copy()
    for child, parent, limb in MUSEPOSE_TREE:
        after[:, child] = after[:, parent] + scale[limb] * (before[:, child] - before[:, parent])
    hands = after[:, WRISTS, None] + scale["hand"] * (driving.hands * driving_unit - before[:, WRISTS, None])
    neck_seen = reference.body_confidence[NECK] > MIN_CONFIDENCE and driving.body_confidence[0, NECK] > MIN_CONFIDENCE
    offset = reference.body[NECK] * unit - driving.body[0, NECK] * driving_unit if neck_seen else np.zeros(2)
    parts = {"body": after, "hands": hands, "face": driving.face * driving_unit}
    shifted = {name: ((points + offset) / unit).astype(np.float32) for name, points in parts.items()}
    return dataclasses.replace(driving, **shifted)


def _musepose_scales(
    driving: Keypoints, driving_unit: Float[np.ndarray, "xy=2"], reference: Keypoints, unit: Float[np.ndarray, "xy=2"]
) -> dict[str, float]:
    """Lengths in the reference / lengths in the driving frame, by limb; units turn positions into image heights."""
    points = reference.body * unit, driving.body * driving_unit
    seen = (reference.body_confidence > MIN_CONFIDENCE) & (driving.body_confidence > MIN_CONFIDENCE)

    def ratio(*bones: tuple[int, int]) -> float:
        measured = [bone for bone in bones if seen[list(bone)].all()]
        if not measured:
            return 1.0
        own, driven = (np.mean([np.linalg.norm(p[a] - p[b]) for a, b in measured]) for p in points)
        return float(own / driven) if driven > MIN_LENGTH else 1.0

    scale = {
        "neck": ratio((0, 1)),
        "face": ratio((16, 17)),
        "shoulder": ratio((2, 5)),
        "upper_arm": ratio((2, 3), (5, 6)),
        "lower_arm": ratio((3, 4), (6, 7)),
        "thigh": ratio((8, 9), (11, 12)),
        "shin": ratio((9, 10), (12, 13)),
        "body": 1.0,
    }
    hips = [RIGHT_HIP, LEFT_HIP]
    own, driven = (np.linalg.norm(p[NECK] - p[hips].mean(0)) for p in points)
    if seen[[NECK, *hips]].all() and driven > MIN_LENGTH:
        scale["body"] = float(own / driven)
    arms = [scale["upper_arm"], scale["lower_arm"]]
    knuckles = _knuckle_ratios(driving, driving_unit, reference, unit)
    scale["hand"] = float(np.mean([np.mean(knuckles), *arms] if knuckles else arms))
    return scale


def _knuckle_ratios(
    driving: Keypoints, driving_unit: Float[np.ndarray, "xy=2"], reference: Keypoints, unit: Float[np.ndarray, "xy=2"]
) -> list[float]:
    """Distance from wrist to knuckle in the reference / in the driving frame, of all fingers visible in both."""
    ratios = []
    for hand in range(2):
        for knuckle in (1, 5, 9, 13, 17):
            ends = [0, knuckle]
            if not all((k.hands_confidence[hand, ends] > MIN_CONFIDENCE).all() for k in (reference, driving)):
                continue
            own = np.linalg.norm((reference.hands[hand, 0] - reference.hands[hand, knuckle]) * unit)
            driven = np.linalg.norm((driving.hands[hand, 0] - driving.hands[hand, knuckle]) * driving_unit)
            if driven > MIN_LENGTH:
                ratios.append(own / driven)
    return ratios


def crop_box(
    keypoints: Keypoints, canvas: Canvas, aspect: float, margin: float = 0.12
) -> tuple[float, float, float, float]:
    """The crop of an image around its person, with a given aspect ratio.

    Args:
        keypoints: one frame, in units of `canvas`.
        aspect: width / height of the result.
        margin: free space around the person, as a share of the person's height.

    Returns:
        left, top, right, bottom in pixels; may extend beyond the image. Without a person: the largest centered crop.
    """
    height, width = canvas
    keypoints = keypoints.bounded()
    points = to_pixels(keypoints, canvas)[keypoints.body_confidence > MIN_CONFIDENCE]
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
