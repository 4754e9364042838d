"""Rematerialisation: what a layer keeps for the backward pass, and what is computed a second time instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from animate_jax.config import Remat


def products(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Keeps products with weights (matrix products and convolutions); attention's scores, norms and activations, which
    are large and cheap, are computed again."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **parameters)
    return dots or primitive is jax.lax.conv_general_dilated_p


def remat(policy: Remat, layer: Callable[..., Any]) -> Callable[..., Any]:
    """`layer` with the same results and gradients.

    "none" keeps everything, "blocks" only the layer's inputs (least memory, a third more work), "dots" products.
    """
    if policy == "none":
        return layer
    return jax.checkpoint(layer, policy=products if policy == "dots" else None)
