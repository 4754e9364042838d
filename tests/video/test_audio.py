"""The sound of a driving video in the result: the same packets at the same time, and no longer than the pictures."""

import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from animate_jax.errors import InputWarning
from animate_jax.pose.keypoints import Keypoints
from animate_jax.sampling.inputs import DrivingMotion, read_motion
from animate_jax.sampling.results import AnimationStream
from animate_jax.video.audio import extract_audio
from animate_jax.video.read import read_video
from animate_jax.video.write import video_writer, write_video

RATE = 48000
BEEP = 1.0, 1.5  # seconds after the first picture
GRAY = np.full((32, 32, 3), 127, np.uint8)
PACKET = 0.03  # seconds that a packet may last


def film(path, seconds=3, codec="aac", late=0.0, fps=10):
    """Grey pictures, and a beep in soft noise; sound begins `late` seconds before the pictures."""
    with av.open(path, "w") as container:
        video, audio = container.add_stream("libx264", rate=fps), container.add_stream(codec, rate=RATE, layout="mono")
        video.width = video.height = 32
        times = np.arange(int(RATE * (seconds + late))) / RATE - late
        beep = np.sin(2 * np.pi * 440 * times) * ((times >= BEEP[0]) & (times < BEEP[1]))
        beep += np.random.default_rng(0).normal(0, 0.01, len(times))  # no two packets are equal
        sound = av.AudioFrame.from_ndarray(np.int16(16000 * beep)[None], format="s16", layout="mono")
        sound.sample_rate, sound.pts = RATE, 0
        container.mux([*audio.encode(sound), *audio.encode(None)])
        for index in range(seconds * fps):
            picture = av.VideoFrame.from_ndarray(GRAY, format="rgb24")
            picture.pts, picture.time_base = index + round(late * fps), Fraction(1, fps)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    return path


def packets(path):
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def heard(path):
    """Codec, when it beeps, and when the sound ends; seconds after the first picture."""
    with av.open(path) as container:
        origin = container.streams.video[0].start_time * container.streams.video[0].time_base
        loud, end = [], 0.0
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray().astype(np.float32))
            samples = samples.reshape(-1) / (32768 if samples.max() > 2 else 1)
            begin = frame.time - float(origin)
            loud += list(begin + np.flatnonzero(samples > 0.2) / RATE)
            end = begin + frame.samples / RATE
        return container.streams.audio[0].codec_context.name, min(loud), max(loud), end


@pytest.mark.parametrize(
    "name, codec, kept",
    [
        ("film.mp4", "aac", "aac"),
        ("film.mkv", "aac", "aac"),
        ("film.mkv", "flac", "flac"),
        ("film.mov", "pcm_s16le", None),
        ("film.avi", "mp2", None),
    ],
)
@pytest.mark.parametrize("late", [0.0, 0.5])
def test_the_sound_goes_with_the_pictures(tmp_path, name, codec, kept, late):
    """At 5 pictures a second instead of 10, and only 2 of the 3 seconds."""
    source = film(tmp_path / name, codec=codec, late=late)
    write_video(tmp_path / "result.mp4", [GRAY] * 10, 5, extract_audio(source, 3))
    found, *beep, last = heard(tmp_path / "result.mp4")
    assert found == (kept or "aac")
    assert beep == pytest.approx(heard(source)[1:3], abs=0.005 if kept else PACKET)  # AAC smears within a packet
    if source.suffix != ".avi":  # knows of no beginning but its own, and of no delay of an encoder
        assert beep == pytest.approx(BEEP, abs=PACKET)
    assert 2 - PACKET < last < 2 + 4 * PACKET  # FLAC's packets are longer
    frames, fps = read_video(tmp_path / "result.mp4")
    assert len(frames) == 10 and fps == 5
    if kept:  # not encoded anew
        own, given = packets(tmp_path / "result.mp4"), packets(source)
        first = given.index(own[0])
        assert given[first : first + len(own)] == own and len(own) > 15


def test_without_sound(tmp_path):
    write_video(tmp_path / "silent.mp4", [GRAY] * 3, 10)
    assert extract_audio(tmp_path / "silent.mp4", 1) is None
    write_video(tmp_path / "moving.gif", [GRAY] * 3, 10, extract_audio(film(tmp_path / "film.mp4"), 1))
    with av.open(tmp_path / "moving.gif") as container:
        assert not container.streams.audio


def test_sound_that_cannot_be_read_is_told_and_left_out(tmp_path):
    source = film(tmp_path / "film.mkv")
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_XYZ"))  # a codec that nobody knows
    with pytest.warns(InputWarning, match=r"film.mkv: its sound cannot be read .*: re-encode it, or .* --audio off"):
        assert extract_audio(source, 3) is None


def test_a_failed_video_leaves_no_file(tmp_path):
    audio = extract_audio(film(tmp_path / "film.mp4"), 3)
    with pytest.raises(RuntimeError), video_writer(tmp_path / "result.mp4", 10, audio) as write:
        write(GRAY)
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_a_motion_carries_its_sound(tmp_path, monkeypatch):
    """Into the result and what shows it beside the poses, whatever the rate; a motion that begins later has none."""
    monkeypatch.setattr("animate_jax.sampling.inputs.shows_drawn_poses", lambda frames: True)
    motion = read_motion(film(tmp_path / "film.mp4"), fps=5)
    assert len(motion) == 15 and motion.audio and motion[:12].audio and motion[3:].audio is None
    motion = motion[:12]
    stream = AnimationStream(iter([motion.images]), motion.fps, GRAY, Keypoints.empty(), motion, motion.images)
    stream.save(tmp_path / "result.mp4", tmp_path / "beside.mp4")
    stream = AnimationStream(iter([motion.images]), motion.fps, GRAY, Keypoints.empty(), motion, motion.images)
    stream.animation().save(tmp_path / "again.mp4")
    for name in ("result.mp4", "beside.mp4", "again.mp4"):
        _, begin, end, last = heard(tmp_path / name)
        assert (begin, end) == pytest.approx(BEEP, abs=0.005)
        assert abs(last - 2.4) < PACKET


def test_nothing_is_said_of_sound_that_is_in_order(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract_audio(film(tmp_path / "film.mp4"), 3)


def test_keypoints_have_no_sound():
    assert DrivingMotion(10.0, Keypoints.empty(3)).audio is None


def test_a_webm_keeps_what_it_can_hold(tmp_path):
    sounds = {codec: extract_audio(film(tmp_path / f"{codec}.mp4", codec=codec), 3.0) for codec in ("libopus", "aac")}
    write_video(tmp_path / "heard.webm", [GRAY] * 30, 10, sounds["libopus"])
    codec, first, last, _ = heard(tmp_path / "heard.webm")
    assert codec == "opus" and first == pytest.approx(BEEP[0], abs=0.05) and last == pytest.approx(BEEP[1], abs=0.05)
    with pytest.warns(InputWarning, match=r"silent\.webm: a webm cannot hold this sound: write an \.mp4"):
        write_video(tmp_path / "silent.webm", [GRAY] * 30, 10, sounds["aac"])
    with av.open(tmp_path / "silent.webm") as container:
        assert not container.streams.audio and len(container.streams.video) == 1
