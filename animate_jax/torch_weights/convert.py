"""Conversion between PyTorch state dicts and parameters, with every key and shape checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from animate_jax.errors import UserError
from animate_jax.torch_weights import names
from animate_jax.torch_weights.tensor import StateDict, Tensor


def match_keys(
    state_dict: StateDict, abstract: Mapping[str, Any], ignore: str = names.BUFFERS, source: str = "the file"
) -> dict[str, np.ndarray | Tensor]:
    """Parameter path -> its tensor, still in torch's layout; reads shapes only.

    Args:
        state_dict: every key is used exactly once, or matches the regular expression `ignore`.
        abstract: path -> anything with a shape; every path is filled exactly once.
        source: name of the state dict in errors.

    Raises:
        UserError: names the keys that are missing, unused, double or of another shape.
    """
    current_keys: dict[str, str] = {}
    double = []
    for key in state_dict:
        if not re.search(ignore, key):
            current = names.current_key(key)
            if current in current_keys:
                double.append(key)
            current_keys[current] = key
    paths = {names.torch_key(path): path for path in abstract}
    missing = [key for key in paths if key not in current_keys]
    unused = [key for key in current_keys if key not in paths]
    reshaped = []
    for key, path in paths.items():
        expected = names.torch_shape(path, abstract[path].shape)
        if key in current_keys and (shape := tuple(state_dict[current_keys[key]].shape)) != expected:
            reshaped.append(f"{key} is {list(shape)} instead of {list(expected)}")

    problems = [
        _count_and_first("missing", [_with_nearest(key, unused) for key in missing[:3]] + missing[3:]),
        _count_and_first("not in the model", unused),
        _count_and_first("there twice, under an old and a new name", double),
        _count_and_first("of another shape", reshaped),
    ]
    if any(problems):
        raise UserError(f"{source} does not fit the model: {'; '.join(filter(None, problems))}")
    return {path: state_dict[current_keys[key]] for key, path in paths.items()}


def from_torch(tensors: StateDict) -> dict[str, np.ndarray]:
    """Tensors by parameter path, as `match_keys` gives them, as arrays in our layout: views of those in memory."""
    return {path: names.from_torch_layout(path, np.asarray(tensor)) for path, tensor in tensors.items()}


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of one module, in torch's layout, C-contiguous: the inverse of `match_keys` and `from_torch`."""
    return {
        names.torch_key(path): np.array(names.to_torch_layout(path, np.asarray(array)), order="C")
        for path, array in params.items()
    }


def _with_nearest(key: str, candidates: list[str]) -> str:
    nearest = difflib.get_close_matches(key, candidates[:1000], n=1)  # with all candidates it may take minutes
    return f"{key} (nearest: {nearest[0]})" if nearest else key


def _count_and_first(problem: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{len(keys)} {problem}: {', '.join(keys[:3])}{more}"
