"""Attention on NVIDIA GPUs without a score matrix in memory: cuDNN's kernel, for half precision."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MIN_TOKENS = 128  # shorter sequences, such as the frames of a pixel, are one batched product
MAX_HEAD_DIM = 128  # channels of a head that the kernel takes on every generation since Ampere


def is_supported(query: Float[Array, "*b n c"], heads: int) -> bool:
    """Whether this runs on a GPU in half precision, with a sequence length and head size that the kernel takes."""
    half_precision = query.dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() != "gpu" or not half_precision or query.shape[-2] < MIN_TOKENS:
        return False
    head_dim = query.shape[-1] // heads
    return head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM


def attend(
    query: Float[Array, "*b n c"],
    key: Float[Array, "*b n c"],
    value: Float[Array, "*b n c"],
    heads: int,
    reference: tuple[Float[Array, "r m c"], Float[Array, "r m c"]] | None = None,
    mask: Bool[Array, " r"] | None = None,
) -> Float[Array, "*b n c"]:
    """`models.attention.attend`, and with `reference` (keys, values) `attend_with_reference`."""
    shape, key_lengths = query.shape, None
    if mask is not None and reference is not None:
        # Rows without their reference attend to their own frame's keys, which come first.
        key_lengths = jnp.where(mask, key.shape[-2] + reference[0].shape[-2], key.shape[-2])
        key_lengths = jnp.broadcast_to(key_lengths[:, None], shape[:2]).reshape(-1).astype(jnp.int32)
    if reference is not None:
        key, value = (
            jnp.concatenate([own, jnp.broadcast_to(shared[:, None], (*own.shape[:2], *shared.shape[1:]))], -2)
            for own, shared in zip((key, value), reference, strict=True)
        )
    q, k, v = (x.reshape(-1, x.shape[-2], heads, x.shape[-1] // heads) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=key_lengths, implementation="cudnn")
    return mixed.reshape(shape)
