"""The build: what is written, what a killed build leaves behind, and what a user who errs is told."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from animate_jax.atomic import MARKER
from animate_jax.commands.data import main
from animate_jax.data.build import dataset
from animate_jax.data.build.clips import ClipOptions, load_detector
from animate_jax.data.build.dataset import BeamOptions, build_dataset, find_videos
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.images import read_image
from animate_jax.video.read import read_video
from animate_jax.video.write import write_video

pytest.importorskip("apache_beam")
tfds = pytest.importorskip("tensorflow_datasets")
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.compiles,
]  # Beam and TFDS use what their dependencies deprecate

EXAMPLE = Path(dataset.__file__).parents[2] / "assets" / "example" / "driving.mp4"
OPTIONS = ClipOptions(min_person=10, min_motion=0.02)
FRAMES = 26


def find_dots(frames) -> Keypoints:
    """A detector for videos whose frames show a white box: 18 points in it."""
    poses = []
    for picture in frames:
        rows, columns = np.nonzero(picture.min(-1) > 180)
        points = np.stack([np.linspace(columns.min(), columns.max(), 18), np.linspace(rows.min(), rows.max(), 18)], -1)
        body = (points / (picture.shape[1], picture.shape[0])).astype(np.float32)
        poses.append(dataclasses.replace(Keypoints.empty(), body=body, body_confidence=np.ones(18, np.float32)))
    return Keypoints.stack(poses)


def test_the_bundled_detector_finds_hands_and_faces_for_the_records():
    astronaut = read_image(Path(__file__).parents[2] / "data" / "astronaut.jpg")
    found = load_detector(ClipOptions())([astronaut])
    assert found.face_confidence[0].all()
    assert found.hands_confidence.shape == (1, 2, 21)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two good videos, one that stands still, two damaged ones and a note, with a made-up detector."""
    monkeypatch.setattr("animate_jax.data.build.clips.load_detector", lambda options: find_dots)
    videos = tmp_path / "videos"
    for name, step in {"a.mp4": 1, "deeper/b.mp4": 0.5, "still.mp4": 0}.items():
        frames = np.full((FRAMES, 48, 64, 3), 60, np.uint8)
        for index, frame in enumerate(frames):
            frame[10:34, 4 + int(step * index) : 16 + int(step * index)] = 255
        write_video(videos / name, frames, 25)
    (videos / "cut.mp4").write_bytes((videos / "a.mp4").read_bytes()[:1500])
    (videos / "text.mp4").write_text("not a video")
    (videos / "note.txt").write_text("not a video either")
    return videos


def shards(output):
    found = {path.name: path.read_bytes() for path in output.rglob("*.array_record-*")}
    assert found
    return found


def build_here(folder, output):
    return build_dataset("video_folder", find_videos(folder), output, OPTIONS, BeamOptions())


def test_what_is_written(folder, tmp_path):
    output = tmp_path / "data" / "mine"
    report = build_here(folder, output)
    assert report["kept"] == {"clips": 2, "seconds": 2 * FRAMES / 25}
    assert report["dropped"] == {"too little motion": {"clips": 1, "seconds": FRAMES / 25}}
    assert list(report["damaged"]) == ["cut.mp4", "text.mp4"] and "readable" in report["damaged"]["text.mp4"]
    assert json.loads((output / "build.json").read_text()) == report
    page = (output / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert all(text in page for text in ("deeper/b.mp4", "text.mp4", "too little motion"))
    assert sorted(path.name for path in output.iterdir()) == [MARKER, "build.json", "report.html", "video_folder"]
    assert [path.name for path in output.parent.iterdir()] == ["mine"]

    source = tfds.data_source("video_folder", data_dir=output, split="train")
    assert sorted(record["id"] for record in source) == [b"a.mp4:000000", b"deeper/b.mp4:000000"]
    for record in source:
        assert record["body"].shape == (FRAMES, 18, 2) and record["face_confidence"].shape == (FRAMES, 68)
        assert record["hands"].shape == (FRAMES, 2, 21, 2) and not record["hands_confidence"].any()
        assert record["frames"] == FRAMES and record["fps"] == 25 and record["start"] == 0
        assert record["source"] == record["id"].split(b":")[0]
        (tmp_path / "clip.mp4").write_bytes(record["video"])
        pictures, _ = read_video(tmp_path / "clip.mp4")
        assert pictures.shape == (FRAMES, record["height"], record["width"], 3)
        found = find_dots(pictures).body * (record["width"], record["height"])
        assert np.abs(found - record["body"]).max() < 2 and record["body"].max() > 10


def test_a_build_that_failed_goes_on_and_gives_the_same_shards(folder, tmp_path, monkeypatch):
    build_here(folder, tmp_path / "at_once")
    done, process = [], dataset._read_video

    def out_of_memory(video, options):
        if len(done) == 2:
            raise MemoryError("no more")
        done.append(video.name)
        return process(video, options)

    monkeypatch.setattr(dataset, "_read_video", out_of_memory)
    with pytest.raises(
        UserError, match=r"^[^\n]*the build failed .[^\n]*no more[^\n]*: give the same command again to go on$"
    ):
        build_here(folder, tmp_path / "mine")
    assert not (tmp_path / "mine").exists() and len(done) == 2

    later = []
    monkeypatch.setattr(
        dataset, "_read_video", lambda video, options: later.append(video.name) or process(video, options)
    )
    build_here(folder, tmp_path / "mine")
    assert sorted(done + later) == sorted(video.name for video in find_videos(folder))
    assert shards(tmp_path / "mine") == shards(tmp_path / "at_once")


def test_odd_videos_are_counted_and_the_build_goes_on(folder, tmp_path):
    good = (folder / "a.mp4").read_bytes()
    times = bytearray(good)
    place = times.find(b"stts") + 12
    times[place : place + 8] = b"\x7f\xff\xff\xff" * 2
    clock = bytearray(good)
    place = clock.find(b"mdhd") + 16
    clock[place : place + 8] = b"\0\0\0\1\x7f\xff\xff\xff"
    (folder / "times.mp4").write_bytes(times)
    (folder / "clock.mp4").write_bytes(clock)
    write_video(folder / "slow.mp4", np.full((4, 48, 64, 3), 255, np.uint8), 0.02)
    write_video(folder / "wide.mp4", np.full((4, 16, 8000, 3), 255, np.uint8), 10)
    (folder / "text.mp4").rename(folder / os.fsdecode(b"text\xe9.mp4"))
    shutil.copy(folder / "a.mp4", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4"))
    output = tmp_path / "mine"
    report = build_here(folder, output)
    assert report["kept"]["clips"] == 3
    reasons = {"wide.mp4": "8000 x 16 pixels", "slow.mp4": "0.02 frames/s", "text\\udce9.mp4": "not a readable video"}
    for name, reason in reasons.items():
        assert reason in report["damaged"][name]
    assert {"times.mp4", "clock.mp4"} < set(report["damaged"])
    assert "8000 x 16 pixels" in (output / "report.html").read_text(encoding="utf-8")
    source = tfds.data_source("video_folder", data_dir=output, split="train")
    assert b"caf\\udce9.mp4:000000" in [record["id"] for record in source]


def test_an_error_of_any_kind_is_one_video_s(folder, tmp_path, monkeypatch):
    def detector(options):
        def find(frames):
            if len(frames := list(frames)) and not frames[0][10:34, :4].any():
                raise cv2.error("a library's own\nin two lines")
            return find_dots(frames)

        return find

    write_video(folder / "black.mp4", np.zeros((4, 48, 64, 3), np.uint8), 25)
    monkeypatch.setattr("animate_jax.data.build.clips.load_detector", detector)
    report = build_here(folder, tmp_path / "mine")
    assert report["kept"]["clips"] == 2 and report["damaged"]["black.mp4"] == "error: a library's own"


@pytest.mark.parametrize("left", [b"", b"PK\3\4 half", bytes(5000), "flipped"])
def test_results_that_a_power_loss_left_damaged_are_made_anew(folder, tmp_path, monkeypatch, left):
    video = find_videos(folder)[0]
    path = dataset._result_path(tmp_path, video)
    whole = list(dataset._examples(video, tmp_path, OPTIONS))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if left == "flipped" else left)
    again = list(dataset._examples(video, tmp_path, OPTIONS))
    assert again[0][0] == whole[0][0] and again[0][1]["video"] == whole[0][1]["video"]
    monkeypatch.setattr(dataset, "_read_video", None)
    assert len(list(dataset._examples(video, tmp_path, OPTIONS))) == 1  # this time it was kept


def test_other_options_and_exchanged_videos_are_read_anew(folder, tmp_path):
    video = find_videos(folder)[0]
    path = dataset._result_path(tmp_path, video)
    assert dataset._result_path(tmp_path, video) == path
    os.utime(video.path, ns=(0, 0))
    assert dataset._result_path(tmp_path, video) != path
    assert dataset._signature(OPTIONS) != dataset._signature(ClipOptions())


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def save(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", save)
    with pytest.raises(UserError, match=r"^[^\n]*mine: cannot be written \(no space left on device\): make room$"):
        build_here(folder, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert left == [MARKER]  # of the working folder, in which the next attempt goes on


def test_nothing_worth_keeping(folder, tmp_path):
    options = dataclasses.replace(OPTIONS, min_person=100)
    with pytest.raises(UserError, match=r"nothing of a split was worth keeping: see why in .*report.html") as error:
        build_dataset("video_folder", find_videos(folder), tmp_path / "mine", options, BeamOptions())
    report = Path(str(error.value).rpartition(" in ")[2]).read_text()
    assert "too small a person" in report and "a lower --min-person keeps more" in report
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--videos", "{}/nowhere", "--output", "{}/out"], "--videos .*nowhere: no such folder"),
        (["--videos", "{}/empty", "--output", "{}/out"], "--videos .*empty: no videos in it"),
        (["--videos", "{}/videos", "--output", "{}/videos"], ".*videos: is there already: choose another name"),
        (["--videos", "{}/videos", "--output", "{}/videos/text.mp4/out"], ".*out: cannot be written"),
        (["--videos", "{}/videos", "--output", "{}/out", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--videos", "{}/videos", "--output", "{}/out", "--fps", "0"], "--fps 0.0: must be at least 1"),
        (["--videos", "{}/videos", "--output", "{}/out", "--detector", "dwpose"], "--detector dwpose: give the folder"),
    ],
)
def test_mistakes_cost_one_line(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    assert main(["build", "video_folder", *(argument.format(tmp_path) for argument in arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.match(f"animate-jax data: {message}", printed)
    assert not (tmp_path / "out").exists()


def test_unknown_data_sets(capsys):
    assert main(["build", "movies"]) == 2
    assert "video_folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_build_with_two_workers_and_the_real_detector(tmp_path):
    """Half a minute: kill -9 as soon as the first video is done, then once more in one process."""
    for name in "abcd":
        (tmp_path / "videos").mkdir(exist_ok=True)
        shutil.copy(EXAMPLE, tmp_path / "videos" / f"{name}.mp4")
    common = ["build", "video_folder", "--videos", str(tmp_path / "videos"), "--min-person", "40", "--output"]
    command = [sys.executable, "-m", "animate_jax", "data", *common, str(tmp_path / "mine"), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as running:
        while running.poll() is None and not list(tmp_path.glob(".mine.partial/*/[!.]*.npz")):
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL and not (tmp_path / "mine").exists()
    assert 1 <= len(list(tmp_path.glob(".mine.partial/*/[!.]*.npz"))) < 4
    assert main([*common, str(tmp_path / "mine")]) == 0
    assert main([*common, str(tmp_path / "at_once"), "--workers", "2"]) == 0
    assert shards(tmp_path / "mine") == shards(tmp_path / "at_once")
