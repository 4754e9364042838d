"""The denoising UNet's conditioning on a character."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, Bool, Float

if TYPE_CHECKING:
    Leaf = Array
else:
    Leaf = Any  # with a shape and a dtype: what JAX puts there while it compiles ahead is no array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockConditioning:
    """One spatial transformer's conditioning on the character: constant over frames, steps and windows."""

    clip_residual: Float[Leaf, "b c"]  # the output of attention to the CLIP token
    reference_key: Float[Leaf, "b m c"] | None = None
    reference_value: Float[Leaf, "b m c"] | None = None
    additive_features: Float[Leaf, "b m c"] | None = None  # instead of keys and values: added in place
    mask: Bool[Leaf, " b"] | None = None  # training: rows whose conditioning is kept; None keeps all


@functools.cache
def register_for_export() -> None:
    """Lets `jax.export` keep programs that take or return conditioning."""
    import jax.export

    jax.export.register_pytree_node_serialization(
        BlockConditioning,
        serialized_name="animate_jax.BlockConditioning",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )


Conditioning = dict[str, BlockConditioning]  # path of a spatial transformer, "up_blocks.1.attentions.0" -> its own
