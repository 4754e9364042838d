"""What a run prints while it trains: a bar on a terminal, else lines, from process 0."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from animate_jax.training.goodput import clock_time


def say(line: str) -> None:
    """Prints a line from process 0, also while a progress bar is shown."""
    if not jax.distributed.is_initialized() or jax.process_index() == 0:  # process_index alone would choose the devices
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def reason(error: BaseException) -> str:
    """The kind and first line of what a library raised."""
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class Progress:
    """Steps done and the newest metrics: a bar on a terminal, else a line per entry of the log."""

    def __init__(self, stage: str, first: int, steps: int):
        self._first, self._steps = first, steps
        bar = sys.stderr.isatty() and jax.process_index() == 0
        self._bar = tqdm(total=steps, initial=first, desc=stage, unit="step", dynamic_ncols=True, disable=not bar)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Says that the step is being compiled, a time that says nothing about the time left."""
        self._bar.set_postfix_str("compiling")
        if self._bar.disable:
            say("compiling the step, which can take minutes")
        yield
        self._bar.set_postfix_str("")
        self._bar.unpause()

    def step(self) -> None:
        self._bar.update()

    def log(self, step: int, means: dict[str, float]) -> None:
        self._bar.set_postfix_str(progress_text(means))
        if self._bar.disable:
            rate = means["steps_per_second"]
            left = clock_time((self._steps - step) / rate)
            say(f"step {step} of {self._steps}, {progress_text(means)}, {rate:.3g} steps/s, {left} left")


def progress_text(means: dict[str, float]) -> str:
    """The most important metrics."""
    parts = [
        f"loss {means['loss']:.4f}",
        f"grad {means['grad_norm']:.2g}",
        f"{means['images_per_second']:.3g} images/s",
        f"data {means['data_wait']:.1%}",
    ]
    parts += [f"MFU {means['mfu']:.1%}"] if "mfu" in means else []
    parts += [f"{means['skipped']:.0f} steps skipped"] if means.get("skipped") else []
    return ", ".join(parts)
