"""The training loop: exact resume, clean stops, refusals; then a few steps of every stage with its real loss."""

import dataclasses
import json
import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import DataConfig, OptimConfig, PreviewConfig, TrainConfig, VAELossConfig
from animate_jax.errors import UserError
from animate_jax.models import params as P
from animate_jax.training.loop import Interrupt, run
from animate_jax.training.state import sampling_params
from animate_jax.training.step import diffusion_loss, vae_loss
from animate_jax.weights import checkpoint

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("compile_fast")

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
        stage="stage1", output=str(output), init=str(init), trainable=r"vae\.quant_conv\.bias",
        steps=6, log_every=2, save_every=100, keep=10, data=DataConfig(batch=2),
        optim=OptimConfig(learning_rate=0.1, decay="cosine"),
    )  # fmt: skip


@pytest.fixture
def config(tmp_path, micro_checkpoint) -> TrainConfig:
    return pulling(tmp_path / "run", micro_checkpoint)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, micro, micro_checkpoint, compile_fast):
    """A whole run: its configuration and its last state."""
    config = pulling(tmp_path_factory.mktemp("finished"), micro_checkpoint)
    return config, run(config, micro, pull, Numbers())


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


def test_a_stopped_run_goes_on_exactly_where_it_stopped(config, finished, micro):
    stopped = run(config, micro, pull, Numbers(stop=3))
    assert int(stopped["step"]) == 3 and saved(config) == [3]
    data = Numbers()
    resumed = run(config, micro, pull, data)
    assert data.read == 3
    assert_equal(resumed, finished[1])
    assert not np.array_equal(stopped["trainable"][TRAINED], resumed["trainable"][TRAINED])
    assert [line["step"] for line in log(config)] == [2, 3, 4, 6]
    assert [line["number"] for line in log(config)] == [1.5, 4.5, 6.5, 9.5]  # no batch twice, none left out


def test_the_run_can_be_sampled_from(finished, micro):
    config, state = finished
    params, preset = checkpoint.load(config.output)
    assert preset == micro
    assert_equal(params, sampling_params(state))
    assert not np.array_equal(params[TRAINED], state["trainable"][TRAINED])  # averaged


def test_a_finished_run_is_left_alone(finished, micro):
    config, state = finished
    data = Numbers()
    assert_equal(run(config, micro, pull, data), state)
    assert data.read == 0


def test_everything_that_is_frozen_stays_bit_equal(finished, micro_params):
    _, state = finished
    assert state["frozen"].keys() == micro_params.keys() - {TRAINED}
    assert_equal(state["frozen"], {path: micro_params[path] for path in state["frozen"]})


def test_logs_and_checkpoints_come_when_they_should(config, micro):
    run(changed(config, log_every=3, save_every=2, steps=5, keep=2), micro, pull, Numbers())
    assert saved(config) == [4, 5]
    assert [line["step"] for line in log(config)] == [2, 3, 4, 5]
    assert all(line.keys() >= {"loss", "grad_norm", "number", "steps_per_second", "data_wait"} for line in log(config))


def test_previews_come_when_they_should(config, micro, finished):
    shown = {}

    def preview(params, step):
        shown[step] = jax.device_get(params)
        return {"preview/step": float(step)}

    seen = changed(config, preview=PreviewConfig(every=4), log_every=3)
    assert_equal(run(seen, micro, pull, Numbers(), preview=preview), finished[1])
    assert shown.keys() == {4} and shown[4].keys() == finished[1]["frozen"].keys() | {TRAINED}
    assert [(line["step"], line.get("preview/step")) for line in log(seen)] == [(3, None), (4, 4.0), (6, None)]
    run(changed(seen, output=config.output + "_short"), micro, pull, Numbers(stop=4))
    stored, _ = checkpoint.load(config.output + "_short")
    np.testing.assert_array_equal(shown[4][TRAINED], stored[TRAINED])


def test_every_checkpoint_holds_the_state_of_its_own_step(config, micro, tmp_path):
    """Saving happens in the background, while the next step reuses the memory of the state."""
    state = run(changed(config, output=str(tmp_path / "alone")), micro, pull, Numbers(stop=2))
    run(changed(config, save_every=1), micro, pull, Numbers(stop=4))
    assert saved(config) == [1, 2, 3, 4]
    stored, _ = checkpoint.load(Path(config.output) / "checkpoints" / "2")
    np.testing.assert_array_equal(stored[TRAINED], state["ema"][TRAINED])


def test_nan_is_noticed_before_it_is_saved(config, micro):
    """The third batch is bad; the next save is due at step 4, the next log at 100."""

    def spoilt(model, batch, key):
        value, metrics = pull(model, batch, key)
        return jnp.where(metrics["number"] == 4.5, jnp.nan, value), metrics

    bad = changed(config, log_every=100, save_every=2)
    message = refusal(bad, micro, spoilt, Numbers())
    assert "loss nan" in message and "at step 3;" in message and config.output in message
    assert "--optim.learning-rate" in message
    assert saved(bad) == [2]


def test_a_gradient_that_is_not_a_number_is_noticed_too(config, micro):
    def steep(model, batch, key):  # 0 at 0, where the slope is infinite
        return jnp.sqrt(jnp.abs(model.vae.quant_conv.bias[...] * 0)).sum(), {}

    assert "loss 0.0, gradient nan at step 1;" in refusal(config, micro, steep, Numbers())
    assert saved(config) == []


def test_init_takes_weights_only(config, finished, micro):
    begun, first = finished
    still = OptimConfig(learning_rate=0.0, weight_decay=0.0)
    state = run(changed(config, init=begun.output, steps=1, optim=still), micro, pull, Numbers())
    assert int(state["step"]) == 1 and int(state["opt"][1][0].count) == 1
    np.testing.assert_array_equal(state["trainable"][TRAINED], first["ema"][TRAINED])
    np.testing.assert_allclose(state["ema"][TRAINED], first["ema"][TRAINED], rtol=1e-6)


def test_a_run_goes_on_without_the_checkpoint_that_it_began_from(config, micro, micro_checkpoint, tmp_path):
    begun = changed(config, init=str(shutil.copytree(micro_checkpoint, tmp_path / "begin")))
    run(begun, micro, pull, Numbers(stop=3))
    shutil.rmtree(begun.init)
    assert int(run(begun, micro, pull, Numbers())["step"]) == 6
    assert "begin: no such checkpoint" in refusal(changed(begun, output=str(tmp_path / "new")), micro, pull, Numbers())


def test_without_averages(config, micro):
    plain = changed(config, optim=dataclasses.replace(config.optim, ema=0.0))
    run(plain, micro, pull, Numbers(stop=2))
    state = run(plain, micro, pull, Numbers())
    assert state["ema"] == {}
    np.testing.assert_array_equal(checkpoint.load(config.output)[0][TRAINED], state["trainable"][TRAINED])


def test_other_trainable_parameters_cannot_go_on(config, micro):
    run(config, micro, pull, Numbers(stop=2))
    message = refusal(changed(config, trainable=r"vae\.quant_conv"), micro, pull, Numbers())
    assert f"{config.output}/checkpoints/2: this run cannot go on" in message and "--output" in message


def test_a_damaged_run_cannot_go_on(config, micro):
    run(config, micro, pull, Numbers(stop=2))
    shutil.rmtree(Path(config.output) / "checkpoints" / "2" / "train")
    assert "checkpoints/2: this run cannot go on" in refusal(config, micro, pull, Numbers())


def test_without_a_checkpoint_the_weights_are_fresh(config, micro, micro_params, monkeypatch):
    fresh = {path: 2 * array for path, array in jax.device_get(micro_params).items()}
    asked = []
    monkeypatch.setattr(P, "initialise", lambda *arguments: asked.append(arguments) or fresh)
    state = run(changed(config, init=None, seed=7, steps=1), micro, pull, Numbers())
    assert asked == [(micro.model, 7)]
    assert_equal(state["frozen"], {path: fresh[path] for path in state["frozen"]})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"log_every": 0}, "--log-every 0: must be at least 1"),
        ({"save_every": -1}, "--save-every -1: must be at least 1"),
        ({"keep": 0}, "--keep 0: must be at least 1"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        ({"trainable": "motion"}, "--trainable 'motion' matches no parameter"),
        ({"init": "nowhere"}, "nowhere: no such checkpoint"),
    ],
)
def test_impossible_options(config, micro, fields, message):
    assert message in refusal(changed(config, **fields), micro, pull, Numbers())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_only_the_first_interrupt_is_a_wish(number):
    reached = []
    before = signal.signal(number, lambda *_: reached.append(number))
    try:
        with Interrupt() as stop:
            assert not stop.asked
            signal.raise_signal(number)
            assert stop.asked and not reached
            signal.raise_signal(number)
            assert reached == [number]
        signal.raise_signal(number)
        assert len(reached) == 2
    finally:
        signal.signal(number, before)


def test_rendered_people_resume_exactly(config, micro, tmp_path):
    """With the real loader, whose position is more than a number."""
    pytest.importorskip("numba")
    from animate_jax.data.pipeline import batches

    def pull_to_frames(model, batch, key):
        return pull(model, {"number": batch["frames"].astype(jnp.float32)}, key)

    optim = dataclasses.replace(config.optim, decay="constant")
    config = changed(config, log_every=1, data=DataConfig(batch=2, frames=2, span=6, workers=0), optim=optim)
    straight = run(config, micro, pull_to_frames, batches(config.data, micro))
    halves = changed(config, output=str(tmp_path / "halves"))
    run(changed(halves, steps=3), micro, pull_to_frames, batches(config.data, micro))
    resumed = run(halves, micro, pull_to_frames, batches(config.data, micro))
    numbers = [line["number"] for line in log(config)]
    assert [line["number"] for line in log(halves)] == numbers and len(set(numbers)) == 6
    assert_equal(resumed, straight)


# The stages, with the configurations that are trained with.


@pytest.fixture
def stage(tmp_path, micro_checkpoint):
    """A stage's own configuration, made small."""

    def make(name, **fields):
        config = runpy.run_path(str(ROOT / "configs" / f"tiny_{name}.py"))["get_config"]()
        optim = dataclasses.replace(config.optim, learning_rate=1e-2, warmup=1, decay="constant", ema=0.0)
        data = dataclasses.replace(config.data, batch=2, frames=2, workers=0, span=6)
        small = {"output": str(tmp_path / name), "init": str(micro_checkpoint), "log_every": 1, "save_every": 100}
        return dataclasses.replace(config, optim=optim, data=data, **small | fields)

    return make


def losses(config):
    return [line["loss"] for line in log(config)]


def assert_only_moved(state, params, trainable):
    """What is trained has changed, everything else has not, bit by bit."""
    moved = {path for path, array in sampling_params(state).items() if not np.array_equal(array, params[path])}
    assert not {path for path in moved if not trainable(path)}
    assert len(moved) > 0.95 * sum(map(trainable, params))  # a bias in front of a norm may have no effect
    assert moved <= state["trainable"].keys()


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


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (2, 3, 4, 3, 3), np.uint8).repeat(16, 2).repeat(16, 3)  # as a picture is
    return {
        "reference": coarse[:, 0],
        "reference_pose": coarse[:, 1],
        "clip_pixels": random.normal(size=(2, 16, 16, 3)).astype(np.float32),
        "frames": coarse[:, 1:],
        "poses": coarse[:, 1:],
        "masks": coarse[:, 1:, ..., 0],
    }


def test_stage_1_learns_one_batch(stage, micro, micro_params, batch):
    config = stage("stage1", steps=150)  # its timesteps are mostly noisy, where there is little to see
    state = run(config, micro, diffusion_loss(config, micro), Same(batch))
    assert_only_moved(state, micro_params, lambda path: "motion_modules" not in path and not path.startswith("vae."))
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])


def test_stage_2_learns_one_batch_and_moves_no_spatial_weight(stage, micro, micro_params, batch):
    config = stage("stage2", steps=50)
    state = run(config, micro, diffusion_loss(config, micro), Same(batch))
    assert_only_moved(state, micro_params, lambda path: "motion_modules" in path)
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])


def test_the_autoencoder_learns_one_batch(stage, micro, micro_params, batch):
    config = stage("vae", steps=50, trainable=r"vae\.", vae_loss=VAELossConfig(crop=32))
    loss = vae_loss(config, lambda a, b: jnp.square(a - b).mean((1, 2, 3)))
    state = run(config, micro, loss, Same(batch))
    assert_only_moved(state, micro_params, lambda path: path.startswith("vae."))
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])
