"""The rows of a batch under classifier-free guidance: pairs [unconditional, conditional], one pair per video.

Conditioning has one row per pair: the unconditional row has no reference and a zero CLIP token, so nothing is computed
for it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

T = TypeVar("T", Array, np.ndarray)


def pair(unconditional: Shaped[T, " b *rest"], conditional: Shaped[T, " b *rest"]) -> Shaped[T, " 2*b *rest"]:
    """Rows [unconditional 0, conditional 0, unconditional 1, ...]; NumPy arrays stay NumPy arrays."""
    stack: Any = np.stack if isinstance(unconditional, np.ndarray) else jnp.stack
    return stack([unconditional, conditional], 1).reshape(-1, *unconditional.shape[1:])


def unpair(rows: Shaped[T, " r *rest"]) -> tuple[Shaped[T, " b *rest"], Shaped[T, " b *rest"]]:
    """The unconditional and the conditional rows: the inverse of `pair`."""
    # rows[::2] would move rows between devices.
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def is_paired(rows: Shaped[Array | np.ndarray, " r *_"], single: Shaped[Array | np.ndarray, " b *_"]) -> bool:
    """Whether `rows` is guided, given an array with one row per video, such as conditioning's."""
    return len(rows) == 2 * len(single)
