"""The peers' files become a checkpoint: which files a family consists of, and the way from them to our parameters."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from animate_jax.checkpoints import checkpoint
from animate_jax.checkpoints.batches import in_batches, nbytes
from animate_jax.config import Preset, presets
from animate_jax.errors import UserError, reading
from animate_jax.models.params import Params, abstract_model
from animate_jax.torch_weights import key_layouts, names
from animate_jax.torch_weights.assemble import match
from animate_jax.torch_weights.read import SUFFIXES, StateDict, find, read
from animate_jax.torch_weights.tensor import Tensor

# Family -> the preset that its checkpoints carry.
FAMILIES = {"sd15": "paper", "moore": "moore", "musepose": "musepose", "novita": "novita"}

Files = dict[str, str | pathlib.Path]  # part -> file, folder or hub name


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of one file."""

    part: str
    path: pathlib.Path
    kind: str  # for people
    keys: int
    used: int
    aside: dict[str, int]  # reason -> keys

    def __str__(self) -> str:
        aside = "".join(f", {count} left aside ({why})" for why, count in self.aside.items())
        return f"{self.part}: {self.path} is {self.kind}: {self.used} of {self.keys} keys used{aside}"


def locate(directory: str | pathlib.Path, family: str) -> Files:
    """The parts in a directory laid out as the family's authors do, or one folder deeper; sd15: a diffusers folder
    or a single file with everything.

    Raises:
        UserError: no such directory, or nothing of the family in it.
    """
    root = pathlib.Path(directory)
    if family == "sd15" and root.is_file():
        return {part: root for part in (*key_layouts.UNETS, "vae")}
    if not root.is_dir():
        raise UserError(f"--directory {root}: no such directory")
    files: Files = {}
    for folder in (root, *sorted(child for child in root.iterdir() if child.is_dir())):
        for part in key_layouts.PARTS:
            for suffix in SUFFIXES:
                if (folder / f"{part}{suffix}").is_file():
                    files.setdefault(part, folder / f"{part}{suffix}")
    folders = {"sd-vae-ft-mse": "vae", "vae": "vae", "image_encoder": "image_encoder"}
    for name, part in folders.items():
        if (root / name).is_dir():
            files.setdefault(part, root / name)
    if family == "sd15" and (root / "unet").is_dir():
        files |= {part: files.get(part, root / "unet") for part in key_layouts.UNETS}
    if not files:
        expected = "unet/, vae/" if family == "sd15" else "denoising_unet.pth, reference_unet.pth, ..."
        raise UserError(f"--directory {root}: nothing of {family} in it: expected {expected}")
    return files


def import_(
    files: Files, output: str | pathlib.Path, preset: Preset, dtype: DTypeLike | None = None
) -> tuple[list[Report], list[str]]:
    """Writes the checkpoint `output` from files, tensor by tensor; parts already in it stay unless given anew.

    Args:
        preset: what the checkpoint will carry; made to fit the motion module's length and version.
        dtype: of the stored parameters; None keeps the files'.

    Returns:
        What became of each file, and the parts still missing.

    Raises:
        UserError: a file is not what it should be or does not fit; nothing has been written then.
    """
    checkpoint.check_output(output)
    parts: dict[str, tuple[pathlib.Path, str, StateDict]] = {}
    for part, path in files.items():
        found, state_dict = find(path), read(path)
        with reading(found, "weight file", "take a whole copy"):
            parts[part] = found, _kind(part, found, state_dict), state_dict
            if part == "motion_module":
                preset = adapted(preset, state_dict)
    expected = abstract_model(preset.model)[1]

    reports, filled = [], {}
    for part, (path, kind, state_dict) in parts.items():
        ours, aside = key_layouts.to_ours(state_dict, kind, part, preset.model)
        abstract = _targets(part, expected, motion=kind == "unet_motion" and "motion_module" not in parts)
        if kind == "unet_motion" and "motion_module" in parts:
            own = [key for key in ours if ".motion_modules." in key]
            aside["motion modules, given in another file"] = len(own)
            ours = {key: tensor for key, tensor in ours.items() if key not in own}
        prefix = "denoising_unet" if part == "motion_module" else part
        for target, key in match(ours, abstract, source=f"{path} (as {part})").items():
            filled[f"{prefix}.{target}"] = ours[key]
        used = len(abstract) - 2 * kind.startswith("controlnet")  # its last convolution is not from the file
        reports.append(Report(part, path, key_layouts.describe(state_dict, kind), len(state_dict), used, aside))
    kept = _kept(output, filled, expected)
    if lost := [path for path in kept if tuple(kept[path].shape) != tuple(expected[path].shape)]:
        raise UserError(f"{output}: its {checkpoint.part_of(lost[0])} does not fit preset '{preset.name}': "
                        "choose another --output")  # fmt: skip
    checkpoint.write(output, _batches(filled, kept, pathlib.Path(output), dtype), preset)
    return reports, checkpoint.missing_parts([*filled, *kept], expected)


def adapted(preset: Preset, motion: StateDict) -> Preset:
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


def choose_preset(output: pathlib.Path, family: str, name: str | None) -> Preset:
    """The preset asked for, else the one that a checkpoint to be completed carries, else the family's.

    Raises:
        UserError: no preset has this name.
    """
    if name is not None and name not in presets():
        raise UserError(f"--preset {name!r}: choose one of {', '.join(presets())}")
    if name is None and (output / "params").is_dir():
        return checkpoint.read_preset(output)
    return presets()[name or FAMILIES[family]]


def _kind(part: str, path: pathlib.Path, state_dict: StateDict) -> str:
    kind = key_layouts.identify(state_dict)
    if kind not in key_layouts.FITS[part]:
        expected = " or ".join(key_layouts.KINDS[fitting] for fitting in key_layouts.FITS[part])
        nearest = f" (its first key is {next(iter(state_dict))!r})" if kind == "unknown" else ""
        raise UserError(f"{path} is {key_layouts.KINDS[kind]}{nearest}, but {part} needs {expected}")
    return kind


def _targets(part: str, expected: Params, motion: bool) -> Params:
    """Paths of one part, without its name; `motion` counts the temporal layers to the denoising UNet."""
    prefix = "denoising_unet." if part == "motion_module" else f"{part}."
    wanted = {part, "motion_module"} if motion else {part}
    return {path.removeprefix(prefix): leaf for path, leaf in expected.items() if checkpoint.part_of(path) in wanted}


def _kept(output: str | pathlib.Path, filled: dict, expected: Params) -> Params:
    """What stays of a checkpoint that is there already: its parts that no file replaces."""
    output = pathlib.Path(output)
    if not (output / "params").is_dir():
        return {}
    replaced = {checkpoint.part_of(path) for path in filled}
    stored = checkpoint.stored_arrays(output)
    kept = {path: leaf for path, leaf in stored.items() if checkpoint.part_of(path) not in replaced}
    if unknown := [path for path in kept if path not in expected]:
        raise UserError(f"{output}: is there already and of another family ({unknown[0]}): choose another --output")
    return kept


def _batches(
    filled: dict[str, Tensor | np.ndarray], kept: Params, output: pathlib.Path, dtype: DTypeLike | None
) -> Iterator[Params]:
    """The parameters, a few hundred megabytes at a time, in the order of the files."""
    sizes = {path: nbytes(leaf) for path, leaf in (filled | kept).items()}
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="importing", dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:  # fmt: skip
        for paths in in_batches(sizes):
            stored = {path: kept[path] for path in paths if path in kept}
            batch = checkpoint.read_some(output, stored) if stored else {}
            for path in paths:
                if path in filled:
                    batch[path] = names.from_torch_layout(path, np.asarray(filled[path]))
                if dtype is not None:
                    batch[path] = batch[path].astype(dtype)
            yield batch
            bar.update(sum(sizes[path] for path in paths))
