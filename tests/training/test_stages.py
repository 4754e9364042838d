"""A few steps of every stage with its real loss and configuration."""

import dataclasses
import runpy
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import VAELossConfig
from animate_jax.training.loop import run
from animate_jax.training.losses import DiffusionLoss, VAELoss, make_loss
from animate_jax.training.state import sampling_params, split_teacher
from tests.conftest import MICRO
from tests.training.conftest import Numbers, log, make_batch

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


@pytest.fixture(scope="module")
def batch():
    return make_batch(frames=2)


@pytest.fixture
def stage(tmp_path, micro_checkpoint):
    """A stage's own configuration, made small."""

    def make(name, **fields):
        config = runpy.run_path(str(ROOT / "configs" / f"tiny_{name}.py"))["get_config"]()
        optim = dataclasses.replace(config.optim, learning_rate=1e-2, warmup=1, decay="constant", ema=0.0)
        data = dataclasses.replace(config.data, batch=2, frames=2, num_workers=0, clip_frames=6)
        small = {
            "preset": MICRO,
            "output": str(tmp_path / name),
            "init": str(micro_checkpoint),
            "log_every": 1,
            "save_every": 100,
        }
        return dataclasses.replace(config, optim=optim, data=data, **small | fields)

    return make


def losses(config):
    return [line["loss"] for line in log(config)]


def assert_only_moved(state, params, trainable):
    """What is trained has changed, everything else has not, bit by bit."""
    moved = {path for path, array in sampling_params(state).items() if not np.array_equal(array, params[path])}
    assert not {path for path in moved if not trainable(path)}
    assert len(moved) > 0.95 * sum(map(trainable, params))  # a bias in front of a norm may have no effect
    assert moved <= state.trainable.keys()


class Same(Iterator):
    """One batch for ever."""

    def __init__(self, batch):
        self._batch = batch

    def __next__(self):
        return self._batch

    async def save(self, directory):
        return await Numbers().save(directory)

    async def load(self, directory):
        raise NotImplementedError


def test_stage_1_learns_one_batch(stage, micro, micro_params, batch):
    config = stage("stage1", steps=150)  # its timesteps are mostly noisy, where there is little to see
    state = run(config, DiffusionLoss(config), Same(batch))
    assert_only_moved(state, micro_params, lambda path: "motion_modules" not in path and not path.startswith("vae."))
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])


def test_stage_2_learns_one_batch_and_moves_no_spatial_weight(stage, micro, micro_params, batch):
    config = stage("stage2", steps=50)
    state = run(config, DiffusionLoss(config), Same(batch))
    assert_only_moved(state, micro_params, lambda path: "motion_modules" in path)
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])


def test_distillation_moves_the_student_alone(stage, micro, micro_params, batch):
    config = stage("distill", steps=2)
    state = run(config, make_loss(config), Same(batch))
    assert_only_moved(state, micro_params, lambda path: path.startswith("denoising_unet."))
    assert all(0 < value < 2 for value in losses(config))
    for path, array in split_teacher({**state.frozen, **state.trainable})[1].items():
        np.testing.assert_array_equal(array, micro_params[path], err_msg=path)


def test_the_autoencoder_learns_one_batch(stage, micro, micro_params, batch):
    config = stage("vae", steps=50, trainable=r"vae\.", vae_loss=VAELossConfig(crop=32))
    loss = VAELoss(config, lambda a, b: jnp.square(a - b).mean((1, 2, 3)))
    state = run(config, loss, Same(batch))
    assert_only_moved(state, micro_params, lambda path: path.startswith("vae."))
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])
