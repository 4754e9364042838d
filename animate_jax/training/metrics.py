"""Where a run's numbers go: JSON lines always, TensorBoard beside them; process 0 only."""

from __future__ import annotations

import json
import math
import pathlib
import sys

import jax

# tensorboardX imports torch if it can: 3 s, for tensors that it never gets here. None makes that import fail.
_torch = sys.modules.setdefault("torch", None)
from tensorboardX import SummaryWriter  # noqa: E402

if _torch is None:
    del sys.modules["torch"]


class MetricWriter:
    """Appends `{"step": ..., name: value, ...}` to `<directory>/metrics.jsonl`, and TensorBoard scalars.

    Lines are flushed one by one. NaN and infinity are written as null, because JSON has neither.
    """

    def __init__(self, directory: str | pathlib.Path):
        self._active = jax.process_index() == 0
        if self._active:
            directory = pathlib.Path(directory)
            directory.mkdir(parents=True, exist_ok=True)
            self._lines = (directory / "metrics.jsonl").open("a")
            self._board = SummaryWriter(str(directory))

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_) -> None:
        if self._active:
            self._lines.close()
            self._board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
