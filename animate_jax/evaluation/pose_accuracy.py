"""Pose accuracy: joints detected in a video, compared with the joints that drove it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from animate_jax.pose.keypoints import BODY, Keypoints

# Eyes and ears are so close to the nose that they would count the head five times.
JOINTS = [i for i, name in enumerate(BODY) if not name.endswith(("eye", "ear"))]
TORSO = [BODY.index(f"{side}_{joint}") for side in ("right", "left") for joint in ("shoulder", "hip")]


def pck(
    detected: Keypoints, driven: Keypoints, size: tuple[int, int], threshold: float = 0.2
) -> Float[np.ndarray, " frames"]:
    """Share of correct keypoints of every frame, 0..1: those within `threshold` torso lengths of the driving ones.

    Every driving joint counts, detected or not; a frame without driving joints is NaN. The torso length, from the
    midpoint of the shoulders to that of the hips, is the largest of the clip, as bending and turning shorten it.

    Args:
        size: height, width of the image in pixels.
    """
    scale = np.array(size[::-1], np.float32)
    torso = driven.body[:, TORSO] * scale  # right shoulder, right hip, left shoulder, left hip
    visible = (driven.body_confidence[:, TORSO] > 0).all(-1)
    lengths = np.linalg.norm((torso[:, 0] + torso[:, 2] - torso[:, 1] - torso[:, 3]) / 2, axis=-1)
    if not visible.any():
        return np.full(len(driven), np.nan)
    max_distance = threshold * lengths[visible].max()
    counted: Bool[np.ndarray, "frames joints"] = driven.body_confidence[:, JOINTS] > 0
    distance = np.linalg.norm((detected.body[:, JOINTS] - driven.body[:, JOINTS]) * scale, axis=-1)
    correct = counted & (detected.body_confidence[:, JOINTS] > 0) & (distance <= max_distance)
    count = counted.sum(-1)
    return np.where(count > 0, correct.sum(-1) / np.maximum(count, 1), np.nan)
