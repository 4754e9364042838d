"""From one video to the clips worth learning from: one person each, followed without a break, with poses."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from animate_jax.data.build.shots import shots
from animate_jax.errors import UserError
from animate_jax.pose.draw import draw
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.files import IMAGE_SUFFIXES, encode_mp4, frame_rate, iter_frames, read_image

LEAST_FRAMES = 25  # a stage 2 window and a reference
LEAST_RATE = 1.0  # frames/s
LEAST_POINTS = 8  # body points that must be seen, both shoulders among them
SHOULDERS = [2, 5]
JUMP = 0.5  # in heights of the person: farther from frame to frame, it is another person
PADDING = 0.15  # of the person's height around the points: hair, hands, feet
KEYFRAMES = 12  # frames from one that can be decoded alone to the next

THUMBNAIL = 240  # pixels, height
WIDEST = 16 * THUMBNAIL  # a JPEG of four ends at 65500 pixels
SAMPLES = 4  # pictures of a kept clip in the report

Frame = UInt8[np.ndarray, "_ _ 3"]
Detector = Callable[[Iterable[Frame]], Keypoints]


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    detector: Literal["blazepose", "dwpose"] = "blazepose"  # dwpose finds hands and faces as well
    dwpose: str | None = None  # folder of DWPose's two ONNX models, for --detector dwpose
    fps: float | None = None  # frames/s of the clips; default: the video's own
    max_side: int = 1024  # pixels; larger pictures are scaled down
    min_person: int = 160  # pixels in the source; a less tall person (of what is seen of it) is dropped
    min_motion: float = 0.01  # mean spread of the joints over time in heights of the person; less is dropped
    min_seconds: float = 1.0  # shorter clips are dropped, and any of fewer than 25 frames
    max_seconds: float = 20.0  # longer ones become several
    whole: bool = False  # take every video as one clip of its whole picture: nothing is cut, cropped or weeded out

    def __post_init__(self):
        for name, least in {"fps": LEAST_RATE, "max_side": 32, "min_seconds": 0, "max_seconds": 1}.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Video:
    """A file, or a folder of numbered pictures, which has the frame rate `fps`."""

    name: str  # unique in the data set
    path: Path
    split: str = "train"
    fps: float | None = None

    def frames(self, fps: float | None = None) -> Iterator[Frame]:
        if not self.path.is_dir():
            return iter_frames(self.path, fps=fps)
        pictures = self.pictures()
        count = len(pictures) if fps is None else int(len(pictures) * fps / self.fps)
        return (read_image(pictures[int(i * self.fps / (fps or self.fps))]) for i in range(count))

    def rate(self) -> float:
        return self.fps or frame_rate(self.path)

    def pictures(self) -> list[Path]:
        return sorted(path for path in self.path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some consecutive frames of a video, kept or dropped."""

    start: int  # frame
    frames: int
    reason: str = ""  # for dropping it
    motion: float = 0.0  # mean spread of the joints in heights of the person
    height: float = 0.0  # of the person, pixels in the source
    keypoints: Keypoints | None = None  # in units of the source picture; of kept pieces


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a record holds; keypoints in pixels of the encoded video."""

    piece: Piece
    video: bytes
    keypoints: Keypoints
    width: int
    height: int


@functools.cache
def detector(options: ClipOptions) -> Detector:
    """What finds the poses; loaded once per process.

    Raises:
        UserError: DWPose's models are missing.
    """
    if options.detector == "dwpose":
        from animate_jax.pose.dwpose import DWPose

        if options.dwpose is None:
            raise UserError("--detector dwpose: give the folder of its two ONNX models with --dwpose")
        return DWPose(options.dwpose)
    from animate_jax.pose.detect import detect

    return detect


def extract(
    video: Video, options: ClipOptions, detect: Detector | None = None
) -> tuple[float, list[Clip | Piece], list[bytes]]:
    """Reads a video twice, frame by frame: to find the people, and to cut their clips out.

    Returns:
        The frame rate in frames/s; what was kept (clips) and dropped (pieces), in order; a JPEG of each.

    Raises:
        UserError: the video cannot be read, or shows hardly a frame per second.
    """
    fps = options.fps or video.rate()
    if fps < LEAST_RATE:
        raise UserError(f"{video.path}: {fps:.3g} frames/s show no motion: leave it out, or give --fps")
    detect = detect or detector(options)
    parts, size = _pieces(video, fps, options, detect)
    results, pictures, position = [], [], 0
    frames = video.frames(fps)
    for part in parts:
        next(itertools.islice(frames, part.start - position, part.start - position), None)
        position = part.start + part.frames
        taken, samples = itertools.islice(frames, part.frames), []
        if part.reason:
            for index, frame in enumerate(taken):
                if index == part.frames // 2:
                    samples.append(_thumbnail(frame))
            results.append(part)
        else:
            results.append(_cut_out(part, taken, size, fps, options, samples))
        pictures.append(_jpeg(np.concatenate(samples, axis=1)))
    return fps, results, pictures


def _pieces(video: Video, fps: float, options: ClipOptions, detect: Detector) -> tuple[list[Piece], np.ndarray]:
    """All frames of the video, dealt out to pieces, and the size (width, height) of its pictures."""
    size = None

    def measured():
        nonlocal size
        for frame in video.frames(fps):
            size = np.float32((frame.shape[1], frame.shape[0]))
            yield frame

    numbered = ((0, frame) for frame in measured()) if options.whole else shots(measured())
    pieces, start = [], 0
    for _, group in itertools.groupby(numbered, key=lambda pair: pair[0]):
        keypoints = detect(frame for _, frame in group)
        if options.whole:
            reason = "" if keypoints.body_confidence.any() else "no person"
            pieces.append(Piece(start, len(keypoints), reason, keypoints=keypoints))
        else:
            for first, end, found in _tracks(keypoints, size):
                if not found:
                    pieces.append(Piece(start + first, end - first, "no person"))
                    continue
                count = math.ceil((end - first) / (options.max_seconds * fps))
                for low, high in itertools.pairwise(np.linspace(first, end, count + 1).astype(int).tolist()):
                    pieces.append(_judged(start + low, keypoints[low:high], size, fps, options))
        start += len(keypoints)
    return pieces, size


def _tracks(keypoints: Keypoints, size: Float[np.ndarray, "xy=2"]) -> Iterator[tuple[int, int, bool]]:
    """Splits a shot where the person is lost, found, or suddenly elsewhere: first frame, end, is anybody there."""
    seen = keypoints.body_confidence > 0
    found = (seen.sum(-1) >= LEAST_POINTS) & seen[:, SHOULDERS].all(-1)
    place = keypoints.body[:, SHOULDERS].mean(1) * size
    height = _height(keypoints[found], size) if found.any() else 0.0
    moved = np.linalg.norm(np.diff(place, axis=0), axis=-1) > JUMP * height
    breaks = (found[1:] != found[:-1]) | (found[1:] & found[:-1] & moved)
    ends = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(keypoints)]
    return ((first, end, bool(found[first])) for first, end in itertools.pairwise(ends))


def _judged(start: int, keypoints: Keypoints, size, fps: float, options: ClipOptions) -> Piece:
    """A piece with one person in every frame, and the reason to drop it, if there is one."""
    frames, height, motion = len(keypoints), _height(keypoints, size), _motion(keypoints, size)
    if frames < max(LEAST_FRAMES, options.min_seconds * fps):
        reason = "too short"
    elif height < options.min_person:
        reason = "too small a person"
    elif motion < options.min_motion:
        reason = "too little motion"
    else:
        reason = ""
    return Piece(start, frames, reason, motion, height, keypoints)


def _boxes(keypoints: Keypoints, size: Float[np.ndarray, "xy=2"]) -> Float[np.ndarray, "frames 2 2"]:
    """The least and the greatest x, y of the points seen in each frame, pixels; nan where none is."""
    points = np.concatenate([keypoints.body, keypoints.hands.reshape(len(keypoints), -1, 2), keypoints.face], 1)
    confidence = [keypoints.body_confidence, keypoints.hands_confidence, keypoints.face_confidence]
    seen = np.concatenate([c.reshape(len(keypoints), -1) for c in confidence], 1) > 0
    low = np.where(seen[..., None], points, np.inf).min(1)
    high = np.where(seen[..., None], points, -np.inf).max(1)
    boxes = np.stack([low, high], 1) * size
    boxes[~seen.any(1)] = np.nan
    return boxes


def _height(keypoints: Keypoints, size: Float[np.ndarray, "xy=2"]) -> float:
    boxes = _boxes(keypoints, size)
    return float(np.nanmedian(boxes[:, 1, 1] - boxes[:, 0, 1]))


def _motion(keypoints: Keypoints, size: Float[np.ndarray, "xy=2"]) -> float:
    """Root mean square distance of a body point from its mean place, mean over points, in heights."""
    weights = (keypoints.body_confidence > 0).astype(np.float64)[..., None]
    often = weights.mean(0)[:, 0] > 0.5
    points, weights = (keypoints.body * size)[:, often], weights[:, often]
    mean = (points * weights).sum(0) / weights.sum(0)
    spread = np.sqrt((((points - mean) ** 2) * weights).sum((0, 2)) / weights.sum((0, 2)))
    return float(spread.mean() / _height(keypoints, size)) if often.any() else 0.0


def _region(piece: Piece, size: Float[np.ndarray, "xy=2"], whole: bool) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what to cut out of the picture: even sides."""
    low, high = np.zeros(2), size
    if not whole:
        boxes = _boxes(piece.keypoints, size)
        margin = PADDING * piece.height
        low = np.floor(boxes[:, 0].min(0) - margin).clip(0, size - 2)
        high = np.ceil(boxes[:, 1].max(0) + margin).clip(low + 2, size)
    sides = (high - low).astype(int) // 2 * 2
    left, top = low.astype(int).tolist()
    return left, top, left + int(sides[0]), top + int(sides[1])


def _cut_out(part: Piece, frames: Iterator[Frame], size, fps: float, options: ClipOptions, samples: list) -> Clip:
    left, top, right, bottom = _region(part, size, options.whole)
    sides = np.array([right - left, bottom - top])
    shrink = min(1.0, options.max_side / sides.max())
    width, height = (np.round(sides * shrink / 2) * 2).clip(2).astype(int).tolist()
    scale = np.array((width, height)) / sides
    offset = -np.array((left, top)) * scale
    keypoints = part.keypoints.moved(tuple((size * scale).tolist()), tuple(offset.tolist()))
    pick = {round((i + 0.5) * part.frames / SAMPLES) for i in range(SAMPLES)}

    def cut():
        for index, frame in enumerate(frames):
            picture = frame[top:bottom, left:right]
            if shrink < 1:
                picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            if index in pick:
                units = keypoints[index].moved((1 / width, 1 / height), (0, 0))
                samples.append(_thumbnail(picture, units))
            yield picture

    return Clip(part, encode_mp4(cut(), fps, KEYFRAMES), keypoints, width, height)


def _thumbnail(picture: Frame, pose: Keypoints | None = None) -> Frame:
    """A small copy, with the pose drawn over it."""
    height, width, _ = picture.shape
    size = min(max(1, round(width * THUMBNAIL / height)), WIDEST), THUMBNAIL
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if pose is None:
        return small
    drawn = draw(pose, *small.shape[:2], "tiny")
    return np.where(drawn.any(-1, keepdims=True), drawn, small)


def _jpeg(picture: Frame) -> bytes:
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
