"""Extracts the audio track of a video (PyAV) as an mp4 without images, which `video_writer` copies into its output."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from animate_jax.errors import InputWarning
from animate_jax.video.open import Number, open_video

COPIED = ("aac", "mp3", "opus", "flac", "alac", "ac3", "eac3")  # codecs that players expect in an mp4
ENCODER, BIT_RATE = "aac", 128_000  # for all others


def extract_audio(path: str | os.PathLike, seconds: Number) -> bytes | None:
    """The first audio track of a video, from the time of its first frame on, as an mp4; None when there is none.

    Packets of codecs that are common in mp4 are copied, others are encoded as AAC. Warns (`InputWarning`) of audio that
    cannot be read.

    Args:
        seconds: packets that begin later are left out; a packet lasts about 0.02 s.

    Raises:
        UserError: not a readable video.
    """
    file, count = io.BytesIO(), 0
    with open_video(Path(path)) as (source, video):
        if not source.streams.audio:
            return None
        audio = source.streams.audio[0]
        begin = video.start_time * video.time_base if video.start_time and video.time_base else Fraction(0)
        try:
            if audio.codec_context is None:
                raise ValueError("its codec is unknown")
            with av.open(file, "w", format="mp4") as target:
                packets = _copied if audio.codec_context.name in COPIED else _encoded
                for packet in packets(source, audio, target, begin, begin + Fraction(seconds)):
                    target.mux(packet)
                    count += 1
        except (av.error.FFmpegError, ValueError, TypeError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            advice = "re-encode it, or leave it out with --audio off"
            warnings.warn(f"{path}: its sound cannot be read ({reason}): {advice}", InputWarning, stacklevel=2)
            return None
    return file.getvalue() if count else None


def _copied(
    source: InputContainer, audio: AudioStream, target: OutputContainer, begin: Fraction, end: Fraction
) -> Iterator[Packet]:
    """The packets between two times of the source, with times relative to the first of the two."""
    track, before = target.add_stream_from_template(audio), None
    for packet in source.demux(audio):
        if packet.pts is None or packet.dts is None or packet.time_base is None:
            continue
        if packet.pts * packet.time_base < begin:
            continue
        if packet.pts * packet.time_base >= end:
            break
        if before is not None and packet.dts <= before:  # not monotonic in a damaged file
            continue
        before = packet.dts
        packet.pts -= round(begin / packet.time_base)
        packet.dts -= round(begin / packet.time_base)
        packet.stream = track
        yield packet


def _encoded(
    source: InputContainer, audio: AudioStream, target: OutputContainer, begin: Fraction, end: Fraction
) -> Iterator[Packet]:
    track = target.add_stream(ENCODER, rate=audio.rate, bit_rate=BIT_RATE)
    for frame in source.decode(audio):
        if frame.pts is None or frame.time_base is None or frame.pts * frame.time_base < begin:
            continue
        if frame.pts * frame.time_base >= end:
            break
        frame.pts -= round(begin / frame.time_base)
        yield from track.encode(frame)
    yield from track.encode(None)
