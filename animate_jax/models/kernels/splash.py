"""Attention on TPU without a score matrix in memory: JAX's splash kernel, on each device's own clips and frames.

At 768x768 pixels the scores of one frame to itself and the reference would be 5.4 GB. Queries, keys and values are
laid out with their tokens on the lanes, because heads of 40 or 80 channels would be padded to 128 there (docs/speed.md
has the traffic).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from animate_jax.models.sharding import BATCH_AXES, batch_axes

MIN_BLOCK = 128  # tokens; the kernel takes multiples of it


def on_tpu() -> bool:
    """Whether this is compiled for a TPU, attached or not."""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    return (jax.default_backend() if mesh.empty or device is None else device.platform) == "tpu"


def is_supported(query: Float[Array, "*b n c"]) -> bool:
    """Whether this is for a TPU, of a length that the kernel takes, and without a mesh or on one of `models.sharding`'s
    axes."""
    return on_tpu() and query.shape[-2] % MIN_BLOCK == 0 and query.ndim <= 4 and _spec(query) is not None


def attend(
    query: Float[Array, "*b n c"],
    key: Float[Array, "*b n c"],
    value: Float[Array, "*b n c"],
    heads: int,
    reference: tuple[Float[Array, "r m c"], Float[Array, "r m c"]] | None = None,
    mask: Bool[Array, " r"] | None = None,
) -> Float[Array, "*b n c"]:
    """`models.attention.attend`, and with `reference` (keys, values) `attend_with_reference`."""
    spec = _spec(query)
    assert spec is not None, "see `supports`"
    rows = PartitionSpec(*spec[:1])
    local = functools.partial(_attend, heads=heads)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        local = jax.shard_map(
            local,
            in_specs=(spec, spec, spec, rows, rows),
            out_specs=spec,
            check_vma=False,
            axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        )
    return local(query, key, value, reference, mask)


def _attend(query, key, value, reference, mask, heads):
    shape, segments = query.shape, None
    lead, token_mask = shape[:-2], masks.FullMask((shape[-2], key.shape[-2]))
    if reference is not None:  # all frames as one sequence, followed by the reference that they share
        lead, token_mask = shape[:1], OwnFrameAndReferenceMask(shape[1], shape[2], reference[0].shape[1])
        query, key, value = (x.reshape(*lead, -1, x.shape[-1]) for x in (query, key, value))
        key, value = (jnp.concatenate(parts, 1) for parts in zip((key, value), reference, strict=True))
    if mask is not None:  # where it is False, the reference's tokens belong to a segment without queries
        hidden = (jnp.arange(key.shape[1]) >= query.shape[1]) & ~mask[:, None]
        segments = kernel.SegmentIds(jnp.zeros(query.shape[:-1], jnp.int32), hidden.astype(jnp.int32))

    def split(x):
        return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)

    attention: Any = _kernel(heads, token_mask, math.gcd(shape[-2], key.shape[-2]))
    for _ in lead:
        attention = jax.vmap(attention)
    mixed = attention(split(query * (shape[-1] // heads) ** -0.5), split(key), split(value), segments)
    return mixed.swapaxes(-2, -3).reshape(shape).astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class OwnFrameAndReferenceMask(masks.Mask):
    """Queries attend to the keys of their own frame, and to the reference's, which follow those of all frames."""

    frames: int
    tokens: int  # of a frame
    reference_tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.frames * self.tokens, self.frames * self.tokens + self.reference_tokens

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        """The mask of one block of the kernel; a block lies within a frame."""
        queries, keys = (range(length)[part] for length, part in zip(self.shape, block, strict=True))
        frame = keys[0] // self.tokens
        return np.full((len(queries), len(keys)), frame >= self.frames or frame == queries[0] // self.tokens)


def _kernel(heads: int, token_mask: masks.Mask, multiple: int) -> kernel.SplashAttentionKernel:
    """`multiple`: a length that blocks have to divide."""
    block_size = max(size for size in range(MIN_BLOCK, 1025, MIN_BLOCK) if multiple % size == 0)
    lanes = kernel.QKVLayout.SEQ_MINOR
    sizes = kernel.BlockSizes(
        block_q=block_size,
        block_kv=block_size,
        block_kv_compute=block_size,
        block_q_dkv=block_size,
        block_kv_dkv=block_size,
        block_kv_dkv_compute=block_size,
        block_q_dq=block_size,
        block_kv_dq=block_size,
        q_layout=lanes,
        k_layout=lanes,
        v_layout=lanes,
    )
    head_masks = masks.MultiHeadMask([token_mask] * heads)
    return kernel.make_splash_mha(head_masks, head_shards=1, q_seq_shards=1, block_sizes=sizes)


def _spec(query: Array) -> PartitionSpec | None:
    """How the leading axes are sharded: [clips, frames] as in `models.sharding`, or both merged. None: on a mesh of
    other axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec()
    if "frames" not in mesh.axis_names:
        return None
    rows = batch_axes(query.shape[0])
    if query.ndim == 3:
        axes = tuple(axis for axis in (*BATCH_AXES, "frames") if axis not in mesh.manual_axes)
        merged = query.shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0
        return PartitionSpec(axes if merged else rows)
    return PartitionSpec(rows, None if query.shape[1] % mesh.shape["frames"] else "frames")
