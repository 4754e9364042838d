"""Reads and writes videos (PyAV) and pictures (Pillow) as uint8 RGB arrays.

Every failure that a user can cause is a `UserError` that names the file. Outputs are written under a
temporary name in the same folder and renamed when they are complete, so a file that exists is a whole file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from numbers import Real
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from jaxtyping import UInt8

from animate_jax import limits
from animate_jax.atomic import atomic_file, check_file
from animate_jax.errors import UserError
from animate_jax.video.open import check_size, open_picture, open_video

VIDEO_SUFFIXES = (".mp4", ".gif")
PROGRAM = "animate_jax"  # a line of text in the .png, .mp4 and .gif files written here
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PLAUSIBLE_RATE = 120  # frames/s; containers that do not know their rate often state their clock's, 1000
FALLBACK_RATE = Fraction(25)  # frames/s of a stream with a single frame or without timestamps
FROM_ZERO = ("matroska,webm", "asf")  # containers whose length includes the time before their first frame
COMPLETE = 0.75  # part of the promised length (which may be the sound's) that pictures must fill
GIF_RATE = 50  # frames/s; players slow down gifs that ask for more

Frame = UInt8[np.ndarray, "height width 3"]


def read_video(
    path: str | os.PathLike, start: int = 0, frames: int | None = None, fps: Real | None = None
) -> tuple[UInt8[np.ndarray, "frames height width 3"], float]:
    """The frames of a video and their rate in frames/s; arguments and errors as in `iter_frames`."""
    return np.stack(list(iter_frames(path, start, frames, fps))), float(fps or frame_rate(path))


def frame_count(path: str | os.PathLike, fps: Real) -> int:
    """About how many frames `iter_frames` will give at `fps` frames/s, from what the file promises."""
    with open_video(Path(path)) as (container, stream):
        return max(round(_promised(container, stream) * fps), 1)


def frame_rate(path: str | os.PathLike) -> float:
    """A video's mean frame rate in frames/s.

    Raises:
        UserError: not a readable video, or its time stamps give no usual rate.
    """
    with open_video(Path(path)) as (container, stream):
        rate = float(_mean_rate(container, stream))
    if not usual_rate(rate):
        raise UserError(f"{path}: has {rate:.3g} frames/s by its time stamps: re-encode it at a common rate")
    return rate


def check_rate(fps: Real, what: str) -> None:
    """
    Raises:
        UserError: no rate that a video can be written at; `what` asks for it, as in "--fps".
    """
    if not usual_rate(fps):
        raise UserError(
            f"{what} {float(fps):g}: must be {1 / limits.VIDEO_GAP:.3f} to {limits.VIDEO_RATE:.0f} frames/s"
        )


def usual_rate(fps: Real) -> bool:
    """Whether videos of so many frames/s are read and written."""
    return 1 / limits.VIDEO_GAP <= fps <= limits.VIDEO_RATE


def iter_frames(
    path: str | os.PathLike, start: int = 0, frames: int | None = None, fps: Real | None = None
) -> Iterator[Frame]:
    """Decodes a video, gif included, one frame at a time, upright and at a constant rate.

    Rotations and mirrorings that the container asks for are applied; transparency lies on white. Frames are
    picked by time (the nearest one), which leaves a video of constant rate as it is and makes a variable rate
    constant.

    Args:
        path: any container and codec that FFmpeg reads.
        start: number of result frames to leave out at the beginning.
        frames: largest number of frames to return; None returns all.
        fps: frame rate of the result in frames/s; None keeps the video's mean rate.

    Raises:
        UserError: there is no such file, it is not a video, is damaged, stands still for very long, or has no frame at
            or after `start`.
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


def _at_constant_rate(path: Path, timed: Iterable[tuple[float, float, Frame]], fps: Real) -> Iterator[Frame]:
    """From (time, duration, frame) triples, picks the frame nearest to every multiple of 1 / fps."""
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


def _decode(path: Path, container, stream, rate: float) -> Iterator[tuple[float, float, Frame]]:
    """Time since the first frame and duration, in seconds, and picture of every frame."""
    size, origin, time, end = {}, None, -1 / rate, 0.0
    rotation, matrix = None, None
    try:
        for frame in container.decode(stream):
            before = time
            if frame.time is None:
                time += 1 / rate
            else:
                origin = frame.time if origin is None else origin
                time = max(time, frame.time - origin)
            if not size:  # a stream may change its size on the way
                size = {"width": frame.width, "height": frame.height}
                check_size(str(path), frame.width, frame.height, limits.VIDEO_PIXELS)
            else:
                _check_gap(path, before, time)
            duration = float(frame.duration * frame.time_base) if frame.duration else 1 / rate
            end = time + duration
            if frame.rotation != rotation:
                # PyAV's side data and its frame hold each other: looked at for each, hundreds of frames would wait for
                # Python's collector of garbage.
                rotation, matrix = frame.rotation, frame.side_data.get("DISPLAYMATRIX")
            yield time, duration, _upright(_rgb(frame, size), matrix)
    except UserError:
        raise
    except Exception as error:  # FFmpeg's, or PyAV's about odd sizes and formats
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: damaged after {max(time, 0):.2f} s ({reason}): re-encode it or copy it again"
        ) from error
    _check_gap(path, time, end)
    promised = _promised(container, stream)
    if size and end < COMPLETE * promised:  # mkv and webm just end where they were cut off
        raise UserError(f"{path}: ends after {end:.2f} of {promised:.2f} s: take a whole copy")


def _check_gap(path: Path, time: float, following: float) -> None:
    if following - time > limits.VIDEO_GAP:
        raise UserError(
            f"{path}: stands still from {time:.0f} to {following:.0f} s, longer than {limits.VIDEO_GAP:.0f} s: cut it"
        )


def _promised(container, stream) -> float:
    """The video's length in seconds by what the file says; 0 when it does not."""
    length = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    return length - max(container.start_time or 0, 0) / 1e6 if container.format.name in FROM_ZERO else length


def _rgb(frame: av.VideoFrame, size: dict[str, int]) -> Frame:
    if frame.format.name in ("bgra", "rgba", "pal8", "yuva420p", "yuva444p"):
        return _on_white(frame.to_ndarray(format="rgba", **size))
    return frame.to_ndarray(format="rgb24", **size)


def _on_white(rgba: UInt8[np.ndarray, "height width 4"]) -> Frame:
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), 256):  # large pictures in little memory
        rows = rgba[top : top + 256]
        alpha = rows[..., 3:].astype(np.uint16)
        rgb[top : top + 256] = (rows[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return rgb


def _upright(picture: Frame, matrix) -> UInt8[np.ndarray, "_ _ 3"]:
    """Applies a display matrix (3x3, fixed point): x' = a x + c y, y' = b x + d y, factors -1, 0 or 1."""
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _mean_rate(container, stream) -> Fraction:
    """What the container says, counted where that is a guess (FFmpeg's for a gif, from a few frames) or cannot be."""
    told = stream.average_rate
    if container.format.name != "gif" and told and told <= PLAUSIBLE_RATE and usual_rate(told):
        return Fraction(told)  # since PyAV 19 a type of its own
    count, begin, end = 0, math.inf, -math.inf
    with contextlib.suppress(av.FFmpegError):  # decoding meets the same damage and reports it
        for packet in container.demux(stream):
            if packet.pts is not None:
                count, begin = count + 1, min(begin, packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
    return count / ((end - begin) * stream.time_base) if end > begin else FALLBACK_RATE


def write_video(path: str | os.PathLike, frames: Iterable[Frame], fps: Real) -> None:
    """Writes an array [F, H, W, 3], or any iterable of equally large pictures as they come; see `video_writer`."""
    with video_writer(path, fps) as write:
        for frame in frames:
            write(frame)


@contextlib.contextmanager
def video_writer(path: str | os.PathLike, fps: Real) -> Iterator[Callable[[Frame], None]]:
    """Writes frame by frame an H.264 (yuv420p, BT.709) mp4 or, by the name's ending, a gif.

    The file appears when the block ends: not at all when it fails, is interrupted or killed. H.264 needs even sizes:
    an odd width or height gains one pixel, a copy of the last column or row. A gif counts time in 1/100 s and at most
    50 frames/s: of faster videos it leaves out frames, so that the speed is kept; it is held in memory.

    Args:
        path: ends in .mp4 or .gif; missing folders are made.
        fps: frames/s, kept exactly if it is a fraction whose denominator is at most 1001, such as 30000/1001.

    Raises:
        UserError: the place cannot be written or the name's ending is unknown.
        ValueError: no frame was written.
    """
    check_rate(fps, f"{path}: a rate of")
    with _replacing(path, VIDEO_SUFFIXES) as partial:
        with (_gif if partial.suffix.lower() == ".gif" else _mp4)(partial, fps) as write:
            yield write


def encode_mp4(frames: Iterable[Frame], fps: Real, keyframes: int) -> bytes:
    """An H.264 mp4 as bytes: like `write_video`'s, but the same on machines of any size, and made for seeking.

    Args:
        frames: RGB pictures of equal size, at least one.
        keyframes: every so many frames a picture stands alone; pictures are stored in the order of showing.
    """
    file = io.BytesIO()
    options = {"g": str(keyframes), "bf": "0", "preset": "veryfast"}
    options |= {"threads": "1", "mbtree": "0"}  # with more, or with mbtree, equal frames need not give equal bytes
    with _mp4(file, fps, **options) as write:
        for frame in frames:
            write(frame)
    return file.getvalue()


@contextlib.contextmanager
def _mp4(file: Path | io.BytesIO, fps: Real, **options: str) -> Iterator[Callable[[Frame], None]]:
    layout = {"movflags": "+faststart"} if isinstance(file, Path) else {}  # FFmpeg reopens the file by its name
    with av.open(file, "w", format="mp4", options=layout) as container:
        if isinstance(file, Path):
            container.metadata["comment"] = PROGRAM
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", **options})
        stream.pix_fmt, codec = "yuv420p", stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited
        count = 0

        def write(picture: Frame) -> None:
            nonlocal count
            height, width, _ = picture.shape
            if not count:
                stream.width, stream.height = width + width % 2, height + height % 2
            frame = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            container.mux(stream.encode(frame))
            count += 1

        yield write
        if not count:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))


@contextlib.contextmanager
def _gif(path: Path, fps: Real) -> Iterator[Callable[[Frame], None]]:
    frames: list[Frame] = []
    yield frames.append
    if not frames:
        raise ValueError("a video needs at least one frame")
    step = math.ceil(fps / GIF_RATE)
    pictures = [PIL.Image.fromarray(frame) for frame in frames[::step]]
    times = [round(100 * step * index / fps) for index in range(len(pictures) + 1)]
    durations = [10 * (after - before) for before, after in itertools.pairwise(times)]  # milliseconds
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, comment=PROGRAM)


def read_image(path: str | os.PathLike) -> Frame:
    """A PNG, JPEG, WebP, AVIF, GIF (its first frame) or BMP, turned as its EXIF data say, transparency on white.

    Raises:
        UserError: there is no such file, it is not such a picture, is damaged, or too large.
    """
    with open_picture(Path(path)) as image:
        PIL.ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits
            gray = (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=-1)
        if image.has_transparency_data:
            return _on_white(np.asarray(image.convert("RGBA")))
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def write_image(path: str | os.PathLike, image: Frame) -> None:
    """Writes a picture; the format follows the name's ending (.png, .jpg, .webp), missing folders are made.

    Raises:
        UserError: the place cannot be written or the name's ending is unknown.
    """
    mark = PIL.PngImagePlugin.PngInfo()  # other formats ignore it
    mark.add_text("Software", PROGRAM)
    with _replacing(path, IMAGE_SUFFIXES) as partial:
        PIL.Image.fromarray(image).save(partial, quality=95, pnginfo=mark)


def made_here(path: str | os.PathLike) -> bool:
    """Whether a file is a .png, .mp4 or .gif written here: what nobody else made may be replaced unasked."""
    path = Path(path)
    with contextlib.suppress(UserError):
        if path.suffix.lower() == ".mp4":
            with open_video(path) as (container, _):
                return container.metadata.get("comment") == PROGRAM
        with open_picture(path) as image:
            return PROGRAM in (image.info.get("Software"), image.info.get("comment", b"").decode(errors="replace"))
    return False


def same_file(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    """Are they one file, by whatever names? Not when one of them is not there."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def check_output(path: str | os.PathLike, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> None:
    """Makes the folder of a future output and makes sure it can be written, before much work depends on it.

    Raises:
        UserError: the place cannot be written or the name's ending is not one of `suffixes`.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise UserError(f"{path}: unknown kind of file: let the name end in {' or '.join(suffixes)}")
    check_file(path)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """`atomic_file` for names with one of the endings."""
    check_output(path, suffixes)
    try:
        with atomic_file(path) as partial:
            yield partial
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): choose another place") from error
