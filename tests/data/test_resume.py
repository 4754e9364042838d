"""The loader's position: a run goes on exactly, with any number of workers and processes."""

import asyncio
import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from animate_jax.data.loader import batches
from animate_jax.training.checkpoint import IteratorCheckpoint
from tests.conftest import training
from tests.data.conftest import CLIPS, assert_equal

pytest.importorskip("numba")
pytestmark = pytest.mark.compiles


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
    assert expected[0].reference[0, 0, 0, 0] == 6


@pytest.mark.parametrize("before, after", [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_rendered_data_resume_with_other_workers(micro, before, after):
    expected = batches(training(CLIPS, micro))
    stream = batches(training(dataclasses.replace(CLIPS, num_workers=before), micro))
    for _ in range(3):
        assert_equal(next(stream), next(expected))
    again = batches(training(dataclasses.replace(CLIPS, num_workers=after), micro))
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
    assert next(stream).reference[:, 0, 0, 0].tolist() == [6, 7]


def interleaved(parts):
    """The batch whose rows two or more processes took in turn."""
    return jax.tree.map(lambda *rows: np.stack(rows, 1).reshape(4, *rows[0].shape[1:]), *parts)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_the_number_of_processes_may_change(micro, stage_1, after):
    """Three batches with 2 processes, the rest with another number: the same global batches as one process makes."""
    expected = batches(training(stage_1, micro))
    first = [batches(training(stage_1, micro), process, 2) for process in range(2)]
    for _ in range(3):
        parts = [next(stream) for stream in first]
        assert_equal(interleaved(parts), next(expected))
    states = [stream.get_state() for stream in first]
    assert states[0] == states[1]
    then = [batches(training(stage_1, micro), process, after) for process in range(after)]
    for stream in then:
        stream.set_state(states[0])
    for _ in range(5):  # over the end of the epoch
        parts = [next(stream) for stream in then]
        assert_equal(interleaved(parts), next(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_recorded_position_resumes_exactly(micro, stage_2, workers):
    data = dataclasses.replace(stage_2, num_workers=workers)
    stream = batches(training(data, micro))
    for _ in range(2):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(3)]
    stream.close()
    again = batches(training(dataclasses.replace(stage_2, num_workers=0), micro))
    again.set_state(state)
    for batch in expected:
        assert_equal(next(again), batch)


def test_a_checkpoint_of_two_processes_is_read_by_any_number(micro, stage_1, tmp_path):
    """Orbax keeps a file per process; a new process finds none of its own."""
    stream = batches(training(stage_1, micro))
    next(stream)
    for process in range(2):
        (tmp_path / f"process_{process}-of-2.json").write_text(json.dumps(stream.get_state()))
    again = batches(training(stage_1, micro))
    asyncio.run(restore(IteratorCheckpoint(again), epath.Path(tmp_path)))
    assert_equal(next(again), next(stream))


async def restore(position, directory):
    await (await position.load(directory))


def test_orbax_saves_the_position(micro, stage_1, tmp_path):
    from orbax.checkpoint import v1 as ocp

    stream = batches(training(stage_1, micro))
    next(stream)
    ocp.save_checkpointables(tmp_path / "saved", {"data": stream})
    again = batches(training(stage_1, micro))
    ocp.load_checkpointables(tmp_path / "saved", {"data": again})
    assert_equal(next(again), next(stream))
