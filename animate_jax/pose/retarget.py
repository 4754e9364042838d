"""Transfers a driving motion to the reference person's body: their proportions, size and position.

Every bone of the driving frame is scaled by one ratio per kind of bone (thigh, forearm, ...), and the skeleton is
assembled again from the hips outwards. That is exact for two bodies with the same joint angles in front of the same
distant camera. `proportions.py` estimates the ratios.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from animate_jax.pose.keypoints import MIN_CONFIDENCE, Canvas, Keypoints, to_pixels
from animate_jax.pose.proportions import HIPS, NECK, NOSE, Points, Seen, estimate_hand_ratio, estimate_proportions

ANKLES, WRISTS = [10, 13], [7, 4]  # wrists of the left and the right hand
TREE = (
    (2, NECK, "shoulders"), (5, NECK, "shoulders"), (8, HIPS, "hips"), (11, HIPS, "hips"),
    (3, 2, "upper arm"), (6, 5, "upper arm"), (4, 3, "forearm"), (7, 6, "forearm"),
    (9, 8, "thigh"), (12, 11, "thigh"), (10, 9, "shin"), (13, 12, "shin"),
    (NOSE, NECK, "neck"), (14, NOSE, "head"), (15, NOSE, "head"), (16, 14, "head"), (17, 15, "head"),
)  # fmt: skip
SAME_DISTANCE = 0.05  # difference of sizes, as a logarithm, up to which frames are at one distance
ON_FLOOR = 0.5  # quantile of the feet's height, over frames at one distance, that is the floor


def retarget(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints | None:
    """The driving motion with the reference's bone lengths; arguments as in `align.align_motion`. Confidences stay.

    The first frame is placed where the reference stands, feet on the same floor; displacements are scaled with the
    legs. None when the two people have no visible bone in common.
    """
    driven, driven_seen = _with_hips(to_pixels(driving, driving_canvas), driving.body_confidence > MIN_CONFIDENCE)
    target, target_seen = _with_hips(
        to_pixels(reference, canvas)[None], reference.body_confidence[None] > MIN_CONFIDENCE
    )
    proportions = estimate_proportions(driven, driven_seen, target, target_seen)
    root = HIPS if driven_seen[:, HIPS].mean() > 0.5 * driven_seen[:, NECK].mean() else NECK
    if proportions is None or not driven_seen[:, root].any():
        return None

    ratios = proportions.bones
    spine = (NECK, HIPS, "spine") if root == HIPS else (HIPS, NECK, "spine")
    before = _fill_gaps(driven, driven_seen, root, (spine, *TREE))
    after = before * ratios["leg"]
    for child, parent, bone in (spine, *TREE):
        after[:, child] = after[:, parent] + ratios[bone] * (before[:, child] - before[:, parent])
    feet = driven_seen[:, ANKLES].any(), target_seen[0, ANKLES].any()
    if all(feet):  # unequal ratios of thigh and shin would move the feet off the floor
        after[..., 1] += (_standing_foot(before) * ratios["leg"] - _standing_foot(after))[:, None]

    anchor = next(p for p in (HIPS, NECK, *range(18)) if target_seen[0, p] and driven_seen[:, p].any())
    first = int(np.argmax(driven_seen[:, anchor]))
    shift = target[0, anchor] - after[first, anchor]
    if all(feet):
        # The floor is at the feet's median height, unless the reference has the first frame's pose, in the air or not.
        heights = _standing_foot(after)
        near = np.abs(proportions.sizes - proportions.sizes[first]) < SAME_DISTANCE
        floor = np.quantile(heights[near], ON_FLOOR)
        floor += proportions.similarity[first] * (heights[first] - floor)
        shift[1] = _standing_foot(target, target_seen)[0] - floor
    after = after + shift

    driving_size, size = np.array(driving_canvas[::-1]), np.array(canvas[::-1])
    hands, own_hands = driving.hands * driving_size, reference.hands * size
    hands_seen, own_seen = (each.hands_confidence > MIN_CONFIDENCE for each in (driving, reference))
    ratio = estimate_hand_ratio(proportions, hands, hands_seen, own_hands, own_seen)
    hands = after[:, WRISTS, None] + ratio * (hands - before[:, WRISTS, None])
    face = after[:, [NOSE]] + ratios["head"] * (driving.face * driving_size - before[:, [NOSE]])
    parts = {"body": after[:, :18], "hands": hands, "face": face}
    placed = {name: (points / size).astype(np.float32) for name, points in parts.items()}
    return dataclasses.replace(driving, **placed)


def _with_hips(body: Float[np.ndarray, "frames 18 2"], seen: Bool[np.ndarray, "frames 18"]) -> tuple[Points, Seen]:
    """Appends the midpoint of the hips to the points."""
    hips = [8, 11]
    return (
        np.concatenate([body, body[:, hips].mean(1, keepdims=True)], 1).astype(np.float64),
        np.concatenate([seen, seen[:, hips].all(1, keepdims=True)], 1),
    )


def _fill_gaps(points: Points, seen: Seen, root: int, tree) -> Points:
    """Fills in points that are not visible, by interpolating bones between frames; one that is never visible has length
    0."""
    frames = np.arange(len(points))
    filled = points.copy()

    def between(values: Float[np.ndarray, "frames 2"], known: Bool[np.ndarray, " frames"]) -> Float[np.ndarray, "f 2"]:
        if not known.any():
            return np.zeros_like(values)
        return np.stack([np.interp(frames, frames[known], values[known, axis]) for axis in range(2)], -1)

    filled[:, root] = between(points[:, root], seen[:, root])
    for child, parent, _ in tree:
        vector = points[:, child] - filled[:, parent]
        filled[:, child] = filled[:, parent] + between(vector, seen[:, child])
    return filled


def _standing_foot(points: Points, seen: Seen | None = None) -> Float[np.ndarray, " frames"]:
    """Height in the image of the lower foot, with a smooth transition between the feet."""
    y = points[:, ANKLES, 1]
    if seen is not None:
        y = np.where(seen[:, ANKLES], y, -np.inf)
    softness = 0.1 * np.linalg.norm(points[:, NECK] - points[:, HIPS], axis=-1).clip(1e-6)[:, None]
    share = np.exp((y - y.max(1, keepdims=True)) / softness)
    return (share * np.where(np.isinf(y), 0, y)).sum(1) / share.sum(1)
