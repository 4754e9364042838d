"""Attention on TPU without a score matrix in memory: JAX's splash kernel, each device on its own clips and frames.

At 768x768 pixels the scores of one frame to itself and the reference would be 5.4 GB. Queries, keys and values go in
with their tokens on the lanes: heads of 40 or 80 channels there would be padded to 128 (docs/speed.md has the traffic).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from animate_jax.models.sharding import ROWS, rows_over

BLOCK = 128  # the kernel's smallest block; other lengths take XLA's attention


def on_tpu() -> bool:
    """Is this for a TPU, attached or compiled for?"""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    return (jax.default_backend() if mesh.empty or device is None else device.platform) == "tpu"


def usable(query: Float[Array, "*b n c"]) -> bool:
    """Is this for a TPU, long enough, and on a mesh as `layout` divides it?"""
    return on_tpu() and query.shape[-2] % BLOCK == 0 and query.ndim <= 4 and _spec(query) is not None


def attend(
    query: Float[Array, "*b n c"], key: Float[Array, "*b n c"], value: Float[Array, "*b n c"], heads: int,
    reference: tuple[Float[Array, "r m c"], Float[Array, "r m c"]] | None = None,
    mask: Bool[Array, " r"] | None = None,
) -> Float[Array, "*b n c"]:  # fmt: skip
    """`models.attention.attend`, and with `reference` (keys, values) `attend_with_reference`."""
    spec = _spec(query)
    rows = PartitionSpec(*spec[:1])
    local = functools.partial(_attend, heads=heads)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        local = jax.shard_map(local, in_specs=(spec, spec, spec, rows, rows), out_specs=spec, check_vma=False,
                              axis_names=set(mesh.axis_names) - set(mesh.manual_axes))  # fmt: skip
    return local(query, key, value, reference, mask)


def _attend(query, key, value, reference, mask, heads):
    shape, segments = query.shape, None
    lead, seen = shape[:-2], masks.FullMask((shape[-2], key.shape[-2]))
    if reference is not None:  # all frames as one sequence, and behind it the reference that they share
        lead, seen = shape[:1], Shared(shape[1], shape[2], reference[0].shape[1])
        query, key, value = (x.reshape(*lead, -1, x.shape[-1]) for x in (query, key, value))
        key, value = (jnp.concatenate(parts, 1) for parts in zip((key, value), reference, strict=True))
    if mask is not None:  # rows without their reference: its tokens belong to another segment
        lent = jnp.arange(key.shape[1]) >= query.shape[1]
        segments = kernel.SegmentIds(jnp.zeros(query.shape[:-1], jnp.int32), (lent & ~mask[:, None]).astype(jnp.int32))

    def split(x):
        return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)

    attention = _kernel(heads, seen, math.gcd(shape[-2], key.shape[-2]))
    for _ in lead:
        attention = jax.vmap(attention)
    mixed = attention(split(query * (shape[-1] // heads) ** -0.5), split(key), split(value), segments)
    return mixed.swapaxes(-2, -3).reshape(shape).astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class Shared(masks.Mask):
    """Which keys the queries of a clip see: those of their own frame, and the reference's behind all frames'."""

    frames: int
    tokens: int
    lent: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.frames * self.tokens, self.frames * self.tokens + self.lent

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        """The kernel asks for its blocks, which never reach from one frame into the next."""
        queries, keys = (range(side)[part] for side, part in zip(self.shape, block, strict=True))
        frame = keys[0] // self.tokens
        return np.full((len(queries), len(keys)), frame >= self.frames or frame == queries[0] // self.tokens)


def _kernel(heads: int, seen: masks.Mask, multiple: int) -> kernel.SplashAttentionKernel:
    """`multiple`: what blocks have to divide."""
    side = max(b for b in range(BLOCK, 1025, BLOCK) if multiple % b == 0)
    lanes = kernel.QKVLayout.SEQ_MINOR
    sizes = kernel.BlockSizes(
        block_q=side, block_kv=side, block_kv_compute=side, block_q_dkv=side, block_kv_dkv=side,
        block_kv_dkv_compute=side, block_q_dq=side, block_kv_dq=side, q_layout=lanes, k_layout=lanes, v_layout=lanes,
    )  # fmt: skip
    return kernel.make_splash_mha(masks.MultiHeadMask([seen] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes)


def _spec(query: Array) -> PartitionSpec | None:
    """How the leading axes are divided: [clips, frames] as in `layout`, or both merged. None: on a mesh of other
    axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec()
    if "frames" not in mesh.axis_names:
        return None
    rows = rows_over(query.shape[0])
    if query.ndim == 3:
        axes = tuple(axis for axis in (*ROWS, "frames") if axis not in mesh.manual_axes)
        merged = query.shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0
        return PartitionSpec(axes if merged else rows)
    return PartitionSpec(rows, None if query.shape[1] % mesh.shape["frames"] else "frames")
