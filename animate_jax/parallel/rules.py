"""How every parameter is divided over the mesh: one ordered table of path patterns."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MIN_SHARDED_SIZE = 2**18  # elements; smaller arrays are replicated: gathering them costs more than holding them

RULES: tuple[tuple[str, PartitionSpec | None], ...] = (
    (r".*(bias|scale|class_embedding|lora_[AB]\.kernel)$", PartitionSpec()),
    (r".*", None),  # None: the largest divisible axis over `fsdp`
)


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The first rule that matches the path decides."""
    rule = next(rule for pattern, rule in RULES if re.fullmatch(pattern, path))
    if rule is not None:
        return rule
    fsdp, size = mesh.shape["fsdp"], 1
    for side in shape:
        size *= side
    divisible = [axis for axis, side in enumerate(shape) if side % fsdp == 0]
    if fsdp == 1 or size < MIN_SHARDED_SIZE or not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "fsdp")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a state or parameter tree; moments and averages follow their parameter's path."""

    def leaf_sharding(path, leaf):
        name = str(getattr(path[-1], "key", path[-1])) if path else ""
        return NamedSharding(mesh, param_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)
