"""What driving material shows, and what the user is told of it."""

import dataclasses
import tracemalloc
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from animate_jax.errors import InputWarning
from animate_jax.pose.detect import detect
from animate_jax.pose.draw import STYLES, draw
from animate_jax.pose.inspect import KNEES, is_drawn, shows_drawn_poses, warn_of_fit, warn_of_gaps, warn_of_missing_legs
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.images import read_image
from animate_jax.video.read import iter_frames, read_video
from animate_jax.video.write import write_video
from tests.conftest import STANDING

pytestmark = pytest.mark.compiles

ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"
CASES = [("tiny", 128, 96), ("paper", 768, 512), ("moore", 784, 512), ("moore", 256, 256), ("musepose", 512, 512)]


def standing(frames=3) -> Keypoints:
    body = np.tile(STANDING, (frames, 1, 1))
    body[:, [4, 7], 1] -= 0.1 * np.arange(frames)[:, None]
    random = np.random.default_rng(0)
    hands = body[:, [7, 4], None] + random.normal(0, 0.02, (1, 2, 21, 2))
    face = body[:, [0]] + random.normal(0, 0.02, (1, 68, 2))
    arrays = {"body": body, "hands": hands, "face": face}
    values = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Keypoints(
        **{
            name: values.get(name, np.ones((frames, *getattr(Keypoints.empty(), name).shape), np.float32))
            for name in Keypoints.names()
        }
    )


def without(keypoints: Keypoints, name: str, place) -> Keypoints:
    confidence = getattr(keypoints, f"{name}_confidence").copy()
    confidence[place] = 0
    return dataclasses.replace(keypoints, **{f"{name}_confidence": confidence})


def before_black(saturation: float):
    """The astronaut cut out, before a black curtain as a camera sees it."""
    picture = read_image(ASTRONAUT)
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(float)
    hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 255)
    picture = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    height, width, _ = picture.shape
    found = detect(picture[None])
    points = found.body[0, found.body_confidence[0] > 0] * (width, height)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    y, x = np.mgrid[:height, :width]
    cut = (((x - (left + right) / 2) / (right - left)) ** 2 + ((y - (top + bottom) / 2) / (bottom - top)) ** 2) < 0.5
    wide = np.random.default_rng(0).normal(6, 3, (height * 2, width * 2, 3)).clip(0, 255).astype(np.uint8)
    wide[height // 2 : height // 2 + height, width // 2 : width // 2 + width][cut] = picture[cut]
    return np.stack([np.roll(wide, 2 * step, 1) for step in range(4)])


@pytest.mark.parametrize("style, height, width", CASES)
def test_drawn_poses_are_recognized_after_compression(style, height, width, tmp_path):
    write_video(tmp_path / "poses.mp4", draw(standing(), height, width, style), 10)
    assert shows_drawn_poses(iter_frames(tmp_path / "poses.mp4"))


@pytest.mark.parametrize("style, height, width", CASES)
def test_so_are_upper_bodies(style, height, width, tmp_path):
    poses = without(standing(), "body", np.s_[:, 8:14])
    write_video(tmp_path / "poses.mp4", draw(poses, height, width, style), 10)
    assert shows_drawn_poses(iter_frames(tmp_path / "poses.mp4"))


@pytest.mark.parametrize("saturation", [1, 2, 4])
def test_a_person_before_a_black_curtain_is_a_person(saturation, tmp_path):
    frames = before_black(saturation)
    assert (frames.max(-1) < 24).mean() > 0.75  # as dark as drawn poses
    write_video(tmp_path / "stage.mp4", frames, 10)
    assert not shows_drawn_poses(iter_frames(tmp_path / "stage.mp4"))


def test_the_detector_has_the_last_word(monkeypatch):
    """On a person as colorful as drawn poses."""
    frames = draw(standing(), 128, 96, "tiny")

    def detector(seen):
        return lambda images: without(standing(len(images)), "body", slice(None, None if not seen else 0))

    for seen in (True, False):
        monkeypatch.setattr("animate_jax.pose.inspect.detect", detector(seen))
        assert shows_drawn_poses(frames) is not seen


def test_films_are_not_drawn_poses():
    astronaut = read_image(ASTRONAUT)
    dark = (np.random.default_rng(0).random((3, 64, 48, 3)) ** 6 * 80).astype(np.uint8)
    for frames in (astronaut[None], astronaut[None] // 6, dark, np.zeros((2, 64, 48, 3), np.uint8)):
        assert not is_drawn(frames) and not shows_drawn_poses(frames)
    assert not shows_drawn_poses(iter([]))


def test_a_dark_video_is_looked_at_once_and_not_kept():
    read = []

    def dark():
        for index in range(200):
            read.append(index)
            yield np.full((270, 480, 3), 40, np.uint8)

    tracemalloc.start()
    try:
        assert not shows_drawn_poses(dark())
        assert tracemalloc.get_traced_memory()[1] < 4 * 270 * 480 * 3
    finally:
        tracemalloc.stop()
    assert read == list(range(200))


def test_no_more_is_read_than_tells():
    frames = iter(np.full((200, 60, 80, 3), 140, np.uint8))
    assert not shows_drawn_poses(frames)
    assert len(list(frames)) == 192


def test_videos_read_from_files_are_what_was_drawn(tmp_path):
    write_video(tmp_path / "poses.mp4", draw(standing(), 128, 96, "tiny"), 10)
    assert is_drawn(read_video(tmp_path / "poses.mp4")[0])


# Warnings


def told(work) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    assert all(each.category is InputWarning and "\n" not in str(each.message) for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("style", ["paper", "moore", "musepose", "tiny", "none"])
def test_nothing_is_told_of_what_is_in_order(style):
    assert told(lambda: warn_of_fit(standing(), STYLES[style].parts, standing(1)[0])) == []
    assert told(lambda: warn_of_gaps("dance.mp4", standing())) == []
    nobody = Keypoints.empty(3)
    assert told(lambda: warn_of_fit(nobody, STYLES[style].parts, standing(1)[0])) == []


@pytest.mark.parametrize("outside, share", [(0, None), (2, None), (3, "6%"), (54, "100%")])
def test_joints_outside_the_picture_are_told_from_a_share_on(outside, share):
    clip = standing()
    clip.body.reshape(-1, 2)[:outside, 0] = 1.01
    lines = told(lambda: warn_of_fit(clip, (), standing(1)[0]))
    assert [line.partition(" ")[0] for line in lines] == ([share] if share else [])
    assert all("try another --align" in line for line in lines)
    missing = without(clip, "body", np.s_[:])
    assert told(lambda: warn_of_fit(missing, (), standing(1)[0])) == []


@pytest.mark.parametrize("place", [0.5, 1.2])  # not seen, or seen below the picture
def test_legs_that_the_reference_does_not_show_may_leave(place):
    clip, reference = standing(), standing(1)[0]
    clip.body[:, [9, 10, 12, 13], 1] = 1.3
    assert len(told(lambda: warn_of_fit(clip, (), reference))) == 1
    reference.body[[9, 10, 12, 13], 1] = place
    reference.body_confidence[[9, 10, 12, 13]] = place > 1
    assert told(lambda: warn_of_fit(clip, (), reference)) == []
    clip.body[:, 4] = -0.2
    [line] = told(lambda: warn_of_fit(clip, (), reference))
    assert line.startswith("7% of the fitted joints")  # one of fourteen


def test_legs_that_only_the_result_would_show():
    clip, whole = standing(), standing(1)[0]
    half, below = without(whole, "body", KNEES), standing(1)[0]
    below.body[KNEES, 1] = 1.2  # the picture ends above them
    assert told(lambda: warn_of_missing_legs(clip, whole)) == []
    for reference in half, below:
        [line] = told(lambda reference=reference: warn_of_missing_legs(clip, reference))
        assert "does not show the person's legs" in line
    clip.body[:, KNEES, 1] = 1.2
    assert told(lambda: warn_of_missing_legs(clip, half)) == []


@pytest.mark.parametrize(
    "style, gone, line",
    [
        ("moore", ("hands", "face"), "no hands and no face in any frame"),
        ("moore", ("face",), "no face in any frame"),
        ("paper", ("hands", "face"), "no hands in any frame"),
        ("musepose", ("hands",), "no hands in any frame"),
        ("musepose", ("face",), None),
        ("tiny", ("hands", "face"), None),
    ],
)
def test_hands_and_faces_that_weights_want(style, gone, line):
    clip = standing()
    for part in gone:
        clip = without(clip, part, np.s_[1:])
    assert told(lambda: warn_of_fit(clip, STYLES[style].parts, standing(1)[0])) == []  # one frame shows them
    for part in gone:
        clip = without(clip, part, np.s_[:])
    lines = told(lambda: warn_of_fit(clip, STYLES[style].parts, standing(1)[0]))
    assert [each.startswith(line) and "--dwpose FOLDER" in each for each in lines] == [True] * bool(line)


@pytest.mark.parametrize("lost, said", [(5, False), (6, True), (10, True)])
def test_a_video_that_mostly_shows_nobody(lost, said):
    clip = without(standing(10), "body", np.s_[:lost])
    lines = told(lambda: warn_of_gaps("dance.mp4", clip))
    assert len(lines) == said
    assert all(line.startswith(f"dance.mp4: only {10 - lost} of 10 frames show a person") for line in lines)
