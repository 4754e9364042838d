"""What is measured on: clips with a reference picture, true frames, and where the person and the joints are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose.detect import detect
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.files import read_video

VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif")
MARGINS = (0.1, 0.12)  # around the joints, in heights of their box: beside the person, above and below
SAME_SHAPE = 0.02  # largest difference of two pictures' proportions that a resize may hide


@dataclasses.dataclass(frozen=True)
class Case:
    """One clip. The true frames do not contain the reference picture: there the trivial answer is perfect."""

    name: str
    fps: float
    reference: UInt8[np.ndarray, "height width 3"]
    frames: UInt8[np.ndarray, "frames height width 3"]
    masks: Shaped[np.ndarray, "frames+1 height width"]  # the person, non-zero; the reference's first
    keypoints: Keypoints  # of the reference and then of the true frames
    result: UInt8[np.ndarray, "frames height width 3"] | None = None  # where somebody else made it


def rendered(
    split: str, clips: int, frames: int, gap: int, size: tuple[int, int], fps: float, seed: int = 0
) -> Iterator[Case]:
    """Clips of mocap_people: exact joints and masks.

    Args:
        gap: frames between the reference and the first frame to make.
        size: height, width in pixels.

    Raises:
        UserError: no such split.
    """
    from animate_jax.data.mocap_people import MocapPeople  # numba; only programs that render need it

    source = MocapPeople(split or "test_both", seed, *size, fps)
    for index in range(clips):
        clip = source.clip(index, gap + frames, [0, *range(gap, gap + frames)])
        name = f"{index:03d}_{clip.identity}_{clip.motion}"
        yield Case(name, fps, clip.frames[0], clip.frames[1:], clip.mask, clip.keypoints)


def video_files(folder: Path, clips: int | None = None) -> list[Path]:
    """The videos of a folder in the order of their names, at most `clips`; hidden files do not count.

    Raises:
        UserError: no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give one with videos")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEOS and not p.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: no videos here: its files should end in {', '.join(VIDEOS)}")
    return files[:clips]


def filmed(
    files: list[Path],
    frames: int | None,
    gap: int,
    size: tuple[int, int] | None,
    fps: float | None,
    results: Path | None = None,
) -> Iterator[Case]:
    """Videos of one person each. Joints are detected and the person is the box around them.

    Args:
        frames: at most that many frames are made per video; None makes all.
        gap: frames between the reference, the video's first frame, and the first frame to make.
        size: height, width; frames are cut around their middle to these proportions. None keeps the video's.
        fps: None keeps the video's.
        results: a folder of videos with the same names (any ending), made by any model from the first frames; they
            have the same frames as the true videos, the first one included.

    Raises:
        UserError: a video that is too short or shows nobody, or a result that is missing or of other length or shape.
    """
    made = {path.stem: path for path in video_files(results)} if results else {}
    if missing := [path.stem for path in files if results and path.stem not in made]:
        raise UserError(f"{results}: no video named {missing[0]} here: results have the names of the true videos")
    for path in files:
        wanted = None if frames is None else gap + frames
        truth, rate = read_video(path, frames=wanted, fps=fps)
        case = _case(path.stem, str(path), fps or rate, truth, None, gap, size)
        if results:
            other = made[path.stem]
            result = read_video(other, frames=wanted, fps=fps)[0]
            if len(result) != len(truth):
                raise UserError(f"{other}: {len(result)} frames and {len(truth)} in {path}: cut one, or give --frames")
            if abs(result.shape[2] * truth.shape[1] / (result.shape[1] * truth.shape[2]) - 1) > SAME_SHAPE:
                raise UserError(f"{other}: {result.shape[2]}x{result.shape[1]} pixels, {truth.shape[2]}x"
                                f"{truth.shape[1]} in {path}: proportions must agree")  # fmt: skip
            result = fitted(resized(result, truth.shape[1:3]), case.reference.shape[:2])[gap:]
            case = dataclasses.replace(case, result=result)
        yield case


def recorded(
    root: str, split: str, clips: int | None, frames: int | None, gap: int, size: tuple[int, int], fps: float | None
) -> tuple[int, Iterator[Case]]:
    """How many clips a recorded data set has, at most `clips`, and these; arguments as in `filmed`.

    Raises:
        UserError: no such data set or split, or a clip that is too short or shows nobody.
    """
    from animate_jax.data.records import RecordedClips, pictures  # protobuf and array_record

    source = RecordedClips(root, split)
    count = len(source) if clips is None else min(clips, len(source))

    def read() -> Iterator[Case]:
        for clip in (source[index] for index in range(count)):
            rate = min(fps or clip.fps, clip.fps)
            numbers = [round(i * clip.fps / rate) for i in range(int(len(clip) * rate / clip.fps))]
            numbers = numbers[: None if frames is None else gap + frames]
            truth = np.stack([picture for _, picture in pictures(clip, numbers)])
            yield _case(clip.id, f"clip {clip.id}", rate, truth, clip.keypoints[numbers], gap, size)

    return count, read()


def _case(
    name: str,
    where: str,
    fps: float,
    video: UInt8[np.ndarray, "frames height width 3"],
    keypoints: Keypoints | None,
    gap: int,
    size: tuple[int, int] | None,
) -> Case:
    """A video, the reference first, as a case; without keypoints they are detected."""
    if len(video) <= gap:
        raise UserError(f"{where}: only {len(video)} frames: needs more than {gap}")
    height, width = video.shape[1:3]
    size = size or (height, width)
    if keypoints is not None:
        top, left, tall, wide = _middle((height, width), size)
        keypoints = keypoints.moved((width / wide, height / tall), (-left / wide, -top / tall))
    video = fitted(video, size)
    keypoints = detect(video) if keypoints is None else keypoints
    if not keypoints.body_confidence.any():
        raise UserError(f"{where}: no person found: leave it out")
    keypoints = keypoints[np.r_[0, gap : len(video)]]
    name = re.sub(r"[^\w.-]+", "_", name)  # becomes a file's
    return Case(name, float(fps), video[0], video[gap:], boxes_around(keypoints, size), keypoints)


def fitted(
    frames: UInt8[np.ndarray, "frames height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "frames _ _ 3"]:
    """The largest middle part with the proportions of `size` (height, width), resized to it."""
    top, left, height, width = _middle(frames.shape[1:3], size)
    return resized(frames[:, top : top + height, left : left + width], size)


def _middle(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height, width of the largest middle part of a picture that has the proportions of `size`."""
    height, width = (
        min(shape[0], round(shape[1] * size[0] / size[1])),
        min(shape[1], round(shape[0] * size[1] / size[0])),
    )
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def resized(
    frames: UInt8[np.ndarray, "frames height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "frames _ _ 3"]:
    """Resizes to height, width with Lanczos' filter."""
    if frames.shape[1:3] == tuple(size):
        return frames
    resize = lambda frame: Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS)  # noqa: E731
    return np.stack([np.asarray(resize(frame)) for frame in frames])


def boxes_around(keypoints: Keypoints, size: tuple[int, int]) -> UInt8[np.ndarray, "frames height width"]:
    """Masks of the boxes around the body's joints, with a margin for what lies beyond them; empty without joints."""
    masks = np.zeros((len(keypoints), *size), np.uint8)
    for mask, points, seen in zip(masks, keypoints.body, keypoints.body_confidence > 0, strict=True):
        if seen.any():
            inside = points[seen] * np.float32(size[::-1])
            low, high = inside.min(0), inside.max(0)
            margin = np.float32(MARGINS) * (high - low)[1]
            x0, y0 = np.floor((low - margin).clip(0)).astype(int)
            x1, y1 = np.ceil(high + margin).astype(int)
            mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 255
    return masks
