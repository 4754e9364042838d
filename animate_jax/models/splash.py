"""Attention on TPU without a score matrix in memory: JAX's splash kernel, each device on its own clips and frames.

At 768x768 pixels the scores of one frame to itself and the reference would be 5.4 GB.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from animate_jax.models.layout import ROWS

BLOCK = 128  # the kernel's smallest block; other lengths take XLA's attention


def on_tpu() -> bool:
    """Is this for a TPU, attached or compiled for?"""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    return (jax.default_backend() if mesh.empty or device is None else device.platform) == "tpu"


def usable(query: Float[Array, "*b n c"]) -> bool:
    """Is this for a TPU, long enough, and evenly divided over the mesh?"""
    return on_tpu() and query.shape[-2] % BLOCK == 0 and query.ndim <= 4 and _spec(query) is not None


def attend(
    query: Float[Array, "*b n c"], key: Float[Array, "*b n c"], value: Float[Array, "*b n c"], heads: int,
    reference: tuple[Float[Array, "r m c"], Float[Array, "r m c"]] | None = None,
    mask: Bool[Array, " r"] | None = None,
) -> Float[Array, "*b n c"]:  # fmt: skip
    """`models.attention.attend`, and with `reference` (keys, values) `attend_with_reference`."""
    spec = _spec(query)
    rows = PartitionSpec(*spec[:1])
    if reference is not None and mask is None:
        mask = jnp.ones(query.shape[0], bool)
    local = functools.partial(_attend, heads=heads)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        local = jax.shard_map(local, in_specs=(spec, spec, spec, rows, rows), out_specs=spec, check_vma=False)
    return local(query, key, value, reference, mask)


def _attend(query, key, value, reference, mask, heads):
    shape, segments = query.shape, None
    if reference is not None:
        widen = lambda x: jnp.broadcast_to(x[:, None], (*key.shape[:2], *x.shape[1:]))  # noqa: E731
        key, value = (
            jnp.concatenate([own, widen(lent)], -2) for own, lent in zip((key, value), reference, strict=True)
        )
        # Rows without their reference: its tokens belong to another segment.
        other = jnp.broadcast_to(~mask[:, None, None], (*shape[:2], reference[0].shape[1]))
        here = jnp.zeros(shape[:-1], jnp.int32)
        segments = kernel.SegmentIds(here, jnp.concatenate([here, other.astype(jnp.int32)], -1))

    def split(x):
        return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)

    q, k, v = split(query * (shape[-1] // heads) ** -0.5), split(key), split(value)
    attention = _kernel(heads, q.shape[-2], k.shape[-2])
    for _ in shape[:-2]:
        attention = jax.vmap(attention)
    return attention(q, k, v, segments).swapaxes(-2, -3).reshape(shape).astype(value.dtype)


def _kernel(heads: int, queries: int, keys: int) -> kernel.SplashAttentionKernel:
    q, kv = (max(b for b in range(BLOCK, 1025, BLOCK) if length % b == 0) for length in (queries, keys))
    sizes = kernel.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
        block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
    full = masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads)
    return kernel.make_splash_mha(full, head_shards=1, q_seq_shards=1, block_sizes=sizes)


def _spec(query: Array) -> PartitionSpec | None:
    """How the leading axes are divided: [clips, frames] as in `layout`, or both merged. None: not evenly, or on
    a mesh of other axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec()
    if "frames" not in mesh.axis_names:
        return None
    sizes = dict(mesh.shape)
    rows = math.prod(sizes[axis] for axis in ROWS)
    if query.ndim == 3:
        merged = query.shape[0] % mesh.size == 0
        spec = PartitionSpec((*ROWS, "frames") if merged else ROWS)
    else:
        spec = PartitionSpec(ROWS, None if query.shape[1] % sizes["frames"] else "frames")
    return None if query.shape[0] % rows else spec
