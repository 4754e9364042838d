"""Reads .npy files of poses: what MusePose's `extract_dwpose_keypoints.py` writes, and plain arrays of points.

MusePose's hold Python objects, which numpy reads with pickle, and a pickle may run any code. Here it may only
make dictionaries, lists, numbers and arrays.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from animate_jax.errors import UserError
from animate_jax.pose.dwpose import whole_body
from animate_jax.pose.keypoints import Keypoints

HARMLESS = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}
NECK_IN_134 = 17  # DWPose inserts it behind COCO's 17 points


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which may run code")
        return super().find_class(module, name)


def read_npy(path: Path) -> Keypoints:
    """The first person of every frame, as the positions stand in the file: fractions of the picture, or pixels.

    Arrays are [frames, points, x y (score)] with 18 points (OpenPose), 133 (COCO-WholeBody) or 134 (with a neck);
    without scores, negative positions are missing.

    Raises:
        UserError: it is neither of the two kinds.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            _, _, dtype = header(file)
            if dtype.hasobject:
                frames = [_musepose(frame) for frame in np.atleast_1d(_Unpickler(file).load())]
            else:
                file.seek(0)
                frames = [_array(frame) for frame in np.load(file).astype(np.float64)]
        if not frames:
            raise ValueError("it holds no frames")
        poses = Keypoints.stack(frames)
        if not all(np.isfinite(getattr(poses, name)).all() for name in Keypoints.names()):
            raise ValueError("it holds values that are not finite")
    except Exception as error:  # damaged pickles raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not poses of DWPose or MusePose ({reason}): write it anew") from error
    return poses


def _musepose(frame: dict) -> Keypoints:
    """A frame of bodies {candidate [18 n, 2], subset [n, 18]}, hands [2 n, 21, 2], faces [n, 68, 2]; -1: missing."""
    pose = Keypoints.missing()
    subset = np.atleast_2d(np.asarray(frame["bodies"]["subset"], np.float32))
    people = len(subset)
    if not people or not subset.size:
        return pose
    pose.body[:] = np.asarray(frame["bodies"]["candidate"])[:18]
    pose.body_confidence[:] = subset[0] >= 0
    hands = np.asarray(frame["hands"], np.float32)
    for side in range(2):  # all left hands, then all right ones
        pose.hands[side], pose.hands_confidence[side] = _present(hands[side * people])
    if "faces" in frame and len(frame["faces"]):
        pose.face[:], pose.face_confidence[:] = _present(np.asarray(frame["faces"], np.float32)[0])
    return pose


def _present(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen = (points >= 0).all(-1)
    return np.where(seen[..., None], points, 0), seen


def _array(points: np.ndarray) -> Keypoints:
    if points.ndim != 2 or points.shape[0] not in (18, 133, 134) or points.shape[1] not in (2, 3):
        raise ValueError(f"frames have the shape {points.shape}, not 18, 133 or 134 points x, y and score")
    place, score = points[:, :2], points[:, 2].clip(0, 1) if points.shape[1] == 3 else (points >= 0).all(-1)
    if len(points) == 18:
        body = {"body": place.astype(np.float32), "body_confidence": score.astype(np.float32)}
        return Keypoints(**(vars(Keypoints.missing()) | body))
    if len(points) == 134:
        place, score = np.delete(place, NECK_IN_134, 0), np.delete(score, NECK_IN_134, 0)
    return whole_body(place, score.astype(np.float64), (1, 1))
