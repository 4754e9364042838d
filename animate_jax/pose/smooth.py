"""Removes jitter from detected keypoints without adding latency to fast motion."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from animate_jax.pose.keypoints import Keypoints

SLOWEST_CUTOFF = 1.5  # Hz, of a point at rest
CUTOFF_PER_SPEED = 8.0  # Hz per body size a second
SPEED_CUTOFF = 1.0  # Hz, of the speed's own filter


def smooth(keypoints: Keypoints, canvas: tuple[int, int], fps: float) -> Keypoints:
    """The One-Euro filter (Casiez et al. 2012), run forwards and backwards, so that the lags cancel.

    Each point is filtered independently, and anew after frames without it; confidences stay. Speeds are in body sizes.

    Args:
        keypoints: [F] frames, in units of `canvas` (height, width), which came at `fps` frames a second.
    """
    keypoints, size = keypoints.bounded(), np.array(canvas[::-1], np.float64)
    seen = keypoints.body_confidence > 0
    body = np.where(seen[..., None], keypoints.body * size, np.nan)
    shown = seen.sum(1) > 1
    if not shown.any():
        return keypoints
    extent = np.median(np.linalg.norm(np.nanmax(body[shown], 1) - np.nanmin(body[shown], 1), axis=-1))
    result = {}
    for name in ("body", "hands", "face"):
        points = getattr(keypoints, name) * size / max(float(extent), 1.0)
        known = getattr(keypoints, f"{name}_confidence") > 0
        both = (_one_euro(points, known, fps) + _one_euro(points[::-1], known[::-1], fps)[::-1]) / 2
        result[name] = np.where(known[..., None], both * max(float(extent), 1.0) / size, getattr(keypoints, name))
    return dataclasses.replace(keypoints, **{name: points.astype(np.float32) for name, points in result.items()})


def _one_euro(
    points: Float[np.ndarray, " frames *points 2"], known: Bool[np.ndarray, " frames *points"], fps: float
) -> Float[np.ndarray, "frames *points 2"]:
    result, speed = points.copy(), np.zeros_like(points[0])
    for frame in range(1, len(points)):
        follows = (known[frame] & known[frame - 1])[..., None]
        change = (points[frame] - result[frame - 1]) * fps
        speed = np.where(follows, speed + _smoothing_factor(fps, SPEED_CUTOFF) * (change - speed), 0)
        cutoff = SLOWEST_CUTOFF + CUTOFF_PER_SPEED * np.linalg.norm(speed, axis=-1, keepdims=True)
        step = _smoothing_factor(fps, cutoff) * (points[frame] - result[frame - 1])
        result[frame] = np.where(follows, result[frame - 1] + step, points[frame])
    return result


def _smoothing_factor(fps: float, cutoff):
    """Weight of the new value in a first-order low-pass filter with that cutoff in Hz."""
    return 1 / (1 + fps / (2 * np.pi * cutoff))
