"""Clips for evaluation: a reference image, true frames, and masks and keypoints of the person."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from animate_jax.errors import UserError
from animate_jax.images import center_crop_box, resize_lanczos
from animate_jax.pose.detect import detect
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.open import VIDEO_SUFFIXES
from animate_jax.video.read import read_video

MARGINS = (0.1, 0.12)  # around the joints, in heights of their box: horizontal, vertical
ASPECT_TOLERANCE = 0.02  # largest relative difference between the aspect ratios of a result and its true video

Frames = UInt8[np.ndarray, "frames height width 3"]
Size = tuple[int, int]  # height, width in pixels


@dataclasses.dataclass(frozen=True)
class EvalClip:
    """One clip. Its true frames do not include the reference image, for which a copy would be a perfect result."""

    name: str
    fps: float
    reference: UInt8[np.ndarray, "height width 3"]
    frames: UInt8[np.ndarray, "frames height width 3"]
    masks: Shaped[np.ndarray, "frames+1 height width"]  # the person, non-zero; the reference's first
    keypoints: Keypoints  # of the reference and then of the true frames
    result: UInt8[np.ndarray, "frames height width 3"] | None = None  # if it was made by another program


@dataclasses.dataclass(frozen=True)
class EvalClips:
    """A sequence of clips, each of which is rendered or read during iteration and not kept."""

    count: int
    make: Callable[[int], EvalClip]  # index -> clip

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[EvalClip]:
        return map(self.make, range(self.count))


def open_clips(
    data: str | Path,
    *,
    clips: int | None = None,
    frames: int | None = None,
    gap: int | None = None,
    size: Size | None = None,
    fps: float | None = None,
    results: Path | None = None,
) -> EvalClips:
    """The clips that `data` names: mocap_people:SPLIT, a folder of videos, or a recorded data set DIR[:SPLIT].

    Args:
        clips: at most that many; None: 24 rendered clips, all of anything else.
        frames: frames to make per clip, at most; None: 16 of rendered clips, all of anything else.
        gap: frames between the reference and the first frame to make; None: 8 (0.8 s) of rendered clips, else 1.
        size: height and width in pixels; None: that of the data; (128, 96) for rendered clips.
        fps: frames/s; None: that of the data; 10 for rendered clips.
        results: a folder of results to score, for a folder of videos; see `from_videos`.

    Raises:
        UserError: no such data, or (while iterating) a clip that cannot be used.
    """
    name, _, split = str(data).partition(":")
    if name == "mocap_people" and results is None:
        return from_renderer(split or "test_both", clips or 24, frames or 16, gap or 8, size or (128, 96), fps or 10.0)
    if results is None and not is_video_folder(Path(data)):
        return from_records(name, split or "test", clips, frames, gap or 1, size, fps)
    return from_videos(video_files(Path(data), clips), frames, gap or 1, size, fps, results)


def from_renderer(split: str, clips: int, frames: int, gap: int, size: Size, fps: float, seed: int = 0) -> EvalClips:
    """Clips of mocap_people: exact joints and masks.

    Args:
        gap: frames between the reference and the first frame to make.

    Raises:
        UserError: no such split.
    """
    from animate_jax.data.mocap_people import MocapPeople  # numba; only programs that render need it

    source = MocapPeople(split, seed, *size, fps)

    def make(index: int) -> EvalClip:
        clip = source.clip(index, gap + frames, [0, *range(gap, gap + frames)])
        name = f"{index:03d}_{clip.identity}_{clip.motion}"
        return EvalClip(name, fps, clip.frames[0], clip.frames[1:], clip.mask, clip.keypoints)

    return EvalClips(clips, make)


def from_videos(
    files: list[Path],
    frames: int | None,
    gap: int,
    size: Size | None,
    fps: float | None,
    results: Path | None = None,
) -> EvalClips:
    """Videos of one person each. Joints are detected, and the person's mask is the box around them.

    Args:
        frames: at most that many frames are made per video; None makes all.
        gap: frames between the reference, the video's first frame, and the first frame to make.
        size: frames are cropped around their center to this aspect ratio and resized. None: the video's size.
        fps: None: the video's rate.
        results: a folder of videos with the same names (any suffix), made by any model from the first frames; with as
            many frames as the true videos, the first one included.

    Raises:
        UserError: a missing result, or, while iterating, a video that is too short or shows nobody, or a result of
            another length or shape.
    """
    made = {path.stem: path for path in video_files(results)} if results else {}
    if missing := [path.stem for path in files if results and path.stem not in made]:
        raise UserError(f"{results}: no video named {missing[0]} here: results have the names of the true videos")
    wanted = None if frames is None else gap + frames

    def make(index: int) -> EvalClip:
        path = files[index]
        truth, rate = read_video(path, frames=wanted, fps=fps)
        clip = _make_clip(path.stem, str(path), fps or rate, truth, None, gap, size)
        if results is None:
            return clip
        result, _ = read_video(made[path.stem], frames=wanted, fps=fps)
        _check_result(made[path.stem], result, path, truth)
        result = center_crop_resize(resize_lanczos(result, truth.shape[1:3]), clip.reference.shape[:2])[gap:]
        return dataclasses.replace(clip, result=result)

    return EvalClips(len(files), make)


def _check_result(path: Path, result: UInt8[np.ndarray, "_ _ _ 3"], truth_path: Path, truth: Frames) -> None:
    if len(result) != len(truth):
        raise UserError(f"{path}: {len(result)} frames and {len(truth)} in {truth_path}: cut one, or give --frames")
    if abs(result.shape[2] * truth.shape[1] / (result.shape[1] * truth.shape[2]) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{path}: {result.shape[2]}x{result.shape[1]} pixels, {truth.shape[2]}x{truth.shape[1]} in {truth_path}: "
            "proportions must agree"
        )


def from_records(
    root: str, split: str, clips: int | None, frames: int | None, gap: int, size: Size | None, fps: float | None
) -> EvalClips:
    """At most `clips` clips of a recorded data set; arguments as in `from_videos`.

    Raises:
        UserError: no such data set or split, or, while iterating, a clip that is too short or shows nobody.
    """
    from animate_jax.data.records import RecordedClips, read_frames  # protobuf and array_record

    source = RecordedClips(root, split)

    def make(index: int) -> EvalClip:
        clip = source[index]
        rate = min(fps or clip.fps, clip.fps)
        numbers = [round(i * clip.fps / rate) for i in range(int(len(clip) * rate / clip.fps))]
        numbers = numbers[: None if frames is None else gap + frames]
        truth = np.stack([image for _, image in read_frames(clip, numbers)])
        return _make_clip(clip.id, f"clip {clip.id}", rate, truth, clip.keypoints[numbers], gap, size)

    return EvalClips(len(source) if clips is None else min(clips, len(source)), make)


def is_video_folder(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.iterdir())


def video_files(folder: Path, clips: int | None = None) -> list[Path]:
    """The videos of a folder in the order of their names, at most `clips`; hidden files do not count.

    Raises:
        UserError: no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give one with videos")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: no videos here: its files should end in {', '.join(VIDEO_SUFFIXES)}")
    return files[:clips]


def _make_clip(
    name: str, where: str, fps: float, video: Frames, keypoints: Keypoints | None, gap: int, size: Size | None
) -> EvalClip:
    """A clip from a video whose first frame is the reference; keypoints are detected if none are given."""
    if len(video) <= gap:
        raise UserError(f"{where}: only {len(video)} frames: needs more than {gap}")
    height, width = video.shape[1:3]
    size = size or (height, width)
    if keypoints is not None:
        left, top, crop_width, crop_height = center_crop_box(width, height, size[1], size[0])
        scale = width / crop_width, height / crop_height
        keypoints = keypoints.affine(scale, (-left / crop_width, -top / crop_height))
    video = center_crop_resize(video, size)
    keypoints = detect(video) if keypoints is None else keypoints
    if not keypoints.body_confidence.any():
        raise UserError(f"{where}: no person found: leave it out")
    keypoints = keypoints[np.r_[0, gap : len(video)]]
    file_name = re.sub(r"[^\w.-]+", "_", name)
    return EvalClip(file_name, float(fps), video[0], video[gap:], person_boxes(keypoints, size), keypoints)


def center_crop_resize(frames: Frames, size: Size) -> UInt8[np.ndarray, "frames _ _ 3"]:
    """The largest central crop with the aspect ratio of `size`, resized to it."""
    left, top, width, height = center_crop_box(frames.shape[2], frames.shape[1], size[1], size[0])
    return resize_lanczos(frames[:, top : top + height, left : left + width], size)


def person_boxes(keypoints: Keypoints, size: Size) -> UInt8[np.ndarray, "frames height width"]:
    """Masks of the boxes around the body's joints, with a margin for the body beyond them; empty without joints."""
    masks = np.zeros((len(keypoints), *size), np.uint8)
    for mask, points, seen in zip(masks, keypoints.body, keypoints.body_confidence > 0, strict=True):
        if seen.any():
            inside = points[seen] * np.array(size[::-1], np.float32)
            low, high = inside.min(0), inside.max(0)
            margin = np.array(MARGINS, np.float32) * (high - low)[1]
            x0, y0 = np.floor((low - margin).clip(0)).astype(int)
            x1, y1 = np.ceil(high + margin).astype(int)
            mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 255
    return masks
