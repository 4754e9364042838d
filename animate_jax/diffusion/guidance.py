"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
    unconditional: Float[Array, "batch *rest"],
    conditional: Float[Array, "batch *rest"],
    scale: Float[Array, ""] | float,
    rescale: float = 0.0,
) -> Float[Array, "batch *rest"]:
    """Pushes the prediction away from the unconditional one; scale 1 returns the conditional one.

    `rescale` in [0, 1] is the share of the added contrast (standard deviation over each sample) that is taken back:
    Lin et al. 2023, section 3.4.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return guided
    axes = tuple(range(1, guided.ndim))
    # With Bessel's correction, as torch and therefore diffusers do.
    ratio = jnp.std(conditional, axes, ddof=1, keepdims=True) / jnp.std(guided, axes, ddof=1, keepdims=True)
    return guided * (rescale * ratio + 1 - rescale)
