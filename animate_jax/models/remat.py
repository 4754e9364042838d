"""Rematerialization: which activations a layer keeps for the backward pass, and which it computes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from animate_jax.config import Remat


def save_matmuls_and_convs(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Checkpoint policy that keeps products with weights; attention scores, norms and activations, which are large and
    cheap, are computed again."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **parameters)
    return dots or primitive is jax.lax.conv_general_dilated_p


def remat(policy: Remat, layer: Callable[..., Any]) -> Callable[..., Any]:
    """`layer` with the same results and gradients.

    "none" keeps everything, "blocks" only the layer's inputs (least memory, a third more work), "dots" also what
    `save_matmuls_and_convs` says.
    """
    if policy == "none":
        return layer
    return jax.checkpoint(layer, policy=save_matmuls_and_convs if policy == "dots" else None)
