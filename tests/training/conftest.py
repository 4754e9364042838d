"""Runs that are quickly compiled, and a batch for the real losses."""

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import DataConfig, OptimConfig, TrainConfig
from animate_jax.data.batch import Batch
from animate_jax.errors import UserError
from animate_jax.training.loop import run
from tests.conftest import MICRO

# The machinery, with a loss that is quickly compiled: one bias of the model is pulled to numbers that depend on
# the batch and on the drawn noise.
TRAINED = "vae.quant_conv.bias"


def pull(model, batch, key):
    bias = model.vae.quant_conv.bias[...]
    number = batch["number"].mean()
    wanted = number + jax.random.normal(key, bias.shape)
    return jnp.square(bias - wanted).mean(), {"number": number}


class Numbers(Iterator):
    """Batches [0, 1], [2, 3], ... of a real grain iterator; the process is asked to stop while batch `stop` is read."""

    def __init__(self, stop: int | None = None, first: int = 0):
        dataset = grain.MapDataset.range(first, 1000).map(lambda i: {"number": np.float32(i)})
        self._stream = iter(dataset.batch(2).to_iter_dataset())
        self._stop, self.read = stop, 0

    def __next__(self):
        self.read += 1
        if self.read == self._stop:
            signal.raise_signal(signal.SIGTERM)
        return next(self._stream)

    async def save(self, directory):
        return await self._stream.save(directory)

    async def load(self, directory):
        return await self._stream.load(directory)


def pulling(output, init) -> TrainConfig:
    return TrainConfig(
        preset=MICRO,
        stage="stage1",
        output=str(output),
        init=str(init),
        trainable=r"vae\.quant_conv\.bias",
        steps=6,
        log_every=2,
        save_every=100,
        keep_last=10,
        data=DataConfig(batch=2),
        optim=OptimConfig(learning_rate=0.1, decay="cosine"),
    )


@pytest.fixture
def config(tmp_path, micro_checkpoint) -> TrainConfig:
    return pulling(tmp_path / "run", micro_checkpoint)


def changed(config, **fields):
    return dataclasses.replace(config, **fields)


def saved(config):
    return sorted(int(path.name) for path in (Path(config.output) / "checkpoints").glob("[0-9]*"))


def log(config):
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_equal(state, other):
    """Bit by bit."""
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=str(path))


CLIPS, FRAMES = 2, 4


def make_batch(frames=FRAMES):
    """Random images with blocks of 16 pixels, as real ones are smooth; the person is the left half."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (CLIPS, 1 + frames, 4, 3, 3), np.uint8).repeat(16, 2).repeat(16, 3)
    masks = np.zeros((CLIPS, frames, 64, 48), np.uint8)
    masks[..., :24] = 255
    return Batch(
        reference=images[:, 0],
        reference_pose=images[:, 1],
        clip_pixels=random.normal(size=(CLIPS, 16, 16, 3)).astype(np.float32),
        frames=images[:, 1:],
        poses=images[:, 1:],
        masks=masks,
    )


@pytest.fixture(scope="session")
def batch():
    return jax.tree.map(jnp.asarray, make_batch())
