"""Torch state dicts become our parameters and back, weight by weight: nothing is missing, left over or reshaped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from animate_jax.errors import UserError
from animate_jax.torch_weights import names
from animate_jax.torch_weights.tensor import Tensor

StateDict = Mapping[str, np.ndarray | Tensor]  # torch keys -> arrays in torch's layout, in memory or in a file


def match(
    state_dict: StateDict, abstract: Mapping[str, Any], ignore: str = names.BUFFERS, source: str = "the file"
) -> dict[str, str]:
    """Path -> the torch key that fills it, for one module; looks at shapes only.

    Args:
        state_dict: every key is used exactly once, or matches the regular expression `ignore`.
        abstract: path -> anything with a shape; every path is filled exactly once.
        source: what the error calls the state dict.

    Raises:
        UserError: names what is missing, left over, double or of another shape.
    """
    sources: dict[str, str] = {}
    double = []
    for key in state_dict:
        if not re.search(ignore, key):
            current = names.current_key(key)
            double += [key] if current in sources else []
            sources[current] = key
    targets = {names.torch_key(path): path for path in abstract}
    missing = [key for key in targets if key not in sources]
    unused = [key for key in sources if key not in targets]
    reshaped = []
    for key, path in targets.items():
        expected = names.torch_shape(path, abstract[path].shape)
        if key in sources and (shape := tuple(state_dict[sources[key]].shape)) != expected:
            reshaped.append(f"{key} is {list(shape)} instead of {list(expected)}")

    problems = [
        _listed("missing", [_with_nearest(key, unused) for key in missing[:3]] + missing[3:]),
        _listed("not in the model", unused),
        _listed("there twice, under an old and a new name", double),
        _listed("of another shape", reshaped),
    ]
    if any(problems):
        raise UserError(f"{source} does not fit the model: {'; '.join(filter(None, problems))}")
    return {path: sources[key] for key, path in targets.items()}


def from_torch(
    state_dict: StateDict, abstract: Mapping[str, Any], ignore: str = names.BUFFERS, source: str = "the file"
) -> dict[str, np.ndarray]:
    """The parameters of one module, in the dtypes of `abstract`; arguments and errors are those of `match`. Arrays are
    views of the state dict's wherever the dtype is already right."""
    filled = match(state_dict, abstract, ignore, source)
    return {
        path: names.from_torch_layout(path, np.asarray(state_dict[key])).astype(abstract[path].dtype, copy=False)
        for path, key in filled.items()
    }


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of one module, in torch's layout, C-contiguous. The inverse of `from_torch`."""
    return {
        names.torch_key(path): np.ascontiguousarray(names.to_torch_layout(path, np.asarray(array)))
        for path, array in params.items()
    }


def assemble(parts: Mapping[str, StateDict], abstract: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The whole model from the files of the PyTorch peers.

    Args:
        parts: one state dict per part of `AnimateAnyone`, by its name there; the temporal layers may come in the
            denoising UNet's file, as the peers train them, or in one of their own, "motion_module", as they ship.
        abstract: the whole model's paths, as `models.params.abstract_model` gives them.

    Raises:
        UserError: a part is missing or unknown, or does not fit.
    """
    parts = dict(parts)
    motion = parts.pop("motion_module", {})
    expected = {path.partition(".")[0] for path in abstract}
    if parts.keys() != expected:
        problems = [
            _listed("missing", sorted(expected - parts.keys())),
            _listed("not in the model", sorted(parts.keys() - expected)),
        ]
        raise UserError(f"the parts given are not the model's: {'; '.join(filter(None, problems))}")
    if both := sorted(motion.keys() & parts["denoising_unet"].keys()):
        raise UserError(
            f"motion_module and denoising_unet both hold {_first(both)}; leave out the motion_module file "
            "to use the denoising UNet's own temporal layers"
        )
    parts["denoising_unet"] = {**parts["denoising_unet"], **motion}

    params = {}
    for name in sorted(expected):
        prefix = f"{name}."
        part = {path.removeprefix(prefix): leaf for path, leaf in abstract.items() if path.startswith(prefix)}
        ignore = f"{names.BUFFERS}|{names.HEAD}" if name == "reference_unet" else names.BUFFERS
        filled = from_torch(parts[name], part, ignore, source=name)
        params |= {prefix + path: array for path, array in filled.items()}
    return params


def _with_nearest(key: str, candidates: list[str]) -> str:
    nearest = difflib.get_close_matches(key, candidates[:1000], n=1)  # of many, it would take minutes
    return f"{key} (nearest: {nearest[0]})" if nearest else key


def _listed(what: str, items: list[str]) -> str:
    return f"{len(items)} {what}: {_first(items)}" if items else ""


def _first(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
