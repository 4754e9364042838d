"""The size of a person in a picture: the length of its torso."""

import numpy as np

from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints

NECK, HIPS = 1, [8, 11]
# Bones from which it is estimated, each with an adult's ratio of torso to bone
# (Winter, "Biomechanics", table 4.1); foreshortening only shortens, so the largest estimate counts.
SIZE_BONES = (
    (NECK, None, 1.0), (2, 5, 1.3), (2, 3, 1.55), (3, 4, 1.97), (5, 6, 1.55), (6, 7, 1.97),
    (8, 9, 1.18), (9, 10, 1.18), (11, 12, 1.18), (12, 13, 1.18),
)  # fmt: skip


def person_size(keypoints: Keypoints, height: int, width: int) -> float:
    """The length of a person's torso (one frame) as it would be from the front, in pixels; 0 where no bone is found."""
    points = keypoints.body[None].astype(np.float64) * (width, height)
    return float(person_sizes(points, points, keypoints.body_confidence[None] >= MIN_CONFIDENCE)[0][0])


def person_sizes(source, target, seen):
    """The person's size in the reference and in each frame, from the bones visible in both: pixels, [F] each."""
    lengths, both = [], []
    for a, b, ratio in SIZE_BONES:
        ends = HIPS if b is None else [b]
        there = seen[:, a] & seen[:, ends].all(-1)
        both.append(there)
        lengths.append([ratio * np.linalg.norm(p[:, a] - p[:, ends].mean(1), axis=-1) for p in (source, target)])
    lengths = np.where(np.array(both)[:, None], np.array(lengths), 0).max(0)
    return lengths[0], lengths[1]
