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
from animate_jax.video.images import read_image
from animate_jax.video.open import IMAGE_SUFFIXES
from animate_jax.video.read import frame_rate, iter_frames
from animate_jax.video.write import encode_mp4

MIN_FRAMES = 25  # a stage 2 window and a reference
MIN_RATE = 1.0  # frames/s
MIN_POINTS = 8  # body points that must be visible, both shoulders among them
SHOULDERS = [2, 5]
MAX_JUMP = 0.5  # in heights of the person: farther from frame to frame, it is another person
PADDING = 0.15  # of the person's height around the points: hair, hands, feet
KEYFRAME_INTERVAL = 12  # frames from one that can be decoded alone to the next

# Reason to drop a piece -> what keeps more of them.
REMEDIES = {
    "too short": "a lower --min-seconds",
    "too small a person": "a lower --min-person",
    "too little motion": "a lower --min-motion",
}

THUMBNAIL_HEIGHT = 240  # pixels, height
MAX_THUMBNAIL_WIDTH = 16 * THUMBNAIL_HEIGHT  # a JPEG of four ends at 65500 pixels
THUMBNAILS_PER_CLIP = 4  # pictures of a kept clip in the report

Frame = UInt8[np.ndarray, "_ _ 3"]
Detector = Callable[[Iterable[Frame]], Keypoints]


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    detector: Literal["blazepose", "dwpose"] = "blazepose"  # both find body, hands and face
    dwpose: str | None = None  # folder of DWPose's two ONNX models, for --detector dwpose
    fps: float | None = None  # frames/s of the clips; none: the video's own
    max_side: int = 1024  # pixels; larger frames are scaled down
    min_person: int = 160  # pixels in the source; clips of a person whose visible part is less tall are dropped
    min_motion: float = 0.01  # mean spread of the joints over time in heights of the person; less is dropped
    min_seconds: float = 1.0  # shorter clips are dropped, and any of fewer than 25 frames
    max_seconds: float = 20.0  # longer ones become several
    whole: bool = False  # take every video as one clip of the whole frame: nothing is cut, cropped or weeded out

    def __post_init__(self):
        for name, minimum in {"fps": MIN_RATE, "max_side": 32, "min_seconds": 0, "max_seconds": 1}.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {minimum}")


@dataclasses.dataclass(frozen=True)
class Video:
    """A file, or a folder of numbered images, which has the frame rate `fps`."""

    name: str  # unique in the data set
    path: Path
    split: str = "train"
    fps: float | None = None

    def frames(self, fps: float | None = None) -> Iterator[Frame]:
        if not self.path.is_dir():
            return iter_frames(self.path, fps=fps)
        images, own_fps = self.images(), self.rate()
        count = len(images) if fps is None else int(len(images) * fps / own_fps)
        return (read_image(images[int(i * own_fps / (fps or own_fps))]) for i in range(count))

    def rate(self) -> float:
        return self.fps or frame_rate(self.path)

    def images(self) -> list[Path]:
        return sorted(path for path in self.path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive frames of a video, kept or dropped."""

    start: int  # frame
    frames: int
    reason: str = ""  # for dropping it
    motion: float = 0.0  # mean spread of the joints in heights of the person
    height: float = 0.0  # of the person, pixels in the source
    keypoints: Keypoints | None = None  # in units of the source frame; of kept segments


@dataclasses.dataclass(frozen=True)
class BuiltClip:
    """What a record holds; keypoints in pixels of the encoded video."""

    segment: Segment
    video: bytes
    keypoints: Keypoints
    width: int
    height: int


@functools.cache
def load_detector(options: ClipOptions) -> Detector:
    """What detects the poses; loaded once per process.

    Raises:
        UserError: DWPose's models are missing.
    """
    if options.detector == "dwpose":
        from animate_jax.pose.dwpose import DWPose

        if options.dwpose is None:
            raise UserError("--detector dwpose: give the folder of its two ONNX models with --dwpose")
        return DWPose(options.dwpose)
    from animate_jax.pose.detect import detect

    return functools.partial(detect, hands=True, face=True)


def extract_clips(
    video: Video, options: ClipOptions, detect: Detector | None = None
) -> tuple[float, list[BuiltClip | Segment], list[bytes]]:
    """Reads a video twice, frame by frame: to find the people, and to encode their clips.

    Returns:
        The frame rate in frames/s; what was kept (clips) and dropped (segments), in order; a JPEG of each.

    Raises:
        UserError: the video cannot be read, or shows hardly a frame per second.
    """
    fps = options.fps or video.rate()
    if fps < MIN_RATE:
        raise UserError(f"{video.path}: {fps:.3g} frames/s show no motion: leave it out, or give --fps")
    segments, size = _find_segments(video, fps, options, detect or load_detector(options))
    results, jpegs, position = [], [], 0
    frames = video.frames(fps)
    for segment in segments:
        next(itertools.islice(frames, segment.start - position, segment.start - position), None)
        position = segment.start + segment.frames
        taken = itertools.islice(frames, segment.frames)
        if segment.reason:
            result = segment
            thumbnails = [_thumbnail(frame) for index, frame in enumerate(taken) if index == segment.frames // 2]
        else:
            result, thumbnails = _encode_clip(segment, taken, size, fps, options)
        results.append(result)
        jpegs.append(_jpeg(np.concatenate(thumbnails, axis=1)))
    return fps, results, jpegs


def _find_segments(
    video: Video, fps: float, options: ClipOptions, detect: Detector
) -> tuple[list[Segment], Float[np.ndarray, "xy=2"]]:
    """All frames of the video, divided into segments, and the size (width, height) of its frames."""
    frames = video.frames(fps)
    first = next(frames, None)
    if first is None:
        return [], np.zeros(2, np.float32)
    size = np.array((first.shape[1], first.shape[0]), np.float32)
    frames = itertools.chain([first], frames)
    numbered = ((0, frame) for frame in frames) if options.whole else shots(frames)
    segments, start = [], 0
    for _, shot in itertools.groupby(numbered, key=lambda pair: pair[0]):
        keypoints = detect(frame for _, frame in shot)
        if options.whole:
            reason = "" if keypoints.body_confidence.any() else "no person"
            segments.append(Segment(start, len(keypoints), reason, keypoints=keypoints))
        else:
            segments += _segments_of_shot(start, keypoints, size, fps, options)
        start += len(keypoints)
    return segments, size


def _segments_of_shot(
    start: int, keypoints: Keypoints, size: Float[np.ndarray, "xy=2"], fps: float, options: ClipOptions
) -> Iterator[Segment]:
    """Tracks of one person, the long ones divided into equal lengths, and what lies between them."""
    for first, end, found in _tracks(keypoints, size):
        if not found:
            yield Segment(start + first, end - first, "no person")
            continue
        count = math.ceil((end - first) / (options.max_seconds * fps))
        for low, high in itertools.pairwise(np.linspace(first, end, count + 1).astype(int).tolist()):
            yield _filter(start + low, keypoints[low:high], size, fps, options)


def _tracks(keypoints: Keypoints, size: Float[np.ndarray, "xy=2"]) -> Iterator[tuple[int, int, bool]]:
    """Splits a shot where the person is lost, found, or suddenly elsewhere: first frame, end, is anybody there."""
    visible = keypoints.body_confidence > 0
    found = (visible.sum(-1) >= MIN_POINTS) & visible[:, SHOULDERS].all(-1)
    place = keypoints.body[:, SHOULDERS].mean(1) * size
    height = _height(keypoints[found], size) if found.any() else 0.0
    jumped = np.linalg.norm(np.diff(place, axis=0), axis=-1) > MAX_JUMP * height
    breaks = (found[1:] != found[:-1]) | (found[1:] & found[:-1] & jumped)
    ends = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(keypoints)]
    return ((first, end, bool(found[first])) for first, end in itertools.pairwise(ends))


def _filter(
    start: int, keypoints: Keypoints, size: Float[np.ndarray, "xy=2"], fps: float, options: ClipOptions
) -> Segment:
    """A segment with one person in every frame, and the reason to drop it, if there is one."""
    frames, height, motion = len(keypoints), _height(keypoints, size), _motion(keypoints, size)
    if frames < max(MIN_FRAMES, options.min_seconds * fps):
        reason = "too short"
    elif height < options.min_person:
        reason = "too small a person"
    elif motion < options.min_motion:
        reason = "too little motion"
    else:
        reason = ""
    return Segment(start, frames, reason, motion, height, keypoints)


def _boxes(keypoints: Keypoints, size: Float[np.ndarray, "xy=2"]) -> Float[np.ndarray, "frames 2 2"]:
    """The least and the greatest x, y of the visible points in each frame, pixels; nan where none is."""
    points = np.concatenate([keypoints.body, keypoints.hands.reshape(len(keypoints), -1, 2), keypoints.face], 1)
    confidence = [keypoints.body_confidence, keypoints.hands_confidence, keypoints.face_confidence]
    visible = np.concatenate([c.reshape(len(keypoints), -1) for c in confidence], 1) > 0
    low = np.where(visible[..., None], points, np.inf).min(1)
    high = np.where(visible[..., None], points, -np.inf).max(1)
    boxes = np.stack([low, high], 1) * size
    boxes[~visible.any(1)] = np.nan
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


def _crop_box(segment: Segment, size: Float[np.ndarray, "xy=2"], whole: bool) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the person in all frames, with even sides."""
    low, high = np.zeros(2), size
    if not whole and segment.keypoints is not None:
        boxes = _boxes(segment.keypoints, size)
        margin = PADDING * segment.height
        low = np.floor(boxes[:, 0].min(0) - margin).clip(0, size - 2)
        high = np.ceil(boxes[:, 1].max(0) + margin).clip(low + 2, size)
    sides = (high - low).astype(int) // 2 * 2
    left, top = low.astype(int).tolist()
    return left, top, left + int(sides[0]), top + int(sides[1])


def _encode_clip(
    segment: Segment, frames: Iterator[Frame], size: Float[np.ndarray, "xy=2"], fps: float, options: ClipOptions
) -> tuple[BuiltClip, list[Frame]]:
    """The clip of a kept segment, and some thumbnails of it."""
    if segment.keypoints is None:
        raise ValueError("a segment without keypoints is no clip")
    left, top, right, bottom = _crop_box(segment, size, options.whole)
    sides = np.array([right - left, bottom - top])
    shrink = min(1.0, options.max_side / sides.max())
    width, height = (np.round(sides * shrink / 2) * 2).clip(2).astype(int).tolist()
    scale = np.array((width, height)) / sides
    offset = -np.array((left, top)) * scale
    keypoints = segment.keypoints.affine(tuple((size * scale).tolist()), tuple(offset.tolist()))
    shown = {round((i + 0.5) * segment.frames / THUMBNAILS_PER_CLIP) for i in range(THUMBNAILS_PER_CLIP)}
    thumbnails = []

    def crops() -> Iterator[Frame]:
        for index, frame in enumerate(frames):
            crop = frame[top:bottom, left:right]
            if shrink < 1:
                crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
            if index in shown:
                thumbnails.append(_thumbnail(crop, keypoints[index].affine((1 / width, 1 / height), (0, 0))))
            yield crop

    return BuiltClip(segment, encode_mp4(crops(), fps, KEYFRAME_INTERVAL), keypoints, width, height), thumbnails


def _thumbnail(frame: Frame, pose: Keypoints | None = None) -> Frame:
    """A small copy, with the pose drawn over it."""
    height, width = frame.shape[:2]
    size = min(max(1, round(width * THUMBNAIL_HEIGHT / height)), MAX_THUMBNAIL_WIDTH), THUMBNAIL_HEIGHT
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if pose is None:
        return small
    drawn = draw(pose, small.shape[0], small.shape[1], "tiny")
    return np.where(drawn.any(-1, keepdims=True), drawn, small)


def _jpeg(image: Frame) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
