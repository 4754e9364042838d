"""Opens videos and images of unknown origin; nothing else in the package does.

FFmpeg and Pillow detect a file's format from its contents, regardless of its name, and some formats refer to other
files and addresses (playlists, concatenations, session descriptions) or are programs (PostScript). Only formats that
contain their images are allowed here, and sizes are checked before memory is allocated.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.stream
import PIL
import PIL.Image
from av.container import InputContainer
from av.video.stream import VideoStream

from animate_jax import limits
from animate_jax.errors import UserError, reading

CONTAINERS = "asf,avi,flv,gif,matroska,webm,mov,mp4,mpeg,mpegts,ogg"
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
# Suffixes of videos and images; everything that lists folders uses these.
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_ADVICE, PICTURE_ADVICE = "give a whole mp4, mov, webm, mkv or gif file", "give a whole PNG, JPEG or WebP file"

Number = float | int | Fraction


@contextlib.contextmanager
def open_video(
    source: Path | bytes, name: str | None = None, advice: str = VIDEO_ADVICE
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream that is not the cover image of an audio file.

    Args:
        source: a file, or its contents.
        name: of the contents, for errors.
        advice: what the user can do about contents that are not a video.

    Raises:
        UserError: there is no such file, it is not a video, is truncated, or its frames are too large.
    """
    name = name or str(source)
    with contextlib.ExitStack() as opened:
        if isinstance(source, Path):
            check_input(source)
        with reading(name, "video", advice):
            file = io.BytesIO(source) if isinstance(source, bytes) else opened.enter_context(source.open("rb"))
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            # FFmpeg gets no name, which it might take for an address ("concat:a|b"), and must not open files itself.
            options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
            container = opened.enter_context(
                av.open(SeekableFile(file), mode="r", options=options, metadata_errors="replace")
            )
            for stream in container.streams.video:
                if not stream.disposition & av.stream.Disposition.attached_pic:
                    break
            else:
                raise UserError(f"{name}: has no video stream: give a file with moving pictures")
            codec = stream.codec_context
            if codec.width and codec.height:  # otherwise the first frame has the size
                check_size(name, codec.width, codec.height, limits.VIDEO_PIXELS)
            codec.options = {"max_pixels": str(limits.VIDEO_PIXELS)}  # for streams whose frames become larger
            last = stream.index_entries[-1] if len(stream.index_entries) else None
            if last and last.pos + last.size > size:  # FFmpeg would end early without an error
                raise UserError(f"{name}: is cut off: take a whole copy")
        yield container, stream


class SeekableFile:
    """A file that FFmpeg reads. In damaged files FFmpeg seeks to impossible positions, where Python's files raise an
    error that PyAV would print."""

    def __init__(self, file: io.BufferedIOBase):
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[PIL.Image.Image]:
    """An image whose size is known but whose pixels are not decoded yet. Errors in the block become a UserError.

    Raises:
        UserError: there is no such file, it is not an image, is damaged, or too large.
    """
    check_input(path)
    with reading(path, "picture", PICTURE_ADVICE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked below
        try:
            image = PIL.Image.open(path, formats=PICTURES)
        except PIL.Image.DecompressionBombError as error:
            raise UserError(f"{path}: {_too_large(limits.IMAGE_PIXELS)}") from error
        except PIL.UnidentifiedImageError as error:
            raise UserError(f"{path}: not a readable picture: {PICTURE_ADVICE}") from error
        with image:
            check_size(str(path), *image.size, limits.IMAGE_PIXELS)
            yield image


def check_size(name: str, width: int, height: int, pixels: int) -> None:
    """
    Raises:
        UserError: there are more pixels than that, or one side is extremely short.
    """
    if width * height > pixels:
        raise UserError(f"{name}: {width} x {height} pixels: {_too_large(pixels)}")
    if max(width, height) > limits.CANVAS_RATIO * min(width, height):
        raise UserError(f"{name}: {width} x {height} pixels: one side is over {limits.CANVAS_RATIO:g} times the other")


def check_rate(fps: Number, what: str) -> None:
    """
    Raises:
        UserError: no video can be written at that rate; `what` is its name in the message, such as "--fps".
    """
    if not is_usual_rate(fps):
        raise UserError(
            f"{what} {float(fps):g}: must be {1 / limits.VIDEO_GAP:.3f} to {limits.VIDEO_RATE:.0f} frames/s"
        )


def is_usual_rate(fps: Number) -> bool:
    """Whether videos with that rate in frames/s are read and written."""
    return 1 / limits.VIDEO_GAP <= fps <= limits.VIDEO_RATE


def _too_large(pixels: int) -> str:
    return f"more than {pixels / 1e6:.0f} million pixels: scale it down"


def check_input(path: Path) -> None:
    """
    Raises:
        UserError: it is not a file, or is empty.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder: give a file name")
        if not path.is_file():
            raise UserError(f"{path}: no such file: check the path")
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty: take a whole copy")
    except OSError as error:  # such as a name that is too long, or missing permissions
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
