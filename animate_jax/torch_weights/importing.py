"""Imports PyTorch files into a checkpoint, tensor by tensor."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from animate_jax.checkpoints import checkpoint
from animate_jax.checkpoints.batches import group_by_bytes, nbytes
from animate_jax.config import FamilyName, Preset
from animate_jax.errors import UserError, reading
from animate_jax.models.shapes import Params, parameter_shapes
from animate_jax.presets import find_preset
from animate_jax.storage import Address, Folder, to_path
from animate_jax.torch_weights import key_layouts
from animate_jax.torch_weights.convert import from_torch, match_keys
from animate_jax.torch_weights.families import FAMILIES, Files
from animate_jax.torch_weights.read import find_file, read_state_dict
from animate_jax.torch_weights.tensor import StateDict, Tensor

Tensors = dict[str, Tensor | np.ndarray]  # parameter path -> tensor in torch's layout


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """The keys of one file that were used and ignored."""

    part: str
    path: pathlib.Path
    kind: str  # as `key_layouts.describe` says it
    keys: int
    used: int
    ignored: dict[str, int]  # reason -> keys

    def __str__(self) -> str:
        ignored = "".join(f", {count} ignored ({reason})" for reason, count in self.ignored.items())
        return f"{self.part}: {self.path} is {self.kind}: {self.used} of {self.keys} keys used{ignored}"


@dataclasses.dataclass(frozen=True)
class _Source:
    """The file of one part."""

    part: str
    path: pathlib.Path
    kind: str  # one of `key_layouts.KIND_NAMES`
    state_dict: StateDict


def import_checkpoint(
    files: Files, output: Address, preset: Preset, dtype: DTypeLike | None = None
) -> tuple[list[ImportReport], list[str]]:
    """Writes the checkpoint `output` from files; parts that it already has stay unless given again.

    Args:
        preset: of the checkpoint, adapted to the motion module's length and version.
        dtype: of the stored parameters; None keeps the files'.

    Returns:
        A report for each file, and the parts still missing.

    Raises:
        UserError: a file is of another kind or does not fit; nothing is written then.
    """
    checkpoint.check_output(output)
    sources = {part: _open(part, path) for part, path in files.items()}
    if "motion_module" in sources:
        source = sources["motion_module"]
        with reading(source.path, "weight file", "take a whole copy"):
            preset = fit_preset_to_motion_module(preset, source.state_dict)
    expected = parameter_shapes(preset.model)
    reports, tensors = [], {}
    for source in sources.values():
        filled, report = _fill_part(source, preset, expected, "motion_module" in sources)
        tensors |= filled
        reports.append(report)
    kept = _unreplaced(output, tensors, expected, preset)
    checkpoint.save_batches(output, _batches(tensors, kept, to_path(output), dtype), preset)
    return reports, checkpoint.missing_parts([*tensors, *kept], expected)


def match_part(
    state_dict: StateDict, part: str, expected: Params, with_motion: bool = False, source: str = "the file"
) -> Tensors:
    """The tensors of one part by parameter path.

    Args:
        expected: the whole model's paths, as `models.shapes.parameter_shapes` gives them.
        with_motion: the denoising UNet's file contains the temporal layers, too.

    Raises:
        UserError: the state dict does not fit, see `match_keys`.
    """
    prefix = "denoising_unet." if part == "motion_module" else f"{part}."
    parts = {part, "motion_module"} if with_motion else {part}
    leaves = {path.removeprefix(prefix): leaf for path, leaf in expected.items() if checkpoint.part_of(path) in parts}
    return {prefix + path: tensor for path, tensor in match_keys(state_dict, leaves, source=source).items()}


def fit_preset_to_motion_module(preset: Preset, motion: Mapping[str, Any]) -> Preset:
    """The preset with the model that a motion module was made for: AnimateDiff's v1 and v3 have no temporal layers in
    the middle, v1 takes 24 frames and pools the ResNets' GroupNorm over frames (`use_inflated_groupnorm` off)."""
    mid, length = key_layouts.motion_facts(motion)
    unet = preset.model.unet
    unet = dataclasses.replace(
        unet,
        motion_mid_block=mid,
        motion_max_length=length or unet.motion_max_length,
        pool_norm_over_frames=not mid and length == 24,
    )
    window = min(preset.sampling.window, unet.motion_max_length)
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, unet=unet),
        sampling=dataclasses.replace(preset.sampling, window=window),
    )


def choose_preset(output: Address, family: FamilyName | None, name: str | None) -> Preset:
    """The preset of that name, else that of an existing checkpoint, else the family's.

    Raises:
        UserError: no preset has this name, or nothing says which one it is.
    """
    folder = to_path(output)
    if name is None and (folder / "params").is_dir():
        return checkpoint.read_preset(folder)
    if name is None and family is not None:
        name = FAMILIES[family].preset
    if name is None:
        raise UserError(f"{output}: which family of files is it? Give one of {', '.join(FAMILIES)}")
    return find_preset(name)


def _open(part: str, path: str | pathlib.Path) -> _Source:
    """Finds a part's file and keys, and makes sure that its kind can have the part."""
    file, state_dict = find_file(path), read_state_dict(path)
    with reading(file, "weight file", "take a whole copy"):
        kind = key_layouts.identify(state_dict)
    accepted = key_layouts.ACCEPTED_KINDS[part]
    if kind not in accepted:
        expected = " or ".join(key_layouts.KIND_NAMES[kind] for kind in accepted)
        example = f" (its first key is {next(iter(state_dict))!r})" if kind == "unknown" else ""
        raise UserError(f"{file} is {key_layouts.KIND_NAMES[kind]}{example}, but {part} needs {expected}")
    return _Source(part, file, kind, state_dict)


def _fill_part(
    source: _Source, preset: Preset, expected: Params, motion_in_another_file: bool
) -> tuple[Tensors, ImportReport]:
    """The part's tensors by parameter path."""
    part, path, kind = source.part, source.path, source.kind
    with reading(path, "weight file", "take a whole copy"):
        description = key_layouts.describe(source.state_dict, kind)
    renamed, ignored = key_layouts.rename_keys(source.state_dict, kind, part, preset.model)
    if kind == "unet_motion" and motion_in_another_file:
        without = {key: tensor for key, tensor in renamed.items() if ".motion_modules." not in key}
        ignored["motion modules, given in another file"] = len(renamed) - len(without)
        renamed = without
    with_motion = kind == "unet_motion" and not motion_in_another_file
    tensors = match_part(renamed, part, expected, with_motion, f"{path} (as {part})")
    not_from_file = 2 if kind.startswith("controlnet") else 0  # its last convolution
    used = len(tensors) - not_from_file
    return tensors, ImportReport(part, path, description, len(source.state_dict), used, ignored)


def _unreplaced(output: Address, tensors: Tensors, expected: Params, preset: Preset) -> Params:
    """The parts of an existing checkpoint that no file replaces.

    Raises:
        UserError: it does not fit the preset.
    """
    folder = to_path(output)
    if not (folder / "params").is_dir():
        return {}
    replaced = {checkpoint.part_of(path) for path in tensors}
    stored = checkpoint.stored_arrays(folder)
    kept = {path: leaf for path, leaf in stored.items() if checkpoint.part_of(path) not in replaced}
    if unknown := [path for path in kept if path not in expected]:
        raise UserError(f"{output}: is there already and of another family ({unknown[0]}): choose another --output")
    if reshaped := [path for path in kept if tuple(kept[path].shape) != tuple(expected[path].shape)]:
        part = checkpoint.part_of(reshaped[0])
        raise UserError(f"{output}: its {part} does not fit preset '{preset.name}': choose another --output")
    return kept


def _batches(
    tensors: Tensors, kept: Params, folder: Folder, dtype: DTypeLike | None
) -> Iterator[dict[str, np.ndarray]]:
    """The parameters, a few hundred megabytes at a time, in the order of the files."""
    sizes = {path: nbytes(leaf) for path, leaf in {**tensors, **kept}.items()}
    quiet = not sys.stderr.isatty()
    with tqdm(
        total=sum(sizes.values()), unit="B", unit_scale=True, desc="importing", dynamic_ncols=True, disable=quiet
    ) as bar:
        for paths in group_by_bytes(sizes):
            stored = {path: kept[path] for path in paths if path in kept}
            batch = checkpoint.read_arrays(folder, stored) if stored else {}
            batch |= from_torch({path: tensors[path] for path in paths if path in tensors})
            yield batch if dtype is None else {path: array.astype(dtype) for path, array in batch.items()}
            bar.update(sum(sizes[path] for path in paths))
