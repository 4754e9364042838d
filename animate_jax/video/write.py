"""Writes videos (PyAV) from uint8 RGB arrays, atomically (`animate_jax.atomic`)."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import av.error
import numpy as np
import PIL.Image
from av.container import OutputContainer
from jaxtyping import UInt8

from animate_jax.atomic import PROGRAM, atomic_file, check_file
from animate_jax.errors import InputWarning, UserError
from animate_jax.video.open import Number, check_rate, open_picture, open_video

WRITABLE_SUFFIXES = (".mp4", ".webm", ".gif")
GIF_RATE = 50  # frames/s; players slow down gifs that ask for more

Frame = UInt8[np.ndarray, "height width 3"]


def write_video(path: str | os.PathLike, frames: Iterable[Frame], fps: Number, audio: bytes | None = None) -> None:
    """Writes an array [F, H, W, 3], or an iterable of images of equal size as they are produced; see `video_writer`."""
    with video_writer(path, fps, audio) as write:
        for frame in frames:
            write(frame)


@contextlib.contextmanager
def video_writer(path: str | os.PathLike, fps: Number, audio: bytes | None = None) -> Iterator[Callable[[Frame], None]]:
    """Writes an H.264 (yuv420p, BT.709) mp4 frame by frame or, depending on the suffix, a VP9 webm or a gif.

    The file appears when the block ends without an error. H.264 needs even sizes: an odd width or height is padded by a
    copy of the last column or row. A gif has a time resolution of 1/100 s and at most 50 frames/s: of faster videos,
    frames are left out, so that the speed is kept. It is held in memory until the end.

    Args:
        path: ends in .mp4, .webm or .gif; missing folders are created.
        fps: frames/s, exact for fractions with a denominator of at most 1001, such as 30000/1001.
        audio: an audio track, from `animate_jax.video.audio.extract_audio`, which is truncated to the frames' duration;
            a gif has none, and a webm only what it can hold (Opus), else there is a warning (`InputWarning`).

    Raises:
        UserError: the path cannot be written or its suffix is unknown.
        ValueError: no frame was written.
    """
    check_rate(fps, f"{path}: a rate of")
    check_output(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".webm" and audio and _audio_codec(audio) != "opus":
        warnings.warn(f"{path}: a webm cannot hold this sound: write an .mp4 to keep it", InputWarning, stacklevel=4)
        audio = None
    try:
        with (
            atomic_file(path) as partial,
            _gif(partial, fps) if suffix == ".gif" else _video(partial, fps, audio, suffix == ".webm") as write,
        ):
            yield write
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): choose another place") from error


def encode_mp4(frames: Iterable[Frame], fps: Number, keyframes: int) -> bytes:
    """An H.264 mp4 as bytes: like `write_video`'s, but identical on machines with any number of cores, and seekable.

    Args:
        frames: RGB images of equal size, at least one.
        keyframes: interval of keyframes, in frames; there are no B-frames.
    """
    file = io.BytesIO()
    options = {"g": str(keyframes), "bf": "0", "preset": "veryfast"}
    options |= {"threads": "1", "mbtree": "0"}  # more threads, or mbtree, make the bytes differ between runs
    with _video(file, fps, options=options) as write:
        for frame in frames:
            write(frame)
    return file.getvalue()


@contextlib.contextmanager
def _video(
    file: Path | io.BytesIO,
    fps: Number,
    audio: bytes | None = None,
    webm: bool = False,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Callable[[Frame], None]]:
    # FFmpeg reopens the file by its name.
    layout = {"movflags": "+faststart"} if isinstance(file, Path) and not webm else {}
    with contextlib.ExitStack() as opened:
        container = opened.enter_context(av.open(file, "w", format="webm" if webm else "mp4", options=layout))
        if isinstance(file, Path):
            container.metadata["comment"] = PROGRAM
        rate = Fraction(fps).limit_denominator(1001)
        quality = {"crf": "24", "b": "0", "row-mt": "1"} if webm else {"crf": "18"}
        stream = container.add_stream("libvpx-vp9" if webm else "libx264", rate=rate, options={**quality, **options})
        stream.pix_fmt, codec = "yuv420p", stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited
        mux_audio_until = opened.enter_context(_audio_track(audio, container)) if audio else lambda time: None
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
            mux_audio_until(count / rate)

        yield write
        if not count:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))


def _audio_codec(audio: bytes) -> str:
    with av.open(io.BytesIO(audio), mode="r") as source:
        return source.streams.audio[0].codec_context.name


@contextlib.contextmanager
def _audio_track(audio: bytes, container: OutputContainer) -> Iterator[Callable[[Fraction], None]]:
    """Adds an audio track to a container; yields a function that copies the packets that begin before a time."""
    with av.open(io.BytesIO(audio), mode="r") as source:
        track = container.add_stream_from_template(source.streams.audio[0])
        packets = (
            (packet.pts * packet.time_base, packet)
            for packet in source.demux(audio=0)
            if packet.pts is not None and packet.time_base is not None
        )
        following = next(packets, None)

        def mux_until(time: Fraction) -> None:
            nonlocal following
            while following is not None and following[0] < time:
                packet = following[1]
                packet.stream = track
                container.mux(packet)
                following = next(packets, None)

        yield mux_until


@contextlib.contextmanager
def _gif(path: Path, fps: Number) -> Iterator[Callable[[Frame], None]]:
    frames: list[Frame] = []
    yield frames.append
    if not frames:
        raise ValueError("a video needs at least one frame")
    step = math.ceil(fps / GIF_RATE)
    pictures = [PIL.Image.fromarray(frame) for frame in frames[::step]]
    times = [round(100 * step * index / fps) for index in range(len(pictures) + 1)]
    durations = [10 * (after - before) for before, after in itertools.pairwise(times)]  # milliseconds
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, comment=PROGRAM)


def check_output(path: str | os.PathLike, suffixes: tuple[str, ...] = WRITABLE_SUFFIXES) -> None:
    """Creates the folder of a future output and checks that it can be written, before any long work.

    Raises:
        UserError: the path cannot be written or its suffix is not one of `suffixes`.
    """
    if Path(path).suffix.lower() not in suffixes:
        *first, last = suffixes
        raise UserError(f"{path}: unknown kind of file: let the name end in {', '.join(first)} or {last}")
    check_file(path)


def same_file(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    """Whether two paths are the same file; False when one does not exist."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def made_here(path: str | os.PathLike) -> bool:
    """Whether a file is a .png, .mp4, .webm or .gif that this package wrote, and may overwrite without asking."""
    path = Path(path)
    with contextlib.suppress(UserError):
        if path.suffix.lower() in (".mp4", ".webm"):
            with open_video(path) as (container, _):
                return PROGRAM in (container.metadata.get("comment"), container.metadata.get("COMMENT"))
        with open_picture(path) as image:
            return PROGRAM in (image.info.get("Software"), image.info.get("comment", b"").decode(errors="replace"))
    return False
