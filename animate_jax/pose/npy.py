"""Reads .npy files of poses: what MusePose's `extract_dwpose_keypoints.py` writes, and plain arrays of points.

MusePose's contain Python objects as a pickle, which is read without running it (`animate_jax.unpickle`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from animate_jax import limits, unpickle
from animate_jax.errors import reading
from animate_jax.pose.dwpose import from_coco_wholebody
from animate_jax.pose.keypoints import Keypoints

NECK_IN_134 = 17  # DWPose inserts it after COCO's 17 points


def read_npy(path: Path) -> Keypoints:
    """The first person of every frame, with the positions of the file: fractions of the image, or pixels.

    Arrays are [frames, points, x y (score)] with 18 points (OpenPose), 133 (COCO-WholeBody) or 134 (with a neck);
    without scores, negative positions are missing.

    Raises:
        UserError: it is neither MusePose's nor such an array.
    """
    with reading(path, "file of DWPose's or MusePose's poses", "write it anew"):
        with path.open("rb") as file:
            content = file.read(limits.KEYPOINTS_BYTES + 1)
        if len(content) > limits.KEYPOINTS_BYTES:
            raise ValueError(f"more than {limits.KEYPOINTS_BYTES >> 20} MB")
        frames, parse = _frames(content)
        if not 0 < len(frames) <= limits.VIDEO_FRAMES:
            raise ValueError(f"it holds {len(frames):,} frames, not 1 to {limits.VIDEO_FRAMES:,}")
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that overflow are handled as not finite below
            poses = Keypoints.stack([parse(frame) for frame in frames])
        if not all(np.isfinite(getattr(poses, name)).all() for name in Keypoints.names()):
            raise ValueError("it holds values that are not finite")
    return poses


def _frames(content: bytes) -> tuple[Any, Callable[[Any], Keypoints]]:
    """The frames of a file, and the function that turns one into keypoints."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = header(file)
    start = file.tell()
    if dtype.hasobject:
        frames = unpickle.read(content, unpickle.NUMPY, start)
        if not isinstance(frames, list):
            raise ValueError("it holds no frames")
        return frames, _from_musepose
    if dtype.kind not in "fiu" or len(content) - start < math.prod(shape) * dtype.itemsize:
        raise ValueError("it holds no numbers, or fewer than it says")
    return np.ndarray(shape, dtype, content, start, order="F" if fortran else "C"), _from_array


def _from_musepose(frame: dict) -> Keypoints:
    """A frame of bodies {candidate [18 n, 2], subset [n, 18]}, hands [2 n, 21, 2], faces [n, 68, 2]; -1: missing."""
    pose = Keypoints.empty()
    subset = np.atleast_2d(_numbers(frame["bodies"]["subset"]))
    people = len(subset)
    if not people or not subset.size:
        return pose
    pose.body[:] = _numbers(frame["bodies"]["candidate"])[:18]
    pose.body_confidence[:] = subset[0] >= 0
    hands = _numbers(frame["hands"])
    for side in range(2):  # all left hands, then all right ones
        pose.hands[side], pose.hands_confidence[side] = _points_and_mask(hands[side * people])
    if "faces" in frame and len(faces := _numbers(frame["faces"])):
        pose.face[:], pose.face_confidence[:] = _points_and_mask(faces[0])
    return pose


def _numbers(value: Any) -> np.ndarray:
    """An array, or an empty list. Other lists are refused: nested ones that share elements may become huge arrays."""
    if not isinstance(value, np.ndarray) and value != []:
        raise ValueError(f"it holds a {type(value).__name__} where an array should be")
    return np.asarray(value, np.float32)


def _points_and_mask(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen = np.asarray((points >= 0).all(-1))
    return np.where(seen[..., None], points, 0), seen


def _from_array(points: np.ndarray) -> Keypoints:
    points = points.astype(np.float64)
    if points.ndim != 2 or points.shape[0] not in (18, 133, 134) or points.shape[1] not in (2, 3):
        raise ValueError(f"frames have the shape {points.shape}, not 18, 133 or 134 points x, y and score")
    place = points[:, :2]
    score = np.asarray(points[:, 2].clip(0, 1) if points.shape[1] == 3 else (points >= 0).all(-1), np.float64)
    if len(points) == 18:
        body = {"body": place.astype(np.float32), "body_confidence": score.astype(np.float32)}
        return Keypoints(**(vars(Keypoints.empty()) | body))
    if len(points) == 134:
        place, score = np.delete(place, NECK_IN_134, 0), np.delete(score, NECK_IN_134, 0)
    return from_coco_wholebody(place, score, (1, 1))
