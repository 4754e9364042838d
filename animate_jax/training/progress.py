"""What a run's owner reads while it trains: lines on stderr, from process 0."""

from __future__ import annotations

import sys

import jax
from tqdm import tqdm


def say(line: str) -> None:
    """A line of its own, also beside a progress bar; only process 0 speaks."""
    if not jax.distributed.is_initialized() or jax.process_index() == 0:  # asking alone would choose the devices
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def reason(error: BaseException) -> str:
    """The kind and first line of what a library raised."""
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
