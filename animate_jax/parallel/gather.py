"""Weights gathered once per step, and gradients summed, by devices that each process clips of their own.

To be called inside a `jax.shard_map` over the mesh's `data` and `fsdp`: ZeRO (Rajbhandari et al. 2020, section 5) with
whole weights during the passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

Specs = Mapping[str, PartitionSpec]


def gather(shards: Mapping[str, Array], specs: Specs, dtype: DTypeLike) -> dict[str, Array]:
    """The whole arrays, in `dtype`; cast before they are sent, so that no more bytes are sent than are used."""

    def gather_array(array: Array, spec: PartitionSpec) -> Array:
        if spec == PartitionSpec():
            return array
        return jax.lax.all_gather(array, "fsdp", axis=spec.index("fsdp"), tiled=True)

    return {path: gather_array(array.astype(dtype), specs[path]) for path, array in shards.items()}


def mean_shards(arrays: Mapping[str, Array], specs: Specs, dtype: DTypeLike) -> dict[str, Array]:
    """Each device's shard of the mean over devices, summed in `dtype`: over `fsdp` first, which stays inside a slice,
    so that between slices only shards are summed."""
    count = jax.lax.axis_size(("data", "fsdp"))

    def sum_array(array: Array, spec: PartitionSpec) -> Array:
        if spec == PartitionSpec():
            return jax.lax.psum(array, ("data", "fsdp"))
        shard = sum_scatter(array, spec.index("fsdp"))
        return (
            jax.lax.psum(shard, "data") if jax.lax.axis_size("data") > 1 else shard
        )  # a sum over one device is not free either

    return {
        path: sum_array(array.astype(dtype), specs[path]).astype("float32") / count for path, array in arrays.items()
    }


def sum_scatter(array: Array, axis: int) -> Array:
    """Each device's shard of the sum over `fsdp`.

    From 16 devices on in two rounds over about equally many devices, which send as many bytes as one: over all chips of
    a slice at once, the TPU's compiler (libtpu 0.0.42) makes an all-reduce of it, which sends twice as many.
    """
    size = jax.lax.axis_size("fsdp")
    inner = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    if size < 16 or inner == 1:
        return jax.lax.psum_scatter(array, "fsdp", scatter_dimension=axis, tiled=True)
    far = [list(range(first, size, inner)) for first in range(inner)]
    near = [list(range(first, first + inner)) for first in range(0, size, inner)]
    for groups in (far, near):
        array = jax.lax.psum_scatter(array, "fsdp", scatter_dimension=axis, tiled=True, axis_index_groups=groups)
    return array
