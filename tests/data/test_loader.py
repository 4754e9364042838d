"""Batches: their form and order, shared out among processes, made in workers, without damaged clips."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from animate_jax.data.batch import Batch
from animate_jax.data.loader import batches
from animate_jax.errors import UserError
from tests.conftest import training
from tests.data.conftest import CLIPS, FRAMES, STAGE_2, assert_equal, clip_and_frame_numbers

pytest.importorskip("numba")
pytestmark = pytest.mark.compiles


@pytest.mark.parametrize("data", [FRAMES, CLIPS], ids=["frames", "clips"])
def test_a_batch_has_the_promised_form(micro, data):
    batch = next(batches(training(data, micro)))
    shapes = {name: (array.shape, array.dtype) for name, array in batch._asdict().items() if array is not None}
    assert shapes == {
        "reference": ((2, 64, 48, 3), np.uint8),
        "reference_pose": ((2, 64, 48, 3), np.uint8),
        "clip_pixels": ((2, 16, 16, 3), np.float32),
        "frames": ((2, 3, 64, 48, 3), np.uint8),
        "poses": ((2, 3, 64, 48, 3), np.uint8),
        "masks": ((2, 3, 64, 48), np.uint8),
    }
    abstract = Batch.abstract(training(data, micro))
    assert shapes == {name: (x.shape, x.dtype) for name, x in abstract._asdict().items() if x is not None}
    assert batch.reference.std() > 5 and batch.poses.max() > 100
    assert 0 < (batch.masks > 127).mean() < 0.9


def test_processes_share_every_batch_and_no_clip(micro, numbers):
    def clips(process, processes, count):
        stream = batches(training(dataclasses.replace(FRAMES, batch=4), micro), process, processes)
        return [next(stream).reference[:, 0, 0, 0].tolist() for _ in range(count)]

    assert clips(0, 1, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert clips(0, 2, 2) == [[0, 1], [4, 5]]
    assert clips(1, 2, 2) == [[2, 3], [6, 7]]


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
    stream = batches(training(dataclasses.replace(FRAMES, num_workers=1), micro))
    expected = batches(training(FRAMES, micro))
    for _ in range(2):
        assert_equal(next(stream), next(expected))
    groups = {os.getpgid(child.pid) for child in multiprocessing.active_children()}
    assert groups and os.getpgrp() not in groups
    stream.close()


def test_a_recorded_batch_has_the_form_of_a_rendered_one(micro, stage_2):
    batch, rendered = (
        next(batches(training(stage_2, micro))),
        next(batches(training(dataclasses.replace(STAGE_2, clip_frames=8), micro))),
    )
    shapes, expected = (jax.tree.map(lambda array: (array.shape, array.dtype), each) for each in (batch, rendered))
    assert shapes == expected
    assert batch.poses.max() > 100 and 0.05 < (batch.masks > 127).mean() < 0.9
    assert set(np.unique(batch.masks)) == {0, 255}


def test_recorded_targets_keep_the_margin(micro, stage_1):
    stream = batches(training(stage_1, micro))
    numbers = np.concatenate([clip_and_frame_numbers(next(stream))[1] for _ in range(25)])
    distances = np.abs(numbers[:, 1:] - numbers[:, :1])
    assert distances.min() == 10 and distances.max() > 30
    assert (numbers[:, 1] != numbers[:, 2]).all() and numbers.min() < 2 and numbers.max() > 37


def test_too_short_a_clip(micro, stage_1, tmp_path, write, clips):
    root = str(write(tmp_path / "set", [clips(0, 3)], shards=1))
    next(batches(training(dataclasses.replace(stage_1, root=root), micro)))
    for workers in (0, 1):
        stream = batches(training(dataclasses.replace(stage_1, root=root, frames=3, num_workers=workers), micro))
        with pytest.raises(UserError, match="clip clip0 has 3 frames, a sample takes 4: lower"):
            next(stream)
        stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_is_replaced_by_the_next_and_told(micro, stage_1, damaged, workers, capfd):
    root, numbers = damaged
    data = dataclasses.replace(stage_1, root=root, num_workers=workers, max_bad=0.1)  # 2 of 13
    stream, whole = batches(training(data, micro)), batches(training(stage_1, micro))
    for _ in range(7):  # more than two epochs
        got, expected = clip_and_frame_numbers(next(stream))[0], clip_and_frame_numbers(next(whole))[0]
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


def test_every_clip_once_per_epoch_in_a_new_order(micro, stage_1):
    stream = batches(training(stage_1, micro))
    seen = np.concatenate([clip_and_frame_numbers(next(stream))[0] for _ in range(13)]).reshape(4, 13)
    np.testing.assert_array_equal(np.sort(seen), np.broadcast_to(np.arange(13), (4, 13)))
    assert len({tuple(order) for order in seen.tolist()}) == 4
    other = batches(training(dataclasses.replace(stage_1, seed=1), micro))
    assert not np.array_equal(clip_and_frame_numbers(next(other))[0], seen[0, :4])


def test_workers_on_recorded_clips_miss_ctrl_c(micro, stage_1):
    stream = batches(training(dataclasses.replace(stage_1, num_workers=2), micro))
    for _ in range(2):
        next(stream)
    groups = {os.getpgid(child.pid) for child in multiprocessing.active_children()}
    assert len(groups) >= 2 and os.getpgrp() not in groups
    stream.close()


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 0},
        {"min_reference_distance": -1},
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
        UserError,
        match=r"^--data\.(frames|min-reference-distance|stride|fps|max-bad|flip|batch|root) .*: .*(must|choose|check)",
    ):
        batches(training(dataclasses.replace(stage_1, **options), micro))


KILLED = """
import multiprocessing, time
from animate_jax.data.loader import begin_worker

def work():
    begin_worker()
    time.sleep(600)

if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    print(worker.pid, flush=True)
    worker.join()
"""


def test_workers_end_with_a_killed_training_process():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as training_process:
        worker = int(training_process.stdout.readline())
        time.sleep(0.5)  # until it has begun
        training_process.kill()
    for _ in range(100):
        if not alive(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker goes on")


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
