"""The rows of a batch under classifier-free guidance: pairs [unconditional, conditional], one pair per video.

Conditioning has one row per pair: the unconditional row has no reference and a zero CLIP token, so nothing is computed
for it.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped


def pair(
    unconditional: Shaped[Array | np.ndarray, " b *rest"], conditional: Shaped[Array | np.ndarray, " b *rest"]
) -> Shaped[Array | np.ndarray, " 2*b *rest"]:
    """Rows [unconditional 0, conditional 0, unconditional 1, ...]; NumPy arrays stay NumPy arrays."""
    stack = np.stack if isinstance(unconditional, np.ndarray) else jnp.stack
    return stack([unconditional, conditional], 1).reshape(-1, *unconditional.shape[1:])


def unpair(
    rows: Shaped[Array | np.ndarray, " r *rest"],
) -> tuple[Shaped[Array | np.ndarray, " b *rest"], Shaped[Array | np.ndarray, " b *rest"]]:
    """The unconditional and the conditional rows: the inverse of `pair`."""
    # rows[::2] would move rows between devices.
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def is_paired(rows: Shaped[Array | np.ndarray, " r *_"], single: Shaped[Array | np.ndarray, " b *_"]) -> bool:
    """Whether `rows` is guided, given an array with one row per video, such as conditioning's."""
    return len(rows) == 2 * len(single)
