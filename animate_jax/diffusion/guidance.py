"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from jaxtyping import Array, Float


def guide(
    unconditional: Float[Array, "*shape"],
    conditional: Float[Array, "*shape"],
    scale: Float[Array, ""] | float,
) -> Float[Array, "*shape"]:
    """Pushes the prediction away from the unconditional one; scale 1 returns the conditional one."""
    return unconditional + scale * (conditional - unconditional)
