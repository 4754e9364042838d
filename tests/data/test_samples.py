"""Samples of rendered people and of recorded clips: which frames, which crop, what belongs together."""

import dataclasses
import threading

import cv2
import numpy as np
import pytest

pytest.importorskip("numba")

from animate_jax.data.batch import Batch
from animate_jax.data.samples import (
    RecordedSamples,
    RenderedSamples,
    choose_crop,
    choose_frames,
    open_source,
    person_mask,
)
from animate_jax.images import center_crop_box
from animate_jax.pose.draw import draw
from animate_jax.pose.keypoints import BODY, Keypoints
from animate_jax.video.write import encode_mp4
from tests.conftest import training
from tests.data.conftest import CLIPS, FRAMES, STAGE_1, STAGE_2, assert_equal, clip_and_frame_numbers

pytestmark = pytest.mark.compiles


def test_the_warp_comes_with_models_that_see_it_and_changes_nothing_else(micro, micro_copying):
    samples = [
        RenderedSamples(open_source(training(FRAMES, preset)), training(FRAMES, preset))
        for preset in (micro, micro_copying)
    ]
    lost = sharp = 0
    for number in range(12):
        plain, warped = (each(number) for each in samples)
        parts = {name: warped.pop(name) for name in ("background", "warp", "warp_masks")}
        assert_equal(plain, warped)
        assert_equal(parts, {name: samples[1](number)[name] for name in parts})
        assert parts["background"].shape == (64, 48, 3) and parts["warp"].shape == (3, 64, 48, 3)
        assert parts["warp_masks"].shape == (3, 64, 48, 2) and parts["warp_masks"].dtype == np.uint8
        lost += not parts["warp_masks"].any()

        def near(picture, plain=plain):
            return np.abs(picture.astype(int) - plain["frames"]).mean()

        sharp += near(parts["warp"]) < near(plain["reference"][None])
    assert lost <= 3 and sharp >= 8


def test_pictures_poses_and_masks_belong_together(micro):
    """The sample against the clip it was made of."""
    source = open_source(training(FRAMES, micro))
    sample, clip = RenderedSamples(source, training(FRAMES, micro))(5), source.clip(5, FRAMES.clip_frames)
    poses = draw(clip.keypoints, 64, 48, "tiny")
    number = {clip.frames[i].tobytes(): i for i in range(FRAMES.clip_frames)}
    for picture, pose, mask in zip(sample["frames"], sample["poses"], sample["masks"], strict=True):
        i = number[picture.tobytes()]
        np.testing.assert_array_equal(pose, poses[i])
        np.testing.assert_array_equal(mask, clip.mask[i])
    np.testing.assert_array_equal(sample["reference_pose"], poses[number[sample["reference"].tobytes()]])


def test_the_same_number_gives_the_same_sample(micro):
    a, b = (RenderedSamples(open_source(training(FRAMES, micro)), training(FRAMES, micro)) for _ in range(2))
    assert_equal(a(3), b(3))
    assert not np.array_equal(a(3)["frames"], a(4)["frames"])
    other = dataclasses.replace(FRAMES, seed=1)
    assert not np.array_equal(
        a(3)["frames"], RenderedSamples(open_source(training(other, micro)), training(other, micro))(3)["frames"]
    )


def test_single_frames_are_drawn_anywhere_and_never_twice(micro, numbers):
    samples = [RenderedSamples(numbers, training(FRAMES, micro))(i) for i in range(40)]
    chosen = [[s["reference"][0, 0, 1], *s["frames"][:, 0, 0, 1]] for s in samples]
    assert all(len(set(frames)) == 4 for frames in chosen)
    assert set(np.ravel(chosen).tolist()) == set(range(8))


def test_clips_are_consecutive_frames_and_the_reference_is_anywhere(micro, numbers):
    samples = [RenderedSamples(numbers, training(CLIPS, micro))(i) for i in range(60)]
    firsts = [int(s["frames"][0, 0, 0, 1]) for s in samples]
    for sample, first in zip(samples, firsts, strict=True):
        assert sample["frames"][:, 0, 0, 1].tolist() == [first, first + 1, first + 2]
    assert set(firsts) == set(range(6))
    assert {int(s["reference"][0, 0, 1]) for s in samples} == set(range(8))


@pytest.mark.parametrize("margin, frames, least", [(30, 1, 20), (30, 35, 3), (30, 39, 1), (0, 1, 1)])
def test_a_short_clip_has_a_smaller_margin(clip, margin, frames, least):
    data, rng = dataclasses.replace(STAGE_1, min_reference_distance=margin, frames=frames), np.random.default_rng(0)
    for _ in range(200):
        reference, *targets = choose_frames(clip, data, 10.0, rng)
        assert len(set(targets)) == frames
        assert np.abs(np.array(targets) - reference).min() >= least


@pytest.mark.parametrize(
    "stride, frames, fps, steps",
    [(None, 5, 10.0, 3), (None, 5, None, 1), (None, 5, 60.0, 1), (4, 5, 10.0, 4), (None, 24, 10.0, 1), (9, 1, 10.0, 9)],
)
def test_recorded_clips_are_evenly_spaced(clip, stride, frames, fps, steps):
    data, rng = dataclasses.replace(STAGE_2, stride=stride, frames=frames), np.random.default_rng(0)
    chosen = np.array([choose_frames(clip, data, fps, rng) for _ in range(300)])
    assert (np.diff(chosen[:, 1:]) == steps).all()
    assert chosen.min() == 0 and chosen[:, 0].max() == chosen[:, -1].max() == 39


@pytest.mark.parametrize("target, strides", [(None, (1, 1, 2)), (24.0, (1, 1, 2)), (12.0, (2, 2, 5))])
def test_clips_of_24_30_and_60_frames_per_second_train_at_one_speed(clip, target, strides):
    data, rng = dataclasses.replace(STAGE_2, fps=target), np.random.default_rng(0)
    for fps, stride in zip((24.0, 30.0, 60.0), strides, strict=True):
        chosen = choose_frames(dataclasses.replace(clip, fps=fps), data, None, rng)
        assert (np.diff(chosen[1:]) == stride).all(), fps
    assert np.diff(choose_frames(clip, dataclasses.replace(data, fps=30.0), 10.0, rng)[1:])[0] == 1, "fps decides"


def test_the_whole_frame_is_what_benchmarks_cut(micro, clip, stage_2):
    boxes = [center_crop_box(*size, 48, 64) for size in ((640, 360), (360, 640), (41, 300), (100, 100))]
    assert boxes == [(185, 0, 270, 360), (0, 80, 360, 480), (0, 122, 41, 55), (12, 0, 75, 100)]
    whole = RecordedSamples(training(dataclasses.replace(stage_2, framing="frame", flip=0.0), micro))
    boxes = {whole(position, clip)["masks"].sum(dtype=int) for position in range(4)}
    assert len(boxes) > 1, "frames differ"
    first = [whole(position, clip)["reference"][0, 0, 2] for position in range(6)]
    assert np.ptp(np.array(first, int)) < 12, "but not their crop: the still pattern's corner is the same"


def test_the_frames_are_the_chosen_ones(micro, clip, stage_2):
    data = dataclasses.replace(stage_2, stride=2)
    sample = RecordedSamples(training(data, micro))(7, clip)
    _, numbers = clip_and_frame_numbers(Batch(**{name: array[None] for name, array in sample.items()}))
    assert (np.diff(numbers[0, 1:]) == 2).all() and len(numbers[0]) == 6


@pytest.fixture
def marked(clip):
    """A clip of a 160x120 picture with a red disc on the right wrist and a green one on the left wrist."""
    right, left = BODY.index("right_wrist"), BODY.index("left_wrist")
    body = np.full((4, 18, 2), 0.5, np.float32)
    body[:, 0], body[:, 13] = (0.5, 0.2), (0.5, 0.85)
    body[:, right] = np.float32([[0.35, 0.3], [0.36, 0.32], [0.37, 0.34], [0.38, 0.36]])
    body[:, left] = (0.6, 0.7)
    video = np.zeros((4, 160, 120, 3), np.uint8)
    for picture, points in zip(video, body, strict=True):
        for joint, color in ((right, (255, 0, 0)), (left, (0, 255, 0))):
            cv2.circle(picture, np.round(points[joint] * (120, 160) - 0.5).astype(int).tolist(), 4, color, -1)
    keypoints = dataclasses.replace(Keypoints.empty(4), body=body, body_confidence=np.ones((4, 18), np.float32))
    return dataclasses.replace(clip, video=encode_mp4(video, 30, 12), width=120, height=160, keypoints=keypoints)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_crop_and_flip_take_the_poses_with_them(micro, stage_1, marked, monkeypatch, flip):
    """A flipped picture's right wrist is where the left one was shown."""
    drawn = []

    def watched(*args):
        if threading.current_thread() is threading.main_thread():  # loaders of other tests may still be reading ahead
            drawn.append(args[0])
        return draw(*args)

    monkeypatch.setattr("animate_jax.data.samples.draw", watched)
    sizes = set()
    for position in range(8):
        sample = RecordedSamples(training(dataclasses.replace(stage_1, flip=flip), micro))(position, marked)
        pictures = np.concatenate([sample["reference"][None], sample["frames"]]).astype(float)
        poses = np.concatenate([sample["reference_pose"][None], sample["poses"]])
        np.testing.assert_array_equal(poses, draw(drawn[-1], 64, 48, "tiny"))
        for name, channel in (("right_wrist", int(flip)), ("left_wrist", 1 - int(flip))):
            points = drawn[-1].body[:, BODY.index(name)]
            for picture, point in zip(pictures, points, strict=True):
                y, x = np.nonzero(picture[..., channel] - picture[..., 1 - channel] > 100)
                np.testing.assert_allclose((point * (48, 64)), (x.mean() + 0.5, y.mean() + 0.5), atol=0.6)
        sizes.add(len(x))
    assert len(sizes) > 2  # the crop is not always the same


def test_flipped_and_not_are_mirror_images(micro, stage_1, clip):
    plain, flipped = (
        RecordedSamples(training(dataclasses.replace(stage_1, flip=flip), micro))(3, clip) for flip in (0.0, 1.0)
    )
    for name in ("reference", "frames", "masks"):
        np.testing.assert_array_equal(plain[name], np.flip(flipped[name], 1 + (name != "reference")))
    mixed = [
        RecordedSamples(training(dataclasses.replace(stage_1, flip=0.3), micro))(i, clip)["reference"]
        for i in range(60)
    ]
    plain = [
        RecordedSamples(training(dataclasses.replace(stage_1, flip=0.0), micro))(i, clip)["reference"]
        for i in range(60)
    ]
    assert 8 < sum(not np.array_equal(a, b) for a, b in zip(mixed, plain, strict=True)) < 30


@pytest.mark.parametrize("width, height", [(640, 360), (360, 640), (100, 100), (41, 300)])
@pytest.mark.parametrize(
    "person", [(0.4, 0.3, 0.5, 0.8), (0.0, 0.0, 1.0, 1.0), (-0.2, 0.5, 0.1, 1.3), (0.5, 0.5, 0.5, 0.5)]
)
def test_crops_have_the_proportions_and_hold_the_person(width, height, person):
    rng, body = np.random.default_rng(0), np.array([[person[:2], person[2:]] * 9], np.float32)
    keypoints = dataclasses.replace(Keypoints.empty(1), body=body, body_confidence=np.ones((1, 18), np.float32))
    low, high = np.clip(body[0, :2], 0, 1) * (width, height)
    for _ in range(50):
        left, top, wide, tall = choose_crop(keypoints, width, height, 0.75, rng)
        assert 0 <= left <= left + wide <= width and 0 <= top <= top + tall <= height
        assert abs(wide - 0.75 * tall) <= 1
        for start, side, near, far in ((left, wide, low[0], high[0]), (top, tall, low[1], high[1])):
            if far - near < side - 2:
                assert start - 1 <= near and far <= start + side + 1
            else:
                assert near < start + side and start < far


def test_a_person_nobody_found(clip):
    nobody = Keypoints.empty(2)
    left, top, width, height = choose_crop(nobody, 80, 96, 0.75, np.random.default_rng(0))
    assert (width, height) == (72, 96) and 0 <= left <= 8 and top == 0
    assert person_mask(nobody, 64, 48).max() == 0


def test_masks_cover_the_bones(clip):
    mask = person_mask(clip.keypoints, 192, 160)
    pose = draw(clip.keypoints, 192, 160, "tiny").max(-1) > 128
    assert (mask[pose] == 255).mean() > 0.98
