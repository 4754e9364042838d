"""Puts a driving motion into the reference picture: the driving person's size and place become the reference's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from animate_jax.pose.keypoints import Keypoints

Canvas = tuple[int, int]  # height, width

NECK, RIGHT_HIP, LEFT_HIP = 1, 8, 11
TORSO_AND_LEGS = (1, 8), (1, 11), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5), (0, 1)
SEEN = 0.3  # confidence from which a point counts


def align(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
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
        scale = min(canvas[0] / driving_canvas[0], canvas[1] / driving_canvas[1])
        shift = (np.array(canvas[::-1]) - scale * np.array(driving_canvas[::-1])) / 2
    else:
        scale = float(np.median(ratios))
        first = int(np.argmax(seen_driven[:, anchor]))
        shift = target[anchor] - scale * driven[first, anchor]
    height, width = canvas
    factor = scale * np.array([driving_canvas[1] / width, driving_canvas[0] / height])
    return driving.moved((float(factor[0]), float(factor[1])), (float(shift[0] / width), float(shift[1] / height)))


def pixels(keypoints: Keypoints, canvas: Canvas) -> Float[np.ndarray, "*frames 18 2"]:
    return keypoints.body * np.array([canvas[1], canvas[0]], np.float32)


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
