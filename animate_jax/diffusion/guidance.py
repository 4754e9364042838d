"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float


def apply_guidance(
    unconditional: Float[Array | np.ndarray, " batch *rest"],
    conditional: Float[Array | np.ndarray, " batch *rest"],
    scale: Float[Array, ""] | float,
    rescale: float = 0.0,
) -> Float[Array | np.ndarray, " batch *rest"]:
    """Pushes the prediction away from the unconditional one; scale 1 returns the conditional one.

    `rescale` in [0, 1] is the share of the added contrast (standard deviation over each sample) that is taken back:
    Lin et al. 2023, section 3.4.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return guided
    axes = tuple(range(1, guided.ndim))
    # With Bessel's correction, as torch and therefore diffusers do.
    ratio = conditional.std(axes, ddof=1, keepdims=True) / guided.std(axes, ddof=1, keepdims=True)
    return guided * (rescale * ratio + 1 - rescale)
