"""Reads and writes keypoints: OpenPose's JSON, one file or a folder of frames, and our .npz; reads DWPose's .npy.

JSON positions are pixels of a canvas whose size is in the file (`canvas_width`, `canvas_height`, as ControlNet tools
write it) or given by the caller; plain OpenPose files lack it. If no position exceeds 2, they are taken for fractions
of the canvas (OpenPose's `--keypoint_scale 3`). Only the first person of a frame is read.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from animate_jax import limits
from animate_jax.atomic import atomic_file
from animate_jax.errors import UserError, reading
from animate_jax.pose.keypoints import Canvas, Keypoints
from animate_jax.pose.npy import read_npy

KEYPOINT_SUFFIXES = (".json", ".npz", ".npy")  # of files that hold keypoints
# Indices of our points in OpenPose's layouts, keyed by the layout's number of points.
LAYOUTS = {
    18: range(18),
    25: (*range(8), *range(9, 19)),  # BODY_25: the middle of the hips at 8, feet from 19 on
    21: range(21),
    68: range(68),
    70: range(68),  # the last two are the pupils
}
JSON_KEYS = {  # JSON name: (field, index within the field, layouts)
    "pose_keypoints_2d": ("body", (), (18, 25)),
    "hand_left_keypoints_2d": ("hands", (0,), (21,)),
    "hand_right_keypoints_2d": ("hands", (1,), (21,)),
    "face_keypoints_2d": ("face", (), (68, 70)),
}
FRACTION_LIMIT = 2.0
JSON_ADVICE, NPZ_ADVICE = "give OpenPose keypoints", "write it anew"


def read_poses(path: str | os.PathLike, canvas: Canvas | None = None) -> tuple[Keypoints, Canvas]:
    """Reads the poses of one person over F frames.

    Args:
        path: our .npz; a .npy (see `animate_jax.pose.npy`); a .json file that is one OpenPose frame, a list of
            frames, or an object with a list "frames"; or a folder of OpenPose .json files, one per
            frame in the order of their names and the numbers in them.
        canvas: (height, width) in pixels of the images the poses come from, for files without it.

    Returns:
        Keypoints [F, ...] and the canvas (height, width), whose aspect ratio the keypoints do not contain.

    Raises:
        UserError: the file is missing, malformed or too large, or the canvas is unknown.
    """
    path = Path(path)
    if canvas:
        check_canvas(path, *canvas)
    if path.is_dir():
        files = sorted(path.glob("*.json"), key=lambda file: natural_order(file.name))
        if not files:
            raise UserError(f"{path}: no .json files in this folder: give a folder of OpenPose frames")
        frames = [(file, frame) for file in files for frame in _json_frames(file)]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder: check the path")
    elif path.suffix.lower() == ".npz":
        return _read_npz(path)
    elif path.suffix.lower() == ".npy":
        poses = read_npy(path)
        return _to_fractions(poses, [_require_canvas(path, canvas)] * len(poses)), _require_canvas(path, canvas)
    else:
        frames = [(path, frame) for frame in _json_frames(path)]

    if len(frames) > limits.VIDEO_FRAMES:
        raise UserError(f"{path}: more than {limits.VIDEO_FRAMES} frames: cut it")
    canvases = [_require_canvas(file, _canvas(file, frame) or canvas) for file, frame in frames]
    return _to_fractions(Keypoints.stack([_parse(file, frame) for file, frame in frames]), canvases), canvases[0]


def check_canvas(path: str | os.PathLike, height: float | int, width: float | int) -> None:
    """
    Raises:
        UserError: the size is too small, too large or too narrow for an image.
    """
    short, long = sorted((height, width))
    if not (1 <= short and long <= limits.CANVAS_SIDE and long <= limits.CANVAS_RATIO * short):
        raise UserError(
            f"{path}: a canvas of {width} x {height} pixels: it must have 1 to {limits.CANVAS_SIDE} per side, and one "
            f"side at most {limits.CANVAS_RATIO:g} times the other"
        )


def natural_order(name: str) -> list[str | int]:
    """Sorts 2.json before 10.json."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _require_canvas(path: Path, canvas: Canvas | None) -> Canvas:
    if canvas is None:
        raise UserError(
            f"{path}: does not tell the size of its pictures: give --canvas WIDTH HEIGHT, "
            'or in .json add "canvas_width" and "canvas_height", in pixels'
        )
    return canvas


def _to_fractions(points: Keypoints, canvases: list[Canvas]) -> Keypoints:
    """Divides positions in pixels by each frame's canvas; fractions stay."""
    positions = [getattr(points, name)[getattr(points, f"{name}_confidence") > 0] for name in ("body", "hands", "face")]
    if np.abs(np.concatenate(positions)).max(initial=0) <= FRACTION_LIMIT:
        return points
    return Keypoints.stack(
        [points[i].affine((1 / width, 1 / height), (0, 0)) for i, (height, width) in enumerate(canvases)]
    )


def write_poses(path: str | os.PathLike, keypoints: Keypoints, canvas: Canvas) -> None:
    """Writes poses [F, ...] as .npz (exact) or .json (OpenPose's layout, all frames in one file, 1/1000
    pixel).

    Raises:
        UserError: the place cannot be written or the name's ending is neither .npz nor .json.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".json"):
        raise UserError(f"{path}: cannot write this kind of file: let the name end in .npz or .json")
    with atomic_file(path) as partial:
        if suffix == ".npz":
            arrays = {name: getattr(keypoints, name) for name in Keypoints.names()}
            np.savez_compressed(partial, canvas=np.array(canvas), **arrays)
        else:
            partial.write_text(json.dumps(_to_json(keypoints, canvas)))


def _read_npz(path: Path) -> tuple[Keypoints, Canvas]:
    with reading(path, "keypoint file of ours", NPZ_ADVICE), path.open("rb") as stream:
        with zipfile.ZipFile(stream) as archive:
            if sum(member.file_size for member in archive.infolist()) > limits.KEYPOINTS_BYTES:
                raise ValueError(f"more than {limits.KEYPOINTS_BYTES >> 20} MB")
        stream.seek(0)
        with np.load(stream) as file:
            arrays = {name: file[name] for name in (*Keypoints.names(), "canvas")}
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiu" for array in arrays.values()):
            raise ValueError("it holds other things than arrays of numbers")
        frames = len(arrays["body"])
        if not frames:
            raise ValueError("it holds no frames")
        if frames > limits.VIDEO_FRAMES:
            raise ValueError(f"more than {limits.VIDEO_FRAMES} frames")
        expected = Keypoints.empty(frames)
        for name in Keypoints.names():
            if (
                arrays[name].shape != getattr(expected, name).shape
                or not (np.abs(arrays[name]) <= limits.KEYPOINT_POSITION).all()
            ):  # NaN is not
                raise ValueError(f'"{name}" has the wrong shape or values')
        height, width = arrays.pop("canvas").tolist()
        check_canvas(path, height, width)
        keypoints = Keypoints(**{name: array.astype(np.float32) for name, array in arrays.items()})
        return keypoints, (int(height), int(width))


def _json_frames(path: Path) -> list[dict]:
    """The frames of a file; each inherits the canvas of the object around it."""
    with reading(path, "JSON file", JSON_ADVICE), path.open("rb") as file:
        text = file.read(limits.KEYPOINTS_JSON_BYTES + 1)
        if len(text) > limits.KEYPOINTS_JSON_BYTES:
            raise ValueError(f"more than {limits.KEYPOINTS_JSON_BYTES >> 20} MB")
        content = json.loads(text.decode("utf-8"))
    frames, outer = content, {}
    if isinstance(content, dict):
        frames = content.get("frames", [content])
        outer = {key: content[key] for key in ("canvas_width", "canvas_height") if key in content}
    if not isinstance(frames, list) or any(not isinstance(frame, dict) or "people" not in frame for frame in frames):
        raise UserError(f'{path}: not OpenPose keypoints: a frame needs a list "people"')
    if not frames:
        raise UserError(f"{path}: holds no frames: give at least one")
    return [outer | frame for frame in frames]


def _canvas(path: Path, frame: dict) -> Canvas | None:
    height, width = frame.get("canvas_height"), frame.get("canvas_width")
    if height is None and width is None:
        return None
    if not isinstance(height, int | float) or not isinstance(width, int | float):
        raise UserError(f'{path}: "canvas_width" and "canvas_height" must be two positive numbers')
    check_canvas(path, height, width)
    return int(height), int(width)


def _parse(path: Path, frame: dict) -> Keypoints:
    """One frame with the positions of the file, not yet divided by the canvas."""
    points = Keypoints.empty()
    people = frame["people"]
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise UserError(f'{path}: "people" must be a list of objects: give OpenPose keypoints')
    for key, (field, index, counts) in JSON_KEYS.items():
        values = people[0].get(key) if people else None
        if not values:  # no person, or a part that was not detected
            continue
        try:
            triples = np.asarray(values, np.float64)
            valid = triples.ndim == 1 and triples.size in [3 * count for count in counts]
            valid = valid and (np.abs(triples) <= limits.KEYPOINT_POSITION).all()  # NaN is not
        except (ValueError, TypeError, OverflowError):
            valid = False
        if not valid:
            layouts = " or ".join(f"3 x {count}" for count in counts)
            raise UserError(f'{path}: "{key}" must be a flat list of {layouts} numbers: x, y, confidence')
        triples = triples.reshape(-1, 3)
        triples = triples[list(LAYOUTS[len(triples)])]
        getattr(points, field)[(*index, ...)] = triples[:, :2]
        getattr(points, f"{field}_confidence")[(*index, ...)] = triples[:, 2].clip(0, 1)
    return points


def _to_json(keypoints: Keypoints, canvas: Canvas) -> dict:
    height, width = canvas
    frames = []
    for i in range(len(keypoints)):
        person = {}
        for key, (field, index, _) in JSON_KEYS.items():
            confidence = getattr(keypoints, f"{field}_confidence")[(i, *index)]
            points = getattr(keypoints, field)[(i, *index)].astype(np.float64) * (width, height)
            triples = np.concatenate([points, confidence[:, None]], -1) * (confidence > 0)[:, None]
            person[key] = [round(value, 3) for value in triples.ravel().tolist()] if confidence.any() else []
        frames.append({"people": [person] if any(person.values()) else []})
    return {"canvas_width": width, "canvas_height": height, "frames": frames}
