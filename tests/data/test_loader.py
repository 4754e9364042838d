"""The loader: batches of the right form, the same for the same number, dealt out to processes, resumable.

First rendered people, then recorded clips (see conftest.py for what these show).
"""

import asyncio
import dataclasses
import json
import multiprocessing
import os
import threading

import cv2
import numpy as np
import pytest
from etils import epath

pytest.importorskip("numba")

from animate_jax.config import DataConfig
from animate_jax.data.loader import RecordedSamples, Samples, batches, choose_crop, choose_frames, cover, open_source
from animate_jax.data.records import RecordedClips
from animate_jax.errors import UserError
from animate_jax.pose.draw import draw
from animate_jax.pose.keypoints import BODY, Keypoints
from animate_jax.video.write import encode_mp4
from tests.conftest import training

pytestmark = pytest.mark.compiles

FRAMES = DataConfig(batch=2, frames=3, span=8, workers=0)
CLIPS = dataclasses.replace(FRAMES, consecutive=True)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class Numbers:
    """A data set whose pictures say which clip and frame they are."""

    def __init__(self, source):
        self._clip = source.clip(0, 2)

    def clip(self, index, frames, pick=None):
        chosen = np.array(range(frames) if pick is None else pick)
        pictures = np.zeros((len(chosen), 64, 48, 3), np.uint8)
        pictures[..., 0], pictures[..., 1] = index, chosen[:, None, None]
        return dataclasses.replace(
            self._clip,
            frames=pictures,
            keypoints=self._clip.keypoints[chosen % 2],
            mask=pictures[..., 1],
            depth=self._clip.depth[chosen % 2],
        )


@pytest.fixture
def numbers(micro, monkeypatch):
    """Lets the loader read `Numbers`."""
    source = Numbers(open_source(training(FRAMES, micro)))
    monkeypatch.setattr("animate_jax.data.loader.open_source", lambda config: source)
    return source


@pytest.mark.parametrize("data", [FRAMES, CLIPS], ids=["frames", "clips"])
def test_a_batch_has_the_promised_form(micro, data):
    batch = next(batches(training(data, micro)))
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert shapes == {
        "reference": ((2, 64, 48, 3), np.uint8),
        "reference_pose": ((2, 64, 48, 3), np.uint8),
        "clip_pixels": ((2, 16, 16, 3), np.float32),
        "frames": ((2, 3, 64, 48, 3), np.uint8),
        "poses": ((2, 3, 64, 48, 3), np.uint8),
        "masks": ((2, 3, 64, 48), np.uint8),
    }
    assert batch["reference"].std() > 5 and batch["poses"].max() > 100
    assert 0 < (batch["masks"] > 127).mean() < 0.9


def test_the_warp_comes_with_models_that_see_it_and_changes_nothing_else(micro, micro_copying):
    samples = [
        Samples(open_source(training(FRAMES, preset)), training(FRAMES, preset)) for preset in (micro, micro_copying)
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
        near = lambda picture: np.abs(picture.astype(int) - plain["frames"]).mean()  # noqa: B023, E731
        sharp += near(parts["warp"]) < near(plain["reference"][None])
    assert lost <= 3 and sharp >= 8


def test_pictures_poses_and_masks_belong_together(micro):
    """The sample against the clip it was made of."""
    source = open_source(training(FRAMES, micro))
    sample, clip = Samples(source, training(FRAMES, micro))(5), source.clip(5, FRAMES.span)
    poses = draw(clip.keypoints, 64, 48, "tiny")
    number = {clip.frames[i].tobytes(): i for i in range(FRAMES.span)}
    for picture, pose, mask in zip(sample["frames"], sample["poses"], sample["masks"], strict=True):
        i = number[picture.tobytes()]
        np.testing.assert_array_equal(pose, poses[i])
        np.testing.assert_array_equal(mask, clip.mask[i])
    np.testing.assert_array_equal(sample["reference_pose"], poses[number[sample["reference"].tobytes()]])


def test_the_same_number_gives_the_same_sample(micro):
    a, b = (Samples(open_source(training(FRAMES, micro)), training(FRAMES, micro)) for _ in range(2))
    assert_equal(a(3), b(3))
    assert not np.array_equal(a(3)["frames"], a(4)["frames"])
    other = dataclasses.replace(FRAMES, seed=1)
    assert not np.array_equal(
        a(3)["frames"], Samples(open_source(training(other, micro)), training(other, micro))(3)["frames"]
    )


def test_single_frames_are_drawn_anywhere_and_never_twice(micro, numbers):
    samples = [Samples(numbers, training(FRAMES, micro))(i) for i in range(40)]
    chosen = [[s["reference"][0, 0, 1], *s["frames"][:, 0, 0, 1]] for s in samples]
    assert all(len(set(frames)) == 4 for frames in chosen)
    assert set(np.ravel(chosen).tolist()) == set(range(8))


def test_clips_are_consecutive_frames_and_the_reference_is_anywhere(micro, numbers):
    samples = [Samples(numbers, training(CLIPS, micro))(i) for i in range(60)]
    firsts = [int(s["frames"][0, 0, 0, 1]) for s in samples]
    for sample, first in zip(samples, firsts, strict=True):
        assert sample["frames"][:, 0, 0, 1].tolist() == [first, first + 1, first + 2]
    assert set(firsts) == set(range(6))
    assert {int(s["reference"][0, 0, 1]) for s in samples} == set(range(8))


def test_processes_share_every_batch_and_no_clip(micro, numbers):
    def clips(process, processes, count):
        stream = batches(training(dataclasses.replace(FRAMES, batch=4), micro), process, processes)
        return [next(stream)["reference"][:, 0, 0, 0].tolist() for _ in range(count)]

    assert clips(0, 1, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert clips(0, 2, 2) == [[0, 1], [4, 5]]
    assert clips(1, 2, 2) == [[2, 3], [6, 7]]


def test_the_position_resumes_exactly(micro, numbers):
    stream = batches(training(CLIPS, micro))
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(3)]
    again = batches(training(CLIPS, micro))
    next(again)
    again.set_state(state)
    for batch in expected:
        assert_equal(next(again), batch)
    assert expected[0]["reference"][0, 0, 0, 0] == 6


@pytest.mark.parametrize("before, after", [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_rendered_data_resume_with_other_workers(micro, before, after):
    expected = batches(training(CLIPS, micro))
    stream = batches(training(dataclasses.replace(CLIPS, workers=before), micro))
    for _ in range(3):
        assert_equal(next(stream), next(expected))
    again = batches(training(dataclasses.replace(CLIPS, workers=after), micro))
    again.set_state(stream.get_state())
    for _ in range(3):
        assert_equal(next(again), next(expected))
    stream.close(), again.close()


@pytest.mark.parametrize(
    "old", [{"next_index": 3}, {"iterators_in_use_states": [{"next_index": 2}, {"next_index": 1}], "exhausted": [0, 0]}]
)
def test_positions_of_older_versions_are_understood(micro, numbers, old):
    stream = batches(training(CLIPS, micro))
    stream.set_state(old)
    assert next(stream)["reference"][:, 0, 0, 0].tolist() == [6, 7]


@pytest.mark.parametrize(
    "data, processes",
    [
        (dataclasses.replace(FRAMES, batch=0), 1),
        (dataclasses.replace(FRAMES, batch=3), 2),
        (dataclasses.replace(FRAMES, frames=8), 1),
        (dataclasses.replace(CLIPS, frames=9), 1),
        (dataclasses.replace(FRAMES, frames=0), 1),
        (dataclasses.replace(FRAMES, split="holdout"), 1),
    ],
)
def test_impossible_options(micro, data, processes):
    with pytest.raises(UserError, match=r"^(--data\.|mocap_people: ).*(must be|choose)"):
        batches(training(data, micro), 0, processes)


def test_a_worker_makes_the_same_batches_and_misses_ctrl_c(micro):
    """A terminal's Ctrl-C goes to a process group; the training process must outlive it to save."""
    stream = batches(training(dataclasses.replace(FRAMES, workers=1), micro))
    expected = batches(training(FRAMES, micro))
    for _ in range(2):
        assert_equal(next(stream), next(expected))
    groups = {os.getpgid(child.pid) for child in multiprocessing.active_children()}
    assert groups and os.getpgrp() not in groups
    stream.close()


STAGE_1 = dataclasses.replace(FRAMES, batch=4, frames=2, margin=10)
STAGE_2 = dataclasses.replace(STAGE_1, consecutive=True, frames=5)


@pytest.fixture
def stage_1(data_set):
    return dataclasses.replace(STAGE_1, root=str(data_set))


@pytest.fixture
def stage_2(data_set):
    return dataclasses.replace(STAGE_2, root=str(data_set))


def shown(batch):
    """The clips' numbers and the frames' numbers (reference first) that the pictures of a batch show."""
    clips = np.round((batch["reference"][..., 1].mean((1, 2)) - 20) / 12).astype(int)
    pictures = np.concatenate([batch["reference"][:, None], batch["frames"]], 1)
    return clips, np.round((pictures[..., 0].mean((2, 3)) - 20) / 5).astype(int)


@pytest.fixture(scope="module")
def clip(data_set):
    return RecordedClips(str(data_set), "train")[0]


def test_a_recorded_batch_has_the_form_of_a_rendered_one(micro, stage_2):
    batch, rendered = (
        next(batches(training(stage_2, micro))),
        next(batches(training(dataclasses.replace(STAGE_2, span=8), micro))),
    )
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in rendered.items()}
    assert batch["poses"].max() > 100 and 0.05 < (batch["masks"] > 127).mean() < 0.9
    assert set(np.unique(batch["masks"])) == {0, 255}


def test_recorded_targets_keep_the_margin(micro, stage_1):
    stream = batches(training(stage_1, micro))
    numbers = np.concatenate([shown(next(stream))[1] for _ in range(25)])
    distances = np.abs(numbers[:, 1:] - numbers[:, :1])
    assert distances.min() == 10 and distances.max() > 30
    assert (numbers[:, 1] != numbers[:, 2]).all() and numbers.min() < 2 and numbers.max() > 37


@pytest.mark.parametrize("margin, frames, least", [(30, 1, 20), (30, 35, 3), (30, 39, 1), (0, 1, 1)])
def test_a_short_clip_has_a_smaller_margin(clip, margin, frames, least):
    data, rng = dataclasses.replace(STAGE_1, margin=margin, frames=frames), np.random.default_rng(0)
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
    from animate_jax.data.loader import largest_crop
    from animate_jax.evaluation.clips import _center_crop

    for width, height in ((640, 360), (360, 640), (41, 300), (100, 100)):
        left, top, wide, tall = largest_crop(width, height, 48 / 64)
        assert (top, left, tall, wide) == _center_crop((height, width), (64, 48))
    whole = RecordedSamples(training(dataclasses.replace(stage_2, framing="frame", flip=0.0), micro))
    boxes = {whole(position, clip)["masks"].sum(dtype=int) for position in range(4)}
    assert len(boxes) > 1, "frames differ"
    first = [whole(position, clip)["reference"][0, 0, 2] for position in range(6)]
    assert np.ptp(np.array(first, int)) < 12, "but not their crop: the still pattern's corner is the same"


def test_the_frames_are_the_chosen_ones(micro, clip, stage_2):
    data = dataclasses.replace(stage_2, stride=2)
    _, numbers = shown({k: v[None] for k, v in RecordedSamples(training(data, micro))(7, clip).items()})
    assert (np.diff(numbers[0, 1:]) == 2).all() and len(numbers[0]) == 6


def test_too_short_a_clip(micro, stage_1, tmp_path, write, clips):
    root = str(write(tmp_path / "set", [clips(0, 3)], shards=1))
    next(batches(training(dataclasses.replace(stage_1, root=root), micro)))
    for workers in (0, 1):
        stream = batches(training(dataclasses.replace(stage_1, root=root, frames=3, workers=workers), micro))
        with pytest.raises(UserError, match="clip clip0 has 3 frames, a sample takes 4: lower"):
            next(stream)
        stream.close()


@pytest.fixture
def damaged(tmp_path, write, clips):
    """13 clips; the video of the fifth is cut short, and the eighth is no clip at all."""
    made = [dict(clips(n)) for n in range(13)]
    made[4]["video"] = made[4]["video"][:600] + b"\0" * 2000
    order = [*range(0, 13, 2), *range(1, 13, 2)]  # dealt out to two shards
    write(tmp_path / "set", [b"nothing" if n == 7 else made[n] for n in range(13)])
    return str(tmp_path / "set"), [order.index(4), order.index(7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_is_replaced_by_the_next_and_told(micro, stage_1, damaged, workers, capfd):
    root, numbers = damaged
    data = dataclasses.replace(stage_1, root=root, workers=workers, max_bad=0.1)  # 2 of 13
    stream, whole = batches(training(data, micro)), batches(training(stage_1, micro))
    for _ in range(7):  # more than two epochs
        got, expected = shown(next(stream))[0], shown(next(whole))[0]
        order = [*range(0, 13, 2), *range(1, 13, 2)]
        after = {clip: order[order.index(clip) + 1] for clip in (4, 7)}
        assert got.tolist() == [after.get(clip, clip) for clip in expected.tolist()]
    stream.close()
    assert stream.damaged == set(numbers)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("damaged clip number")]
    assert len(lines) == 2 and any("clip4" in line for line in lines), lines
    assert any("no clip with keypoints" in line for line in lines), lines


def test_too_many_damaged_clips_end_the_run(micro, stage_1, damaged):
    stream = batches(training(dataclasses.replace(stage_1, root=damaged[0], max_bad=0.05), micro))  # 1 of 13
    with pytest.raises(UserError, match=r"^2 damaged clips, the last: .*; or raise --data\.max-bad"):
        for _ in range(7):
            next(stream)
    strict = batches(training(dataclasses.replace(stage_1, root=damaged[0], max_bad=0.0), micro))
    with pytest.raises(UserError, match="build the data set again"):
        for _ in range(7):
            next(strict)


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

    monkeypatch.setattr("animate_jax.data.loader.draw", watched)
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
    assert cover(nobody, 64, 48).max() == 0


def test_masks_cover_the_bones(clip):
    mask = cover(clip.keypoints, 192, 160)
    pose = draw(clip.keypoints, 192, 160, "tiny").max(-1) > 128
    assert (mask[pose] == 255).mean() > 0.98


def test_every_clip_once_per_epoch_in_a_new_order(micro, stage_1):
    stream = batches(training(stage_1, micro))
    seen = np.concatenate([shown(next(stream))[0] for _ in range(13)]).reshape(4, 13)
    np.testing.assert_array_equal(np.sort(seen), np.broadcast_to(np.arange(13), (4, 13)))
    assert len({tuple(order) for order in seen.tolist()}) == 4
    other = batches(training(dataclasses.replace(stage_1, seed=1), micro))
    assert not np.array_equal(shown(next(other))[0], seen[0, :4])


@pytest.mark.parametrize("after", [1, 2, 4])
def test_the_number_of_processes_may_change(micro, stage_1, after):
    """Three batches with 2 processes, the rest with another number: the same global batches as one process makes."""
    expected = batches(training(stage_1, micro))
    first = [batches(training(stage_1, micro), process, 2) for process in range(2)]
    for _ in range(3):
        parts = [next(stream) for stream in first]
        together = {name: np.stack([part[name] for part in parts], 1).reshape(4, *parts[0][name].shape[1:])
                    for name in parts[0]}  # fmt: skip
        assert_equal(together, next(expected))
    states = [stream.get_state() for stream in first]
    assert states[0] == states[1]
    then = [batches(training(stage_1, micro), process, after) for process in range(after)]
    for stream in then:
        stream.set_state(states[0])
    for _ in range(5):  # over the end of the epoch
        parts = [next(stream) for stream in then]
        together = {name: np.stack([part[name] for part in parts], 1).reshape(4, *parts[0][name].shape[1:])
                    for name in parts[0]}  # fmt: skip
        assert_equal(together, next(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_recorded_position_resumes_exactly(micro, stage_2, workers):
    data = dataclasses.replace(stage_2, workers=workers)
    stream = batches(training(data, micro))
    for _ in range(2):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(3)]
    stream.close()
    again = batches(training(dataclasses.replace(stage_2, workers=0), micro))
    again.set_state(state)
    for batch in expected:
        assert_equal(next(again), batch)


def test_a_checkpoint_of_two_processes_is_read_by_any_number(micro, stage_1, tmp_path):
    """Orbax keeps a file per process; a new process finds none of its own."""
    stream = batches(training(stage_1, micro))
    next(stream)
    (tmp_path / "process_1-of-2.json").write_text(json.dumps(stream.get_state()))
    again = batches(training(stage_1, micro))
    asyncio.run(restore(again, epath.Path(tmp_path)))
    assert_equal(next(again), next(stream))


async def restore(stream, directory):
    await (await stream.load(directory))


def test_orbax_saves_the_position(micro, stage_1, tmp_path):
    from orbax.checkpoint import v1 as ocp

    stream = batches(training(stage_1, micro))
    next(stream)
    ocp.save_checkpointables(tmp_path / "saved", {"data": stream})
    again = batches(training(stage_1, micro))
    ocp.load_checkpointables(tmp_path / "saved", {"data": again})
    assert_equal(next(again), next(stream))


def test_workers_on_recorded_clips_miss_ctrl_c(micro, stage_1):
    stream = batches(training(dataclasses.replace(stage_1, workers=2), micro))
    for _ in range(2):
        next(stream)
    groups = {os.getpgid(child.pid) for child in multiprocessing.active_children()}
    assert len(groups) >= 2 and os.getpgrp() not in groups
    stream.close()


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 0},
        {"margin": -1},
        {"stride": 0},
        {"flip": 1.5},
        {"fps": 0.0},
        {"max_bad": 2.0},
        {"batch": 0},
        {"split": "test"},
        {"root": "nowhere"},
    ],
    ids=str,
)
def test_impossible_options_for_recorded_clips(micro, stage_1, options):
    with pytest.raises(
        UserError, match=r"^--data\.(frames|margin|stride|fps|max-bad|flip|batch|root) .*: .*(must be|choose|check)"
    ):
        batches(training(dataclasses.replace(stage_1, **options), micro))
