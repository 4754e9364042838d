"""Checkpoints of a run: what is kept, and positions of data that other processes wrote."""

import dataclasses
import json
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import TrainConfig
from animate_jax.training.checkpoint import RunCheckpoints, training_only
from animate_jax.training.state import TrainState, sampling_params
from tests.conftest import MICRO

pytestmark = pytest.mark.compiles


@pytest.fixture
def config(tmp_path):
    return TrainConfig(stage="stage1", output=str(tmp_path), preset=MICRO, keep_last=2)


def numbers():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def state(step):
    return TrainState(
        step=jnp.int32(step),
        trainable={"a": jnp.full(3, step, jnp.float32)},
        frozen={"b": jnp.ones(2, jnp.bfloat16)},
        opt={"a": jnp.full(3, -step, jnp.float32)},
        ema={"a": jnp.full(3, step / 2, jnp.float32)},
    )


def saved(config):
    return sorted(int(path.name) for path in (Path(config.output) / "checkpoints").glob("[0-9]*"))


def save(config, micro, steps):
    data = numbers()
    with RunCheckpoints(config) as checkpoints:
        for step in steps:
            next(data)
            checkpoints.save(state(step), data)


@pytest.mark.parametrize("keep_every, left", [(0, [5, 6]), (2, [2, 4, 5, 6])])
def test_the_newest_and_every_so_many_steps_are_kept(config, micro, keep_every, left):
    save(dataclasses.replace(config, keep_every=keep_every), micro, range(1, 7))
    assert saved(config) == left


def test_everything_comes_back_and_nothing_is_stored_twice(config, micro):
    save(config, micro, [1, 2])
    data = numbers()
    with RunCheckpoints(config) as checkpoints:
        restored = checkpoints.restore(state(0), data)
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    assert next(data) == 2
    assert sampling_params(state(2)).keys() == {"a", "b"}
    assert training_only(state(2)).keys() == {"step", "trainable", "opt"}


def test_half_written_checkpoints_are_cleared_away(config, micro):
    save(config, micro, [1])
    root = Path(config.output) / "checkpoints"
    (root / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    save(config, micro, [2])
    assert saved(config) == [1, 2] and not list(root.glob("*tmp*"))


def test_the_position_of_another_number_of_processes(config, micro):
    """Four processes had saved."""
    save(config, micro, [1, 2, 3])
    place = Path(config.output) / "checkpoints" / "3" / "data"
    (own,) = place.glob("process_0-of-1.json")
    for index in range(4):
        (place / f"process_{index}-of-4.json").write_text(own.read_text())
    own.unlink()
    data = numbers()
    with RunCheckpoints(config) as checkpoints:
        checkpoints.restore(state(0), data)
    assert next(data) == 3


def test_a_checkpoint_tells_its_configuration(config, micro):
    save(config, micro, [1])
    stored = json.loads((Path(config.output) / "checkpoints" / "1" / "_CHECKPOINT_METADATA").read_text())
    assert stored["custom_metadata"]["config"]["keep_last"] == 2
    assert stored["custom_metadata"]["preset"]["name"] == micro.name
