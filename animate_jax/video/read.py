"""Reads videos (PyAV) as uint8 RGB arrays, frame by frame.

Everything that may be wrong with a file is a `UserError` that names it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import UInt8

from animate_jax import limits
from animate_jax.errors import UserError
from animate_jax.video.images import on_white
from animate_jax.video.open import Number, check_size, is_usual_rate, open_video

PLAUSIBLE_RATE = 120  # frames/s; containers without a known rate often state that of their clock, 1000
FALLBACK_RATE = Fraction(25)  # frames/s of a stream with a single frame or without timestamps
DURATION_FROM_ZERO = ("matroska,webm", "asf")  # containers whose duration includes the time before their first frame
COMPLETE = 0.75  # of the stated duration (which may be the audio's) that the frames of a complete file cover, at least

Frame = UInt8[np.ndarray, "height width 3"]


def read_video(
    path: str | os.PathLike, start: int = 0, frames: int | None = None, fps: Number | None = None
) -> tuple[UInt8[np.ndarray, "frames height width 3"], float]:
    """The frames of a video and their rate in frames/s; arguments and errors as in `iter_frames`."""
    return np.stack(list(iter_frames(path, start, frames, fps))), float(fps or frame_rate(path))


def frame_count(path: str | os.PathLike, fps: Number) -> int:
    """About how many frames `iter_frames` will give at `fps` frames/s, from the duration that the file states."""
    with open_video(Path(path)) as (container, stream):
        return max(round(_stated_duration(container, stream) * fps), 1)


def frame_rate(path: str | os.PathLike) -> float:
    """A video's mean frame rate in frames/s.

    Raises:
        UserError: not a readable video, or its timestamps give no rate that is supported.
    """
    with open_video(Path(path)) as (container, stream):
        rate = float(_mean_rate(container, stream))
    if not is_usual_rate(rate):
        raise UserError(f"{path}: has {rate:.3g} frames/s by its time stamps: re-encode it at a common rate")
    return rate


def iter_frames(
    path: str | os.PathLike, start: int = 0, frames: int | None = None, fps: Number | None = None
) -> Generator[Frame, None, None]:
    """Decodes a video or gif, one frame at a time, upright and at a constant rate.

    The container's rotations and reflections are applied; transparent pixels become white. Frames are the nearest in
    time, which keeps a video of constant rate unchanged and makes a variable rate constant.

    Args:
        path: in any container and codec that FFmpeg reads and `open_video` allows.
        start: number of frames of the result to skip.
        frames: maximum number of frames; None: all.
        fps: rate of the result in frames/s; None: the video's mean rate.

    Raises:
        UserError: there is no such file, it is not a video, is damaged, has a very long gap between frames, or has no
            frame at or after `start`.
    """
    path = Path(path)
    rate, count = frame_rate(path), 0
    fps = fps or rate
    with open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        pictures = _at_constant_rate(path, _decode(path, container, stream, rate), fps)
        for picture in itertools.islice(pictures, start, None if frames is None else start + frames):
            yield picture
            count += 1
    if not count:
        reason = f"from number {start} on: choose an earlier start" if start else "in it: give another video"
        raise UserError(f"{path}: no frames {reason}")


def _at_constant_rate(path: Path, timed: Iterable[tuple[float, float, Frame]], fps: Number) -> Iterator[Frame]:
    """Selects, from (time, duration, frame) triples, the frame nearest to every multiple of 1 / fps."""
    count, previous, end, most = 0, None, 0.0, limits.VIDEO_REPEATS
    for time, duration, frame in timed:
        most += 1
        if previous is not None:
            while count / fps < (previous[0] + time) / 2:
                yield previous[1]
                count += 1
                if count > most:
                    raise UserError(f"{path}: stands still for most of its time: re-encode it at a common rate")
        previous, end = (time, frame), time + duration
    while previous is not None and count / fps <= max(previous[0], end - 0.5 / fps) + 1e-6:
        yield previous[1]
        count += 1


def _decode(
    path: Path, container: InputContainer, stream: VideoStream, rate: float
) -> Iterator[tuple[float, float, Frame]]:
    """Time since the first frame and duration, in seconds, and the pixels of every frame."""
    origin, time, end = None, -1 / rate, 0.0
    size: tuple[int, int] | None = None  # width, height
    rotation, matrix = None, None
    try:
        for frame in container.decode(stream):
            before = time
            if frame.time is None:
                time += 1 / rate
            else:
                origin = frame.time if origin is None else origin
                time = max(time, frame.time - origin)
            if not size:  # of the first frame; a stream's size may change
                size = frame.width, frame.height
                check_size(str(path), *size, limits.VIDEO_PIXELS)
            else:
                _check_gap(path, before, time)
            duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / rate
            end = time + duration
            if frame.rotation != rotation:
                # PyAV's side data and its frame refer to each other: if read for every frame, hundreds of frames would
                # wait for garbage collection.
                rotation, matrix = frame.rotation, frame.side_data.get("DISPLAYMATRIX")
            yield time, duration, _upright(_rgb(frame, size), matrix)
    except UserError:
        raise
    except Exception as error:  # of FFmpeg, or of PyAV about sizes and formats
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: damaged after {max(time, 0):.2f} s ({reason}): re-encode it or copy it again"
        ) from error
    _check_gap(path, time, end)
    stated = _stated_duration(container, stream)
    if size and end < COMPLETE * stated:  # truncated mkv and webm files end without an error
        raise UserError(f"{path}: ends after {end:.2f} of {stated:.2f} s: take a whole copy")


def _check_gap(path: Path, time: float, following: float) -> None:
    if following - time > limits.VIDEO_GAP:
        raise UserError(
            f"{path}: stands still from {time:.0f} to {following:.0f} s, longer than {limits.VIDEO_GAP:.0f} s: cut it"
        )


def _stated_duration(container: InputContainer, stream: VideoStream) -> float:
    """The duration in seconds that the file states; 0 if it states none."""
    if stream.duration and stream.time_base:
        length = float(stream.duration * stream.time_base)
    else:
        length = (container.duration or 0) / 1e6
    return length - max(container.start_time or 0, 0) / 1e6 if container.format.name in DURATION_FROM_ZERO else length


def _rgb(frame: av.VideoFrame, size: tuple[int, int]) -> Frame:
    if frame.format.name in ("bgra", "rgba", "pal8", "yuva420p", "yuva444p"):
        return on_white(frame.to_ndarray(format="rgba", width=size[0], height=size[1]))
    return frame.to_ndarray(format="rgb24", width=size[0], height=size[1])


def _upright(picture: Frame, matrix: Any) -> UInt8[np.ndarray, "_ _ 3"]:
    """Applies a display matrix (3x3, fixed point): x' = a x + c y, y' = b x + d y, factors -1, 0 or 1."""
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _mean_rate(container: InputContainer, stream: VideoStream) -> Fraction:
    """The rate that the container states; counted if that is FFmpeg's estimate (of a gif) or implausible."""
    stated = stream.average_rate
    if container.format.name != "gif" and stated and stated <= PLAUSIBLE_RATE and is_usual_rate(stated):
        return Fraction(stated)  # PyAV 19 has a type of its own
    times: list[tuple[int, int]] = []  # of every packet, from when to when
    with contextlib.suppress(av.error.FFmpegError):  # decoding will report the same damage
        for packet in container.demux(stream):
            if packet.pts is not None:
                times.append((packet.pts, packet.pts + (packet.duration or 0)))
    length = max(end for _, end in times) - min(begin for begin, _ in times) if times else 0
    return len(times) / (length * stream.time_base) if length > 0 and stream.time_base else FALLBACK_RATE
