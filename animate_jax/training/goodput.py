"""Where a run's time went:  animate-jax goodput RUN

`<run>/events.jsonl` records what happened when, over all starts. Goodput is the share of the time, from the first start
to the last event, that was spent on steps that count: not on steps done again after a restart, or on anything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from animate_jax.storage import to_path

NAMES = {
    "steps": "steps that count", "waited": "waiting for data", "again": "steps done again", "compile": "compiling",
    "restore": "restoring", "initialise": "first weights", "save": "saving", "preview": "previews",
    "down": "down or starting", "other": "other",
}  # fmt: skip
EVENTS = "events.jsonl"


class Events:
    """Appends a line per event to `<directory>/events.jsonl`, at once, if `active`.

    Kinds: start, restore, initialise, compile, steps (a number of them, up to a step), save, preview, stop. `seconds`
    is the time that the loop spent on it, `time` when it ended.
    """

    def __init__(self, directory: str | pathlib.Path, active: bool = True):
        self._file = None
        if active:
            path = pathlib.Path(directory) / EVENTS
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a")

    def __enter__(self) -> Events:
        self.add("start", pid=os.getpid(), host=socket.gethostname())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if kind is not None:
            self.add("stop", why=f"{kind.__name__}: {error}"[:500])
        if self._file is not None:
            self._file.close()

    def add(self, event: str, **fields: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def timed(self, event: str, **fields: Any) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.add(event, seconds=round(time.monotonic() - began, 3), **fields)


def read(run: str | pathlib.Path) -> list[dict[str, Any]]:
    """A run's events; lines that were cut off by a crash are left out."""
    events = []
    for line in (to_path(run) / EVENTS).read_text().splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


def account(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by kind, as in `NAMES`; their sum is the time from the first to the last event."""
    spent = dict.fromkeys(NAMES, 0.0)
    starts = [i for i, event in enumerate(events) if event["event"] == "start"]
    attempts = [events[a:b] for a, b in zip(starts, [*starts[1:], len(events)], strict=True)]
    # Steps after the checkpoint that a later start went on from were done again.
    kept, reached = [], float("inf")
    for attempt in reversed(attempts):
        kept.append(reached)
        begun = [event["step"] for event in attempt if event["event"] in ("restore", "initialise")]
        reached = min([reached, *begun])
    for attempt, limit, after in zip(attempts, reversed(kept), [*attempts[1:], None], strict=True):
        began, ended = attempt[0]["time"], attempt[-1]["time"]
        known = 0.0
        for event in attempt:
            seconds = event.get("seconds", 0.0)
            known += seconds
            if event["event"] == "steps":
                count = event["steps"]
                share = min(max((limit - (event["step"] - count)) / count, 0.0), 1.0)
                spent["steps"] += share * (seconds - event["waited"])
                spent["waited"] += share * event["waited"]
                spent["again"] += (1 - share) * seconds
            elif event["event"] in spent:
                spent[event["event"]] += seconds
        spent["other"] += max(ended - began - known, 0.0)
        spent["down"] += after[0]["time"] - ended if after else 0.0
    return spent


def report(run: str | pathlib.Path) -> str:
    events = read(run)
    spent = account(events)
    total = sum(spent.values()) or 1.0
    starts = sum(event["event"] == "start" for event in events)
    lines = [f"{run}: {spent['steps'] / total:.1%} goodput of {clock_time(total)} in {starts} starts"]
    lines += [
        f"  {NAMES[kind]:<18}{clock_time(seconds):>10}{seconds / total:>8.1%}"
        for kind, seconds in spent.items()
        if seconds or kind == "steps"
    ]
    return "\n".join(lines)


def clock_time(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
