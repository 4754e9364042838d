"""Describes a weight file or a checkpoint from its keys and shapes."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from animate_jax.checkpoints import checkpoint
from animate_jax.errors import reading
from animate_jax.models.shapes import parameter_shapes
from animate_jax.storage import Folder
from animate_jax.torch_weights import key_layouts
from animate_jax.torch_weights.read import find_file, read_state_dict


def inspect(path: str) -> str:
    """A few lines: kind, the parts it can be used for, tensors, parameters and dtypes.

    Raises:
        UserError: neither a weight file nor a checkpoint.
    """
    with reading(path, "weight file or checkpoint", "check the path"):
        is_checkpoint = any((pathlib.Path(path) / name).is_dir() for name in ("params", "checkpoints"))
    if is_checkpoint:
        return _inspect_checkpoint(checkpoint.find(path))
    file, state_dict = find_file(path), read_state_dict(path)
    with reading(file, "weight file", "take a whole copy"):
        kind = key_layouts.identify(state_dict)
        description = key_layouts.describe(state_dict, kind)
    parts = [part for part, kinds in key_layouts.ACCEPTED_KINDS.items() if kind in kinds]
    fills = ", ".join(parts) or "nothing here"
    return f"{file}: {description}\n  fills: {fills}\n  {_amounts(state_dict.values())}"


def _inspect_checkpoint(path: Folder) -> str:
    preset, stored = checkpoint.read_preset(path), checkpoint.stored_arrays(path)
    parts = collections.defaultdict(list)
    for key, leaf in stored.items():
        parts[checkpoint.part_of(key)].append(leaf)
    lines = [f"{path}: a checkpoint of animate_jax, preset '{preset.name}'"]
    lines += [f"  {part}: {_amounts(leaves)}" for part, leaves in parts.items()]
    missing = checkpoint.missing_parts(stored, parameter_shapes(preset.model))
    if missing:
        lines.append(f"  missing: {', '.join(missing)}")
    return "\n".join(lines)


def _amounts(leaves: Iterable[Any]) -> str:
    leaves = list(leaves)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    kinds = collections.Counter(np.dtype(leaf.dtype).name for leaf in leaves)
    dtypes = ", ".join(f"{name} x {count}" if len(kinds) > 1 else name for name, count in kinds.most_common())
    return f"{len(leaves)} tensors, {sum(sizes):,} parameters, {dtypes}"
