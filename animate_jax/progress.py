"""Signs of life of long work: a bar or, where none is wanted, a line of the package's log now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"

T = TypeVar("T")
log = logging.getLogger(__name__)


class Progress:
    """Parts of a piece of work, one after the other.

    Args:
        work: what is done, such as "reading poses".
        total: number of parts, which may be an estimate.
        bar: show a bar; otherwise lines are logged.
    """

    def __init__(self, work: str, total: int, bar: bool):
        self._work, self._total = work, total
        self._begun, self._told = 0, -LINE_EVERY
        # tqdm starts a thread, also for a bar that is not shown.
        self._bar = tqdm(total=total, desc=work, dynamic_ncols=True, bar_format=BAR) if bar else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._bar is None:
            return
        if kind is None and self._begun:
            self._bar.update()
        self._bar.close()

    def each(self, parts: Iterable[T]) -> Iterator[T]:
        """The same items; each is a part that begins when it is taken."""
        for part in parts:
            self.begin()
            yield part

    def begin(self, name: object = "") -> None:
        """The next part begins, and the one before it is done. A name is shown instead of its number."""
        if self._bar is not None and self._begun:
            self._bar.update()
        self._begun += 1
        if self._bar is not None:
            if name:
                self._bar.set_description_str(f"{self._work} {name}")
        elif time.monotonic() - self._told >= LINE_EVERY:
            self._told = time.monotonic()
            log.info("%s%s", self._work, f" {name}" if name else f": {self._begun} of {self._total}")
