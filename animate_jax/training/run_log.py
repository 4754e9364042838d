"""What a run tells while it trains: events, metrics, progress and profiles, and when it hangs or no longer learns."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from animate_jax.config import TrainConfig, to_dict
from animate_jax.errors import UserError
from animate_jax.storage import Mirror
from animate_jax.training.goodput import Events
from animate_jax.training.guards import Interrupt, Watchdog, check_step_memory, memory_used
from animate_jax.training.losses import Metrics
from animate_jax.training.metrics import Clock, MetricWriter, Profile
from animate_jax.training.optimizer import learning_rate
from animate_jax.training.progress import Progress, say
from animate_jax.training.state import TrainState


class RunLog(contextlib.ExitStack):
    """Collects the metrics of every step, and writes their means when asked. Files are written by process 0.

    Args:
        folder: where files are written.
    """

    def __init__(self, config: TrainConfig, folder: Mirror, mesh: Mesh):
        super().__init__()
        self._config, self._folder = config, folder
        self._clock = Clock(config.data.batch * config.data.frames, mesh.devices.flat[0].device_kind)
        self._learning_rate = learning_rate(config.optim, config.steps)
        self._pending: list[Metrics] = []  # of the steps since the last summary
        self._skips = Skips(config.output)

    def __enter__(self) -> RunLog:
        super().__enter__()
        self._opened = time.monotonic()
        self._events = self.enter_context(Events(self._folder.path, jax.process_index() == 0))
        self._watchdog = self.enter_context(Watchdog(self._config.hang_minutes))
        return self

    def begin(self, first: int, resumed: bool) -> None:
        """The run has its state, after `first` steps."""
        config, path = self._config, self._folder.path
        self._events.add("restore" if resumed else "initialise", step=first, seconds=time.monotonic() - self._opened)
        if first:
            say(f"goes on after step {first}")
        self._writer = self.enter_context(MetricWriter(path, first, to_dict(config) if config.wandb else None))
        self._profile = self.enter_context(Profile(path, first, config.profile and jax.process_index() == 0))
        self._progress = self.enter_context(Progress(config.stage, first, config.steps))

    def timed(self, event: str, **fields: Any) -> contextlib.AbstractContextManager[None]:
        """Around what is not a step: saving, previews."""
        return self._events.timed(event, **fields)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Around the time spent waiting for data."""
        self._watchdog.arm()
        return self._clock.waiting()

    def compile(self, step: Any, state: TrainState, batch: Any, key: jax.Array) -> jax.stages.Compiled:
        """Compiles the jitted step, and learns how much it computes."""
        self._watchdog.disarm()
        with self._progress.compiling(), self.timed("compile"):
            compiled = step.lower(state, batch, key).compile()
        check_step_memory(compiled)
        self._clock.start(compiled, state.trainable, self._config.accumulate)
        return compiled

    def stepping(self, step: int, state: TrainState) -> contextlib.AbstractContextManager[None]:
        """Around a step, which is named in profiles."""
        self._profile.before(step, state)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def add(self, metrics: Metrics) -> None:
        """The metrics of a step that has been started. Waits for the step before it, so that the progress is true."""
        self._pending.append(metrics)
        jax.block_until_ready(self._pending[-2:][0])
        self._clock.tick()
        self._progress.step()

    def summarize(self, step: int, data: Any) -> dict[str, float]:
        """Means over the steps since the last summary, up to `step`; they are shown, but not written yet.

        Raises:
            UserError: too many steps in a row had no update.
        """
        count = len(self._pending)
        means = summarize(self._pending) | self._clock.rates(count) | memory_used()
        means["learning_rate"] = float(np.asarray(self._learning_rate(step - 1)))
        if damaged := len(getattr(data, "damaged", ())):
            means["damaged_clips"] = damaged
        self._events.add("steps", step=step, steps=count, seconds=self._clock.seconds, waited=self._clock.waited)
        self._progress.log(step, means)
        self._watchdog.disarm()
        self._skips.check(self._pending, step - count + 1)
        return means

    def write(self, step: int, means: dict[str, float]) -> None:
        """Writes a summary, and begins the next one."""
        self._writer.write(step, means)
        if failure := self._folder.sync():
            say(f"{failure}; trying again in a minute")
        self._pending = []
        self._clock.restart()

    def end(self, step: int, stop: Interrupt) -> None:
        self._events.add("stop", step=step, why=f"signal {stop.number}" if stop.stopped else "finished")


def summarize(metrics: list[Metrics]) -> dict[str, float]:
    """Means over the steps whose update counted, and how many were skipped; NaN marks a step without that metric, for
    instance of noise levels that were not drawn."""
    values = {name: np.stack([each[name] for each in jax.device_get(metrics)]) for name in metrics[0]}
    skipped = values.pop("skipped", np.zeros(len(metrics))).astype(bool)
    known = {name: value[~skipped & ~np.isnan(value)] for name, value in values.items()}
    means = {name: float(value.mean()) for name, value in known.items() if len(value)}
    return {"loss": math.nan, "grad_norm": math.nan} | means | {"skipped": float(skipped.sum())}


class Skips:
    """Counts the steps in a row whose update was skipped."""

    MAX_IN_A_ROW = 20

    def __init__(self, output: str):
        self._output, self._count = output, 0

    def check(self, metrics: list[Metrics], first: int) -> None:
        """
        Args:
            metrics: of the steps from `first` on.

        Raises:
            UserError: `MAX_IN_A_ROW` steps in a row were skipped, which does not end by itself.
        """
        for step, each in enumerate(jax.device_get(metrics), first):
            self._count = self._count + 1 if each["skipped"] else 0
            if self._count >= self.MAX_IN_A_ROW:
                raise UserError(
                    f"{self._output}: loss {each['loss']:g}, gradient {each['grad_norm']:g} at step {step}: "
                    f"{self._count} steps in a row without an update; the last checkpoint is good: go on from it with "
                    "--allow-changes and another --seed, or a lower --optim.learning-rate"
                )
