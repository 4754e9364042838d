"""The training loop: exact resume, logs, previews, saves, clean stops, steps that are not finite."""

import dataclasses
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.config import DataConfig, OptimConfig, PreviewConfig
from animate_jax.training.goodput import read
from animate_jax.training.guards import Interrupt
from animate_jax.training.loop import run, starting_params
from animate_jax.training.run_log import Skips
from animate_jax.training.state import sampling_params
from tests.training.conftest import TRAINED, Numbers, assert_equal, changed, log, pull, pulling, refusal, saved

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, micro, micro_checkpoint, compile_fast):
    """A whole run: its configuration and its last state."""
    config = pulling(tmp_path_factory.mktemp("finished"), micro_checkpoint)
    return config, run(config, pull, Numbers())


def test_a_stopped_run_goes_on_exactly_where_it_stopped(config, finished, micro):
    stopped = run(config, pull, Numbers(stop=3))
    assert int(stopped.step) == 3 and saved(config) == [3]
    data = Numbers()
    resumed = run(config, pull, data)
    assert data.read == 3
    assert_equal(resumed, finished[1])
    assert not np.array_equal(stopped.trainable[TRAINED], resumed.trainable[TRAINED])
    assert [line["step"] for line in log(config)] == [2, 3, 4, 6]
    assert [line["number"] for line in log(config)] == [1.5, 4.5, 6.5, 9.5]  # no batch twice, none left out


def test_the_run_can_be_sampled_from(finished, micro):
    config, state = finished
    params, preset = checkpoint.load(config.output)
    assert preset == micro
    assert_equal(params, sampling_params(state))
    assert not np.array_equal(params[TRAINED], state.trainable[TRAINED])  # averaged


def test_a_finished_run_is_left_alone(finished, micro):
    config, state = finished
    data = Numbers()
    assert_equal(run(config, pull, data), state)
    assert data.read == 0


def test_everything_that_is_frozen_stays_bit_equal(finished, micro_params):
    _, state = finished
    assert state.frozen.keys() == micro_params.keys() - {TRAINED}
    assert_equal(state.frozen, {path: micro_params[path] for path in state.frozen})


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
    assert shown.keys() == {4} and shown[4].keys() == finished[1].frozen.keys() | {TRAINED}
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
    np.testing.assert_array_equal(stored[TRAINED], state.ema[TRAINED])


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
    assert int(state.step) == 6 and int(state.opt[1][0].count) == 5
    assert [line["skipped"] for line in log(config)] == [0, 0, 1, 0, 0, 0]
    assert log(config)[2]["loss"] is None and np.isfinite(state.trainable[TRAINED]).all()


def test_only_a_row_of_skipped_steps_ends_the_run(config, micro, monkeypatch):
    monkeypatch.setattr(Skips, "MAX_IN_A_ROW", 2)
    bad = spoilt(4.5, 8.5, 10.5)  # steps 3, 5 and 6
    message = refusal(changed(config, log_every=5, save_every=2), bad, Numbers())
    assert f"{config.output}: loss nan, gradient 0 at step 6: 2 steps in a row" in message
    assert "--seed" in message and "--optim.learning-rate" in message and saved(config) == [2, 4]


def test_a_gradient_that_is_not_a_number_is_skipped_too(config, micro, monkeypatch):
    def steep(model, batch, key):  # 0 at 0, where the slope is infinite
        return jnp.sqrt(jnp.abs(model.vae.quant_conv.bias[...] * 0)).sum(), {}

    monkeypatch.setattr(Skips, "MAX_IN_A_ROW", 6)
    assert "loss 0, gradient nan at step 6" in refusal(config, steep, Numbers())


def test_init_takes_weights_only(config, finished, micro):
    begun, first = finished
    still = OptimConfig(learning_rate=0.0, weight_decay=0.0)
    state = run(changed(config, init=begun.output, steps=1, optim=still), pull, Numbers())
    assert int(state.step) == 1 and int(state.opt[1][0].count) == 1
    np.testing.assert_array_equal(state.trainable[TRAINED], first.ema[TRAINED])
    np.testing.assert_allclose(state.ema[TRAINED], first.ema[TRAINED], rtol=1e-6)


def test_without_averages(config, micro):
    plain = changed(config, optim=dataclasses.replace(config.optim, ema=0.0))
    run(plain, pull, Numbers(stop=2))
    state = run(plain, pull, Numbers())
    assert state.ema == {}
    np.testing.assert_array_equal(checkpoint.load(config.output)[0][TRAINED], state.trainable[TRAINED])


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


def test_a_wish_to_stop_before_the_first_step_waits_for_no_compiler(config, micro, monkeypatch):
    def interrupted(*inputs):
        signal.raise_signal(signal.SIGTERM)
        return starting_params(*inputs)

    monkeypatch.setattr("animate_jax.training.loop.starting_params", interrupted)
    state = run(config, pull, Numbers(), None, None, stop := Interrupt())
    assert int(state.step) == 0 and stop.status == 143
    assert [event["event"] for event in read(config.output)] == ["start", "initialise", "stop"]
    monkeypatch.undo()
    assert int(run(config, pull, Numbers()).step) == 6


def test_saves_by_the_clock(config, micro):
    run(changed(config, save_minutes=1e-9), pull, Numbers())
    assert saved(config) == [1, 2, 3, 4, 5, 6]


def test_rendered_people_resume_exactly(config, micro, tmp_path):
    """With the real loader, whose position is more than a number."""
    pytest.importorskip("numba")
    from animate_jax.data.loader import batches

    def pull_to_frames(model, batch, key):
        return pull(model, {"number": batch.frames.astype(jnp.float32)}, key)

    optim = dataclasses.replace(config.optim, decay="constant")
    config = changed(config, log_every=1, data=DataConfig(batch=2, frames=2, clip_frames=6, num_workers=0), optim=optim)
    straight = run(config, pull_to_frames, batches(config))
    halves = changed(config, output=str(tmp_path / "halves"))
    run(changed(halves, steps=3), pull_to_frames, batches(config))
    resumed = run(halves, pull_to_frames, batches(config))
    numbers = [line["number"] for line in log(config)]
    assert [line["number"] for line in log(halves)] == numbers and len(set(numbers)) == 6
    assert_equal(resumed, straight)
