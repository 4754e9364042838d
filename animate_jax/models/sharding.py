"""Sharding of activations on a device mesh with the axes `data`, `fsdp` and `frames`; without one, nothing happens.

The mesh is the one set by `jax.set_mesh` around the call. Inside of a `jax.shard_map` over some of the axes, as in
training, arrays are a device's own along these, and only the others are constrained. In spatial layers a device holds
whole frames, in temporal layers all frames of some pixels; changing from one to the other is an all-to-all along
`frames`.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

BATCH_AXES = ("data", "fsdp")  # clips are sharded over both; parameters over `fsdp` alone


def batch_axes(count: int) -> tuple[str, ...] | None:
    """The axes over which `count` clips are sharded; None if they do not divide evenly: every device computes all."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis not in mesh.manual_axes)
    return None if not axes or count % math.prod(mesh.shape[axis] for axis in axes) else axes


def frames_are_sharded() -> bool:
    """Whether several devices share the frames of a clip."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("frames", 1) > 1


def shard_frames(x: Shaped[Array, "r f *rest"]) -> Shaped[Array, "r f *rest"]:
    """Clips over `data` and `fsdp`, their frames over `frames`, unless there are fewer frames than devices."""
    mesh = jax.sharding.get_abstract_mesh()
    too_few = "frames" not in mesh.axis_names or x.shape[1] < mesh.shape["frames"]
    return _constrain(x, None if too_few else "frames")


def shard_pixels(x: Shaped[Array, "r f n c"]) -> Shaped[Array, "r f n c"]:
    """Clips over `data` and `fsdp`, the pixels of all their frames over `frames`."""
    return _constrain(x, None, "frames")


def sum_over_shards(x: Shaped[Array, "*rest"]) -> Shaped[Array, "*rest"]:
    """Inside of a `jax.shard_map` over clips: the sum over all devices' clips. Elsewhere `x` is that already."""
    axes = tuple(axis for axis in BATCH_AXES if axis in jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.psum(x, axes) if axes else x


def _constrain(x: Array, *axes: str | None) -> Array:
    if "frames" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(batch_axes(x.shape[0]), *axes))
