"""Where activations live on a device mesh with the axes `data`, `fsdp`, `frames`; without one, nothing happens.

The mesh is the one set by `jax.set_mesh` around the call. Inside of a `jax.shard_map` over some of the axes, as in
training, arrays are a device's own along these, and only the others are constrained. Spatial layers hold whole frames,
temporal layers hold whole columns of frames at some pixels; going from one to the other is an all-to-all along
`frames`.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

ROWS = ("data", "fsdp")  # clips are divided over both; parameters over `fsdp` alone


def rows_over(count: int) -> tuple[str, ...] | None:
    """The axes over which so many clips are divided. Clips that do not divide evenly are computed by every device."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ROWS if axis not in mesh.manual_axes)
    return None if not axes or count % math.prod(mesh.shape[axis] for axis in axes) else axes


def frames_divided() -> bool:
    """Do several devices share the frames of a clip?"""
    return dict(jax.sharding.get_abstract_mesh().shape).get("frames", 1) > 1


def frames_apart(x: Shaped[Array, "r f *rest"]) -> Shaped[Array, "r f *rest"]:
    """Clips over `data` and `fsdp`, their frames over `frames`. Fewer frames than devices stay together."""
    mesh = jax.sharding.get_abstract_mesh()
    together = "frames" not in mesh.axis_names or x.shape[1] < mesh.shape["frames"]
    return _constrain(x, None if together else "frames")


def pixels_apart(x: Shaped[Array, "r f n c"]) -> Shaped[Array, "r f n c"]:
    """Clips over `data` and `fsdp`, the pixels of all their frames over `frames`."""
    return _constrain(x, None, "frames")


def rows_apart(x: Shaped[Array, "r *rest"]) -> Shaped[Array, "r *rest"]:
    """Clips over `data` and `fsdp`."""
    return _constrain(x)


def sum_over_shards(x: Shaped[Array, "*rest"]) -> Shaped[Array, "*rest"]:
    """Inside of a `jax.shard_map` over clips: the sum over all devices' clips. Elsewhere `x` is that already."""
    axes = tuple(axis for axis in ROWS if axis in jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.psum(x, axes) if axes else x


def _constrain(x: Array, *axes: str | None) -> Array:
    if "frames" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows_over(x.shape[0]), *axes))
