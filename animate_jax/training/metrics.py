"""Writers of a run's metrics (JSON lines, TensorBoard, on demand Weights & Biases), profiles and step times."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from animate_jax.atomic import atomic_file
from animate_jax.errors import UserError
from animate_jax.models.params import Params
from animate_jax.parallel.chips import find_chip
from animate_jax.parallel.forecast import step_flops
from animate_jax.parallel.hlo import recomputed_flops

# tensorboardX imports torch if it can: 3 s, for tensors that it never gets here. None makes that import fail.
_torch = sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]  # None is meant
from tensorboardX import SummaryWriter  # noqa: E402

if _torch is None:
    del sys.modules["torch"]


METRICS = "metrics.jsonl"


class MetricWriter:
    """Appends `{"step": ..., name: value, ...}` to `<directory>/metrics.jsonl`, and TensorBoard scalars.

    Lines are flushed one by one. NaN and infinity are written as null, because JSON has neither.

    Args:
        step: where the run begins or goes on. Lines that a killed run had written about later steps are removed, as
            these steps are done again.
        wandb: None, or the configuration to show there; the run has its directory's name, in the project of the
            environment variable WANDB_PROJECT.

    Raises:
        UserError: Weights & Biases is asked for and not installed.
    """

    def __init__(self, directory: str | pathlib.Path, step: int, wandb: dict[str, Any] | None = None):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lines = directory / METRICS
        if lines.exists():
            truncate_after(lines, step)
        self._lines = lines.open("a")
        self._board = SummaryWriter(str(directory), purge_step=step + 1)
        self._wandb = start_wandb(directory, wandb) if wandb is not None else None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if self._active:
            self._lines.close()
            self._board.close()
            if self._wandb is not None:
                self._wandb.finish(exit_code=int(kind is not None))

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        self._lines.flush()
        for name in filter(lambda name: finite[name] is not None, finite):
            self._board.add_scalar(name, finite[name], step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)


def truncate_after(lines: pathlib.Path, step: int) -> None:
    """Removes the lines of later steps, and a last line that was cut off while it was written.

    Raises:
        UserError: another line is not a step's metrics.
    """
    old = lines.read_text().splitlines(keepends=True)
    kept = []
    for number, line in enumerate(old, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.removesuffix("\n") + "\n")
        except (ValueError, TypeError, KeyError) as error:
            if number < len(old) or line.endswith("\n"):
                raise UserError(f"{lines}: line {number} is no step's metrics: move the file away") from error
    if kept != old:
        with atomic_file(lines) as fresh:
            fresh.write_text("".join(kept))


def start_wandb(directory: pathlib.Path, config: dict[str, Any]) -> Any:
    """Starts or resumes the run there, under a random number of its own, as many folders have the same name."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # not among the test packages
    except ImportError:
        raise UserError("--wandb: needs the package wandb: pip install 'animate-jax[wandb]'") from None
    stored = directory / "wandb.json"
    if not stored.exists():
        with atomic_file(stored) as fresh:
            fresh.write_text(json.dumps({"id": secrets.token_hex(6)}))
    identity = json.loads(stored.read_text())["id"]
    return wandb.init(name=directory.name, id=identity, resume="allow", dir=directory, config=config)


class Profile:
    """Profiles three steps into `<directory>/profile`, for XProf, TensorBoard or Perfetto: with `wanted` after the
    first two, which compile and warm up, and whenever the process receives SIGUSR1."""

    def __init__(self, directory: str | pathlib.Path, first: int, wanted: bool):
        self._directory = pathlib.Path(directory) / "profile"
        self._begin = first + 3 if wanted else None
        self._end: int | None = None  # while tracing
        self._asked, self._previous = False, None

    def __enter__(self) -> Profile:
        self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_) -> None:
        self._stop()
        signal.signal(signal.SIGUSR1, self._previous)

    def _ask(self, *_) -> None:
        self._asked = True

    def _stop(self) -> None:
        if self._end is not None:
            jax.profiler.stop_trace()
            self._end = None

    def before(self, step: int, state: Any) -> None:
        """Before every step, with the state that goes into it."""
        if step == self._end:
            jax.block_until_ready(state)
            self._stop()
        elif self._end is None and (step == self._begin or self._asked):
            self._asked = False
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._end = step + 3


class Clock:
    """How fast the steps since the last restart were; compiling, saving and previews do not count.

    Args:
        images: per step, over all devices.
        device_kind: of which model FLOP utilization is known if its peak is.
    """

    def __init__(self, images: int, device_kind: str):
        self._images, self._chip, self._flops = images, find_chip(device_kind), 0.0
        self._again: float | None = None
        self.restart()

    def start(self, step: jax.stages.Compiled, trainable: Params, passes: int = 1) -> None:
        """`passes` micro-batches make a step."""
        if self._chip:
            self._flops, self._again = step_flops(step, trainable, passes), recomputed_flops(step.as_text() or "")
        self.restart()

    def restart(self) -> None:
        self.waited, self._started = 0.0, time.monotonic()
        self._ticks = [self._started]

    def tick(self) -> None:
        """After every step."""
        self._ticks.append(time.monotonic())

    @property
    def seconds(self) -> float:
        """Since the restart."""
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the time spent waiting for data."""
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before

    def rates(self, steps: int) -> dict[str, float]:
        """Of the `steps` since the restart: steps and images per second, the share of the time spent waiting for data,
        the spread of the steps' times, and two shares of the chip's peak: `hfu` counts all that it computes, `mfu`
        leaves out what `remat` does for the second time (Chowdhery et al. 2022, appendix B). On GPUs with `remat` only
        the first is known."""
        seconds = self.seconds
        rates = {"steps_per_second": steps / seconds, "images_per_second": steps * self._images / seconds}
        rates["data_wait"] = self.waited / seconds
        if len(self._ticks) > 1:
            middle, late, longest = np.percentile(np.diff(self._ticks), [50, 95, 100])
            rates |= {"step_seconds_p50": middle, "step_seconds_p95": late, "step_seconds_max": longest}
        if self._chip and self._flops:
            per_flop = rates["steps_per_second"] / self._chip.flops
            rates["hfu"] = self._flops * per_flop
            if self._again is not None:
                rates["mfu"] = (self._flops - self._again) * per_flop
        return rates
