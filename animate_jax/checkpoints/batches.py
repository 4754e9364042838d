"""Arrays in batches of limited size, for models whose weights do not fit into memory at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

BATCH_BYTES = 384 * 2**20  # bytes read or converted at once; peak memory is a few times that


def nbytes(leaf: Any) -> int:
    """Bytes of anything with a shape and a dtype."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def group_by_bytes(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names in groups of at most `BATCH_BYTES`, or of one."""
    group, total = [], 0
    for name, size in sizes.items():
        if group and total + size > BATCH_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group
