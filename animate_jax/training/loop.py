"""The training loop: start or resume, step, log, save, stop cleanly."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
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


def run(config: TrainConfig, preset: Preset, loss: Loss, data: Iterator[Any]) -> State:
    """Trains to `config.steps` and returns the last state.

    Where the weights come from, first that exists: the run's own latest checkpoint (exact resume: parameters,
    moments, averages, data position), `config.init` (weights only), fresh ones. Interrupts (Ctrl-C, SIGTERM) save
    before leaving.

    Args:
        data: batches of NumPy arrays; Orbax saves and restores its position, as that of any grain iterator.

    Raises:
        UserError: impossible options; weights to start from that are missing, damaged or of another shape; or the
            loss became NaN or infinite (nothing is saved over the last checkpoint).
    """
    mesh = make_mesh()
    for option in ("steps", "log_every", "save_every", "keep"):
        if getattr(config, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(config, option)}: must be at least 1")
    if config.data.batch % mesh.size:
        raise UserError(f"--data.batch {config.data.batch}: must be a multiple of the {mesh.size} devices")

    graphdef, shapes = P.abstract(preset.model)
    tx = optimizer(config.optim, config.steps)
    make = functools.partial(make_state, trainable=config.trainable, tx=tx, ema=config.optim.ema > 0)
    abstract = jax.eval_shape(make, shapes)
    layout = shardings(abstract, mesh)
    step_fn = jax.jit(make_step(graphdef, loss, tx, config.optim.ema), donate_argnums=0, out_shardings=(layout, None))
    key = jax.random.key(config.seed)

    with Checkpoints(config, preset) as checkpoints, MetricWriter(config.output) as writer, Interrupt() as stop:
        state = checkpoints.restore(abstract, layout, data)
        if state is None:
            state = jax.device_put(make(starting_params(config, preset)), layout)
        first = last_logged = int(state["step"])
        window: list[dict[str, jax.Array]] = []
        waited, started = 0.0, time.monotonic()
        with tqdm(total=config.steps, initial=first, desc=config.stage, unit="step", dynamic_ncols=True) as bar:
            for done in range(first + 1, config.steps + 1):
                before = time.monotonic()
                batch = to_devices(next(data), mesh)
                waited += time.monotonic() - before
                state, metrics = step_fn(state, batch, key)
                window.append(metrics)
                jax.block_until_ready(window[-2:][0])  # the step before this one, so that the bar tells the truth
                bar.update()
                last = stop.asked or done == config.steps
                save = last or done % config.save_every == 0
                if save or done % config.log_every == 0:
                    means = summarise(window, last_logged + 1, config.output)
                    seconds = time.monotonic() - started
                    means |= {"steps_per_second": len(window) / seconds, "data_wait": waited / seconds}
                    writer.write(done, means)
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    window, waited, started, last_logged = [], 0.0, time.monotonic(), done
                if save:
                    checkpoints.save(state, data)
                if last:
                    break
    return state


def starting_params(config: TrainConfig, preset: Preset) -> P.Params:
    """The parameters of `config.init`, or fresh ones.

    Raises:
        UserError: the checkpoint is missing or of another shape.
    """
    if config.init is None:
        return P.initialise(preset.model, config.seed)
    return checkpoint.load(config.init, preset)[0]


def summarise(window: list[dict[str, jax.Array]], first: int, output: str) -> dict[str, float]:
    """Every metric's mean over the steps that have it. NaN stands for none, as with noise levels that were not drawn.

    Raises:
        UserError: loss or gradient of a step, counted from `first`, is not finite.
    """
    values = {name: np.stack([metrics[name] for metrics in jax.device_get(window)]) for name in window[0]}
    finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
    if not finite.all():
        bad = int(finite.argmin())
        raise UserError(
            f"{output}: loss {values['loss'][bad]}, gradient {values['grad_norm'][bad]} at step {first + bad}; "
            "the last checkpoint is intact: lower --optim.learning-rate or look at the data"
        )
    return {name: float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}


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
