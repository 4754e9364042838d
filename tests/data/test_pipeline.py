"""The loader: batches of the right form, the same for the same number, dealt out to processes, resumable."""

import dataclasses
import multiprocessing
import os

import numpy as np
import pytest

pytest.importorskip("numba")

from animate_jax.config import DataConfig
from animate_jax.data.pipeline import Samples, batches, open_source
from animate_jax.errors import UserError
from animate_jax.pose.draw import draw

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
            self._clip, frames=pictures, keypoints=self._clip.keypoints[chosen % 2], mask=pictures[..., 1]
        )


@pytest.fixture
def numbers(micro, monkeypatch):
    """Lets the loader read `Numbers`."""
    source = Numbers(open_source(FRAMES, micro))
    monkeypatch.setattr("animate_jax.data.pipeline.open_source", lambda data, preset: source)
    return source


@pytest.mark.parametrize("data", [FRAMES, CLIPS], ids=["frames", "clips"])
def test_a_batch_has_the_promised_form(micro, data):
    batch = next(batches(data, micro))
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


def test_pictures_poses_and_masks_belong_together(micro):
    """The sample against the clip it was made of."""
    source = open_source(FRAMES, micro)
    sample, clip = Samples(source, FRAMES, micro)(5), source.clip(5, FRAMES.span)
    poses = draw(clip.keypoints, 64, 48, "tiny")
    number = {clip.frames[i].tobytes(): i for i in range(FRAMES.span)}
    for picture, pose, mask in zip(sample["frames"], sample["poses"], sample["masks"], strict=True):
        i = number[picture.tobytes()]
        np.testing.assert_array_equal(pose, poses[i])
        np.testing.assert_array_equal(mask, clip.mask[i])
    np.testing.assert_array_equal(sample["reference_pose"], poses[number[sample["reference"].tobytes()]])


def test_the_same_number_gives_the_same_sample(micro):
    a, b = (Samples(open_source(FRAMES, micro), FRAMES, micro) for _ in range(2))
    assert_equal(a(3), b(3))
    assert not np.array_equal(a(3)["frames"], a(4)["frames"])
    other = dataclasses.replace(FRAMES, seed=1)
    assert not np.array_equal(a(3)["frames"], Samples(open_source(other, micro), other, micro)(3)["frames"])


def test_single_frames_are_drawn_anywhere_and_never_twice(micro, numbers):
    samples = [Samples(numbers, FRAMES, micro)(i) for i in range(40)]
    chosen = [[s["reference"][0, 0, 1], *s["frames"][:, 0, 0, 1]] for s in samples]
    assert all(len(set(frames)) == 4 for frames in chosen)
    assert set(np.ravel(chosen).tolist()) == set(range(8))


def test_clips_are_consecutive_frames_and_the_reference_is_anywhere(micro, numbers):
    samples = [Samples(numbers, CLIPS, micro)(i) for i in range(60)]
    firsts = [int(s["frames"][0, 0, 0, 1]) for s in samples]
    for sample, first in zip(samples, firsts, strict=True):
        assert sample["frames"][:, 0, 0, 1].tolist() == [first, first + 1, first + 2]
    assert set(firsts) == set(range(6))
    assert {int(s["reference"][0, 0, 1]) for s in samples} == set(range(8))


def test_processes_share_every_batch_and_no_clip(micro, numbers):
    def clips(process, processes, count):
        stream = batches(dataclasses.replace(FRAMES, batch=4), micro, process, processes)
        return [next(stream)["reference"][:, 0, 0, 0].tolist() for _ in range(count)]

    assert clips(0, 1, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert clips(0, 2, 2) == [[0, 2], [4, 6]]
    assert clips(1, 2, 2) == [[1, 3], [5, 7]]


def test_the_position_resumes_exactly(micro, numbers):
    stream = batches(CLIPS, micro)
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(3)]
    again = batches(CLIPS, micro)
    next(again)
    again.set_state(state)
    for batch in expected:
        assert_equal(next(again), batch)
    assert expected[0]["reference"][0, 0, 0, 0] == 6


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
        batches(data, micro, 0, processes)


def test_a_worker_makes_the_same_batches_and_misses_ctrl_c(micro):
    """A terminal's Ctrl-C goes to a process group; the training process must outlive it to save."""
    stream = batches(dataclasses.replace(FRAMES, workers=1), micro)
    expected = batches(FRAMES, micro)
    for _ in range(2):
        assert_equal(next(stream), next(expected))
    groups = {os.getpgid(child.pid) for child in multiprocessing.active_children()}
    assert groups and os.getpgrp() not in groups
    stream.close()
