"""The training loop: start or resume, step, log, save, stop cleanly."""

from __future__ import annotations

import math
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from animate_jax.config import Preset, TrainConfig
from animate_jax.errors import UserError
from animate_jax.models import params as P
from animate_jax.parallel.mesh import make_mesh, to_devices
from animate_jax.parallel.rules import shardings
from animate_jax.training.checkpoint import Checkpoints
from animate_jax.training.metrics import MetricWriter
from animate_jax.training.state import State, make_state, optimizer
from animate_jax.training.step import Loss, make_step
from animate_jax.weights import checkpoint


def starting_params(config: TrainConfig, preset: Preset) -> P.Params:
    """Fresh parameters, with those of `config.init` (weights only) laid over them.

    Raises:
        UserError: the checkpoint is missing or of another shape.
    """
    params = P.initialise(preset.model, config.seed)
    if config.init is None:
        return params
    loaded, _ = checkpoint.load(config.init, preset)
    return {**params, **loaded}


def run(config: TrainConfig, preset: Preset, loss: Loss, data: Iterator[Any]) -> State:
    """Trains to `config.steps` and returns the last state.

    Where the weights come from, first that exists: the run's own latest checkpoint (exact resume: parameters,
    moments, averages, data position), `config.init`, fresh ones. Interrupts (Ctrl-C, SIGTERM) save before leaving.

    Raises:
        UserError: the loss became NaN or infinite (names the steps; nothing is saved over the last checkpoint).
    """
    graphdef, _ = P.abstract(preset.model)
    tx = optimizer(config.optim, config.steps)
    mesh = make_mesh()
    state = make_state(starting_params(config, preset), config.trainable, tx, ema=config.optim.ema > 0)
    layout = shardings(state, mesh)
    state = jax.device_put(state, layout)
    step_fn = jax.jit(make_step(graphdef, loss, tx, config.optim.ema), donate_argnums=0, out_shardings=(layout, None))
    key = jax.random.key(config.seed)

    stop = Interrupt()
    with (
        Checkpoints(config, preset) as checkpoints,
        MetricWriter(pathlib.Path(config.output)) as writer,
        stop,
    ):
        state = checkpoints.restore(state, data) or state
        first = last_logged = int(state["step"])
        window: list[dict[str, jax.Array]] = []
        waited, started = 0.0, time.monotonic()
        bar = tqdm(total=config.steps, initial=first, desc=config.stage, unit="step", dynamic_ncols=True)
        for number in range(first, config.steps):
            before = time.monotonic()
            batch = to_devices(next(data), mesh)
            waited += time.monotonic() - before
            state, metrics = step_fn(state, batch, key)
            window.append(metrics)
            bar.update()
            done = number + 1
            if done % config.log_every == 0 or done == config.steps:
                means = {name: float(jnp.mean(jnp.stack([m[name] for m in window]))) for name in metrics}
                if not math.isfinite(means["loss"]):
                    raise UserError(
                        f"{config.output}: the loss became {means['loss']} between steps {last_logged} and {done}; "
                        "the last checkpoint is intact: lower --optim.learning-rate or look at the data"
                    )
                seconds = time.monotonic() - started
                means |= {"steps_per_second": len(window) / seconds, "data_wait": waited / seconds}
                writer.write(done, means)
                bar.set_postfix(loss=f"{means['loss']:.4f}")
                window, waited, started, last_logged = [], 0.0, time.monotonic(), done
            if done % config.save_every == 0 or done == config.steps or stop.asked:
                checkpoints.save(state, data)
            if stop.asked:
                break
        bar.close()
    return state


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the current step; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _ask(self, *_) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
