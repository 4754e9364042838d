"""The training loop: exact resume, clean stops, refusals; then a few steps of every stage with its real loss."""

import dataclasses
import errno
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.config import DataConfig, MeshConfig, OptimConfig, PreviewConfig, TrainConfig, VAELossConfig
from animate_jax.errors import UserError
from animate_jax.models.params import init_params
from animate_jax.training.goodput import read
from animate_jax.training.guards import Interrupt, alone
from animate_jax.training.loop import Skips, run
from animate_jax.training.losses import DiffusionLoss, VAELoss
from animate_jax.training.state import sampling_params
from tests.conftest import MICRO, using

ROOT = Path(__file__).parents[2]


pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

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
        preset=MICRO, stage="stage1", output=str(output), init=str(init), trainable=r"vae\.quant_conv\.bias",
        steps=6, log_every=2, save_every=100, keep_last=10, data=DataConfig(batch=2),
        optim=OptimConfig(learning_rate=0.1, decay="cosine"),
    )  # fmt: skip


@pytest.fixture
def config(tmp_path, micro_checkpoint) -> TrainConfig:
    return pulling(tmp_path / "run", micro_checkpoint)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, micro, micro_checkpoint, compile_fast):
    """A whole run: its configuration and its last state."""
    config = pulling(tmp_path_factory.mktemp("finished"), micro_checkpoint)
    return config, run(config, pull, Numbers())


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
    stopped = run(config, pull, Numbers(stop=3))
    assert int(stopped["step"]) == 3 and saved(config) == [3]
    data = Numbers()
    resumed = run(config, pull, data)
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
    assert_equal(run(config, pull, data), state)
    assert data.read == 0


def test_everything_that_is_frozen_stays_bit_equal(finished, micro_params):
    _, state = finished
    assert state["frozen"].keys() == micro_params.keys() - {TRAINED}
    assert_equal(state["frozen"], {path: micro_params[path] for path in state["frozen"]})


def test_logs_and_checkpoints_come_when_they_should(config, micro):
    run(changed(config, log_every=3, save_every=2, steps=5, keep_last=2), pull, Numbers())
    assert saved(config) == [4, 5]
    assert [line["step"] for line in log(config)] == [2, 3, 4, 5]
    assert all(line.keys() >= {"loss", "grad_norm", "number", "steps_per_second", "data_wait"} for line in log(config))


def test_previews_come_when_they_should(config, micro, finished):
    shown = {}

    def preview(params, step):
        shown[step] = jax.device_get(params)
        return {"preview/step": float(step)}

    seen = changed(config, preview=PreviewConfig(every=4), log_every=3)
    assert_equal(run(seen, pull, Numbers(), preview=preview), finished[1])
    assert shown.keys() == {4} and shown[4].keys() == finished[1]["frozen"].keys() | {TRAINED}
    assert [(line["step"], line.get("preview/step")) for line in log(seen)] == [(3, None), (4, 4.0), (6, None)]
    run(changed(seen, output=config.output + "_short"), pull, Numbers(stop=4))
    stored, _ = checkpoint.load(config.output + "_short")
    np.testing.assert_array_equal(shown[4][TRAINED], stored[TRAINED])


def test_every_checkpoint_holds_the_state_of_its_own_step(config, micro, tmp_path):
    """Saving happens in the background, while the next step reuses the memory of the state."""
    state = run(changed(config, output=str(tmp_path / "alone")), pull, Numbers(stop=2))
    run(changed(config, save_every=1), pull, Numbers(stop=4))
    assert saved(config) == [1, 2, 3, 4]
    stored, _ = checkpoint.load(Path(config.output) / "checkpoints" / "2")
    np.testing.assert_array_equal(stored[TRAINED], state["ema"][TRAINED])


def spoilt(*bad):
    """`pull`, whose loss is not a number in batches of these numbers."""

    def loss(model, batch, key):
        value, metrics = pull(model, batch, key)
        return jnp.where(jnp.isin(metrics["number"], jnp.array(bad)), jnp.nan, value), metrics

    return loss


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(config, micro):
    """The third batch of six is bad: the run is, but for the number of steps, one without that step."""
    state = run(changed(config, save_every=1), spoilt(4.5), Numbers())
    before, after = (checkpoint.load(Path(config.output) / "checkpoints" / str(step))[0] for step in (2, 3))
    assert_equal(before, after)
    assert int(state["step"]) == 6 and int(state["opt"][1][0].count) == 5
    assert [line["skipped"] for line in log(config)] == [0, 0, 1, 0, 0, 0]
    assert log(config)[2]["loss"] is None and np.isfinite(state["trainable"][TRAINED]).all()


def test_only_a_row_of_skipped_steps_ends_the_run(config, micro, monkeypatch):
    monkeypatch.setattr(Skips, "MOST", 2)
    bad = spoilt(4.5, 8.5, 10.5)  # steps 3, 5 and 6
    message = refusal(changed(config, log_every=5, save_every=2), bad, Numbers())
    assert f"{config.output}: loss nan, gradient 0 at step 6: 2 steps in a row" in message
    assert "--seed" in message and "--optim.learning-rate" in message and saved(config) == [2, 4]


def test_a_gradient_that_is_not_a_number_is_skipped_too(config, micro, monkeypatch):
    def steep(model, batch, key):  # 0 at 0, where the slope is infinite
        return jnp.sqrt(jnp.abs(model.vae.quant_conv.bias[...] * 0)).sum(), {}

    monkeypatch.setattr(Skips, "MOST", 6)
    assert "loss 0, gradient nan at step 6" in refusal(config, steep, Numbers())


def test_init_takes_weights_only(config, finished, micro):
    begun, first = finished
    still = OptimConfig(learning_rate=0.0, weight_decay=0.0)
    state = run(changed(config, init=begun.output, steps=1, optim=still), pull, Numbers())
    assert int(state["step"]) == 1 and int(state["opt"][1][0].count) == 1
    np.testing.assert_array_equal(state["trainable"][TRAINED], first["ema"][TRAINED])
    np.testing.assert_allclose(state["ema"][TRAINED], first["ema"][TRAINED], rtol=1e-6)


def test_a_run_goes_on_without_the_checkpoint_that_it_began_from(config, micro, micro_checkpoint, tmp_path):
    begun = changed(config, init=str(shutil.copytree(micro_checkpoint, tmp_path / "begin")))
    run(begun, pull, Numbers(stop=3))
    shutil.rmtree(begun.init)
    assert int(run(begun, pull, Numbers())["step"]) == 6
    assert "begin: no such checkpoint" in refusal(changed(begun, output=str(tmp_path / "new")), pull, Numbers())


def test_without_averages(config, micro):
    plain = changed(config, optim=dataclasses.replace(config.optim, ema=0.0))
    run(plain, pull, Numbers(stop=2))
    state = run(plain, pull, Numbers())
    assert state["ema"] == {}
    np.testing.assert_array_equal(checkpoint.load(config.output)[0][TRAINED], state["trainable"][TRAINED])


def other(micro, **schedule):
    return dataclasses.replace(micro, name="other", schedule=dataclasses.replace(micro.schedule, **schedule))


def test_its_owner_can_follow(config, micro, capfd):
    """Lines where nobody watches a terminal, and events over both starts."""
    stop = Interrupt()
    run(changed(config, log_every=1), pull, Numbers(stop=3), None, None, stop)
    assert stop.status == 143
    said = capfd.readouterr().err
    assert "compiling the step" in said and "\nstep 2 of 6, loss " in said and " left\n" in said
    assert said.endswith("stopped after step 3 of 6; the same command goes on\n")
    run(config, pull, Numbers(), None, None, stop := Interrupt())
    assert stop.status == 0 and "goes on after step 3" in capfd.readouterr().err
    line = log(config)[-1]
    assert line["learning_rate"] == pytest.approx(0.1 * (1 + np.cos(np.pi * 2 / 3)) / 2, rel=1e-5)
    assert line["param_norm"] > 0 and line["update_norm"] > 0 and line["host_memory"] > 0.1
    assert 0 < line["step_seconds_p50"] <= line["step_seconds_p95"] <= line["step_seconds_max"]
    kinds = [event["event"] for event in read(config.output)]
    first = ["start", "initialise", "compile", "steps", "steps", "steps", "save", "stop"]
    assert kinds == [*first, "start", "restore", "compile", "steps", "steps", "save", "stop"]
    assert [event["why"] for event in read(config.output) if event["event"] == "stop"] == ["signal 15", "finished"]


def test_saves_by_the_clock(config, micro):
    run(changed(config, save_minutes=1e-9), pull, Numbers())
    assert saved(config) == [1, 2, 3, 4, 5, 6]


class Reluctant:
    """A file system that refuses to rename so many folders, as gcsfuse does by default."""

    def __init__(self, monkeypatch, times):
        self.times = times
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, functools.partial(self.move, getattr(os, name)))

    def move(self, really, old, new, **options):
        if os.path.isdir(old) and self.times:
            self.times -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(old))
        return really(old, new, **options)


def test_a_save_that_fails_is_told_at_once_and_tried_again(config, micro, monkeypatch, capfd):
    Reluctant(monkeypatch, 1)

    class Slow(Numbers):
        def __next__(self):
            time.sleep(0.8)  # the save ends before the next one is due
            return super().__next__()

    run(changed(config, save_every=3, log_every=1), pull, Slow())
    assert saved(config) in ([4, 6], [5, 6], [6])  # on a busy machine the second try is the last step's
    said = capfd.readouterr().err
    assert "could not be written (OSError: [Errno 24] Too many open files" in said and "Traceback" not in said
    if saved(config) != [6]:
        assert said.index("could not be written") < said.index("step 6 of 6")


def test_a_storage_that_keeps_failing_ends_the_run_at_once(config, micro, monkeypatch, capfd):
    Reluctant(monkeypatch, 100)
    message = refusal(changed(config, save_every=2, log_every=1), pull, Numbers())
    assert f"{config.output}/checkpoints: no checkpoint can be written (OSError: [Errno 24]" in message
    assert log(config)[-1]["step"] < 6 and "Traceback" not in capfd.readouterr().err


def test_a_second_start_is_refused_and_a_killed_one_is_not(config, micro):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom animate_jax.training.guards import alone\n"
         "with alone(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)", config.output],
        stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"}, cwd=ROOT,
    )  # fmt: skip
    assert holder.stdout.readline() == b"held\n"
    message = refusal(config, pull, Numbers())
    assert f"{config.output}: is being trained already by process {holder.pid} on " in message
    holder.kill()
    holder.wait()
    with alone(config.output):
        pass


def test_what_decides_the_result_cannot_change_unnoticed(config, micro):
    run(config, pull, Numbers(stop=2))
    data = dataclasses.replace(config.data, seed=7)
    message = refusal(
        changed(config, data=data, trainable=r"vae\.quant_conv", preset=other(micro, prediction="v")), pull, Numbers()
    )
    assert message.startswith(f"{config.output}: was started with other options: ")
    for part in ("--prediction x0 -> v; ", "--data.seed 0 -> 7", r"vae\.quant_conv\.bias -> vae\.quant_conv;"):
        assert part in message
    assert "--allow-changes" in message
    wider = dataclasses.replace(micro, frames=dataclasses.replace(micro.frames, width=64))
    assert "other options: --size 48 -> 64: give" in refusal(using(config, wider), pull, Numbers())


def test_harmless_changes_and_wanted_ones_go_on(config, micro, capfd):
    run(config, pull, Numbers(stop=2))
    harmless = changed(
        config, steps=3, log_every=1, keep_last=3, mesh=MeshConfig(), data=DataConfig(batch=2, num_workers=3)
    )
    run(harmless, pull, Numbers())
    assert "other options" not in capfd.readouterr().err
    wanted = changed(config, steps=4, seed=7, allow_changes=True)
    assert int(run(wanted, pull, Numbers())["step"]) == 4
    assert "goes on with other options than before: --seed 0 -> 7" in capfd.readouterr().err


def test_other_trainable_parameters_cannot_go_on(config, micro):
    run(config, pull, Numbers(stop=2))
    more = changed(config, trainable=r"vae\.quant_conv", allow_changes=True)
    message = refusal(more, pull, Numbers())
    assert f"{config.output}/checkpoints/2: cannot be restored" in message and f"--init {config.output}" in message


@pytest.mark.parametrize("steps, advice", [([2], "to start again"), ([2, 3], "to go on from step 2")], ids=str)
def test_a_damaged_run_says_what_happened(config, micro, steps, advice):
    for step in steps:
        run(changed(config, steps=step), pull, Numbers())
    shutil.rmtree(Path(config.output) / "checkpoints" / str(steps[-1]) / "train")
    message = refusal(config, pull, Numbers())
    assert f"checkpoints/{steps[-1]}: cannot be restored" in message and advice in message


def test_a_storage_that_fails_is_not_called_damage(config, micro, monkeypatch):
    run(config, pull, Numbers(stop=2))

    def fails(*_):
        raise TimeoutError("the storage answered 503")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.v1.training.Checkpointer.load_checkpointables", fails)
        message = refusal(config, pull, Numbers())
    assert "(TimeoutError: the storage answered 503)" in message and "another --output" not in message
    assert int(run(config, pull, Numbers())["step"]) == 6


def test_without_a_checkpoint_the_weights_are_fresh(config, micro, micro_params, monkeypatch):
    fresh = {path: 2 * array for path, array in jax.device_get(micro_params).items()}
    asked = []
    monkeypatch.setattr("animate_jax.training.loop.init_params", lambda *arguments: asked.append(arguments) or fresh)
    state = run(changed(config, init=None, seed=7, steps=1), pull, Numbers())
    assert asked == [(micro.model, 7)]
    assert_equal(state["frozen"], {path: fresh[path] for path in state["frozen"]})


def without(micro_params, tmp_path, pattern, preset):
    """A checkpoint that lacks a part."""
    left = {path: np.asarray(array) for path, array in micro_params.items() if not re.search(pattern, path)}
    checkpoint.save_batches(tmp_path / "partial", [left], preset)
    return str(tmp_path / "partial")


def test_parts_that_start_as_identity_may_be_missing(config, micro, micro_params, tmp_path, capfd):
    """As in a checkpoint of Stable Diffusion alone, without temporal layers and Pose Guiders."""
    init = without(micro_params, tmp_path, r"^(reference_)?pose_guider\.|motion_modules", micro)
    begun = changed(config, init=init, trainable=r"vae\.quant_conv\.bias|(reference_)?pose_guider", steps=1, seed=5)
    state = run(begun, pull, Numbers())
    assert "partial: has no motion_module, pose_guider, reference_pose_guider: starting fresh" in capfd.readouterr().err
    params, fresh = sampling_params(state), init_params(micro.model, 5)
    for path in fresh:
        still = path not in state["trainable"]
        if still and "motion_modules" in path:
            np.testing.assert_array_equal(params[path], fresh[path])
        elif still:
            np.testing.assert_array_equal(params[path], micro_params[path])
        if re.search(r"pose_guider\.conv_out|motion_modules.*proj_out", path):
            assert not np.any(fresh[path]), "starts as identity"


def test_layers_for_the_warped_reference_may_be_missing(config, micro_copying, micro_params, capfd):
    begun = changed(config, trainable=r"vae\.quant_conv\.bias|.*appearance_", steps=1)
    state = run(using(begun, micro_copying), pull, Numbers())
    assert "has no appearance: starting fresh" in capfd.readouterr().err
    params = sampling_params(state)
    assert {path for path in params if "appearance_" in path} == set(params) - set(micro_params) != set()
    for path in micro_params.keys() & state["frozen"].keys():
        np.testing.assert_array_equal(params[path], micro_params[path])


@pytest.mark.parametrize("stage, part", [("stage1", "pose_guider"), ("stage2", "motion_module"), ("stage1", "vae")])
def test_a_missing_part_that_would_stay_as_it_is_is_refused(config, micro, micro_params, tmp_path, stage, part):
    """Nobody trains the Pose Guider here, or the temporal layers in stage 2; and nothing replaces a VAE."""
    pattern = "motion_modules" if part == "motion_module" else rf"^{part}\."
    init = without(micro_params, tmp_path, pattern, micro)
    begun = changed(config, init=init, stage=stage, trainable=r"vae|reference_unet\.conv_in")
    assert f"lacks {part}: add it with" in refusal(begun, pull, Numbers())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"log_every": 0}, "--log-every 0: must be at least 1"),
        ({"save_every": -1}, "--save-every -1: must be at least 1"),
        ({"keep_last": 0}, "--keep-last 0: must be at least 1"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        ({"save_minutes": -1.0}, "--save-minutes -1.0: must be at least 0"),
        ({"hang_minutes": float("nan")}, "--hang-minutes nan: must be at least 0"),
        ({"trainable": "motion"}, "--trainable 'motion' matches no parameter"),
        ({"init": "nowhere"}, "nowhere: no such checkpoint"),
    ],
)
def test_impossible_options(config, micro, fields, message):
    assert message in refusal(changed(config, **fields), pull, Numbers())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
    from animate_jax.data.loader import batches

    def pull_to_frames(model, batch, key):
        return pull(model, {"number": batch["frames"].astype(jnp.float32)}, key)

    optim = dataclasses.replace(config.optim, decay="constant")
    config = changed(config, log_every=1, data=DataConfig(batch=2, frames=2, clip_frames=6, num_workers=0), optim=optim)
    straight = run(config, pull_to_frames, batches(config))
    halves = changed(config, output=str(tmp_path / "halves"))
    run(changed(halves, steps=3), pull_to_frames, batches(config))
    resumed = run(halves, pull_to_frames, batches(config))
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
    state = run(config, DiffusionLoss(config), Same(batch))
    assert_only_moved(state, micro_params, lambda path: "motion_modules" not in path and not path.startswith("vae."))
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])


def test_stage_2_learns_one_batch_and_moves_no_spatial_weight(stage, micro, micro_params, batch):
    config = stage("stage2", steps=50)
    state = run(config, DiffusionLoss(config), Same(batch))
    assert_only_moved(state, micro_params, lambda path: "motion_modules" in path)
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])


def test_the_autoencoder_learns_one_batch(stage, micro, micro_params, batch):
    config = stage("vae", steps=50, trainable=r"vae\.", vae_loss=VAELossConfig(crop=32))
    loss = VAELoss(config, lambda a, b: jnp.square(a - b).mean((1, 2, 3)))
    state = run(config, loss, Same(batch))
    assert_only_moved(state, micro_params, lambda path: path.startswith("vae."))
    assert np.mean(losses(config)[-10:]) < 0.75 * np.mean(losses(config)[:10])
