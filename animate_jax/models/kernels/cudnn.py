"""Attention on NVIDIA GPUs without a score matrix in memory: cuDNN's kernel, for half precision."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SHORT = 128  # tokens; fewer, as the frames of a pixel, are one batched product
WIDEST = 128  # channels of a head: what the kernel takes on every generation since Ampere


def usable(query: Float[Array, "*b n c"], heads: int) -> bool:
    """Is this for a GPU, in half precision, long enough, and of a width that the kernel takes?"""
    width, half = query.shape[-1] // heads, query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and query.shape[-2] >= SHORT and width % 8 == 0 and width <= WIDEST


def attend(
    query: Float[Array, "*b n c"], key: Float[Array, "*b n c"], value: Float[Array, "*b n c"], heads: int,
    reference: tuple[Float[Array, "r m c"], Float[Array, "r m c"]] | None = None,
    mask: Bool[Array, " r"] | None = None,
) -> Float[Array, "*b n c"]:  # fmt: skip
    """`models.attention.attend`, and with `reference` (keys, values) `attend_with_reference`."""
    shape, seen = query.shape, None
    if mask is not None:  # rows without their reference see only as many keys as their own frame has
        seen = jnp.broadcast_to(jnp.where(mask, key.shape[-2] + reference[0].shape[-2], key.shape[-2])[:, None],
                                shape[:2]).reshape(-1).astype(jnp.int32)  # fmt: skip
    if reference is not None:
        key, value = (
            jnp.concatenate([own, jnp.broadcast_to(lent[:, None], (*own.shape[:2], *lent.shape[1:]))], -2)
            for own, lent in zip((key, value), reference, strict=True)
        )
    q, k, v = (x.reshape(-1, x.shape[-2], heads, x.shape[-1] // heads) for x in (query, key, value))
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=seen, implementation="cudnn").reshape(shape)
