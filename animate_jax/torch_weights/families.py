"""The families of PyTorch files: the preset of their checkpoints, and the files of their parts.

A new family is a row of `FAMILIES`, its name in `config.FamilyName`, and its preset in `presets`; files with keys of a
new layout also need it in `key_layouts`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from animate_jax.checkpoints import hub
from animate_jax.config import FamilyName
from animate_jax.errors import UserError
from animate_jax.torch_weights.key_layouts import PARTS, UNETS
from animate_jax.torch_weights.read import SUFFIXES, weights_in_folder

Files = dict[str, str | pathlib.Path]  # part -> file or folder, here or on the hub


@dataclasses.dataclass(frozen=True)
class Family:
    """Files without a folder are next to each other in a directory; folders are diffusers' or transformers'."""

    preset: str  # of a new checkpoint
    files: Mapping[str, str]  # part -> path in the directory, without its suffix
    folders: Mapping[str, tuple[str, ...]]  # folder -> its parts, in addition to files named like parts
    single_file: tuple[str, ...] = ()  # parts that may be in one file
    examples: str = "denoising_unet.pth, reference_unet.pth, ..."


_FOLDERS = {"sd-vae-ft-mse": ("vae",), "vae": ("vae",), "image_encoder": ("image_encoder",)}
_MOORE_FILES = {
    "denoising_unet": "denoising_unet",
    "motion_module": "motion_module",
    "reference_unet": "reference_unet",
    "pose_guider": "pose_guider",
    "vae": "sd-vae-ft-mse/diffusion_pytorch_model",
    "image_encoder": "image_encoder/model",
}
FAMILIES: dict[FamilyName, Family] = {
    "sd15": Family(
        preset="paper",
        files={
            "denoising_unet": "unet/diffusion_pytorch_model",
            "vae": "vae/diffusion_pytorch_model",
            "image_encoder": "image_encoder/model",
        },
        folders={**_FOLDERS, "unet": UNETS},
        single_file=(*UNETS, "vae"),
        examples="unet/, vae/",
    ),
    "moore": Family("moore", _MOORE_FILES, _FOLDERS),
    "musepose": Family("musepose", _MOORE_FILES, _FOLDERS),
    "novita": Family("novita", _MOORE_FILES, _FOLDERS),
}


def find_files(directory: str | pathlib.Path, family: FamilyName) -> Files:
    """The parts in a directory laid out as the family's authors do, or one folder deeper; or in a single file.

    Args:
        directory: here, or "owner/name[/folder]" on the hub, of which only these parts are downloaded.

    Raises:
        UserError: no such directory, or nothing of the family in it.
    """
    root, layout = pathlib.Path(directory), FAMILIES[family]
    if not root.exists() and (remote := hub.split(directory)):
        root = _download(*remote, layout)
    if layout.single_file and root.is_file():
        return dict.fromkeys(layout.single_file, root)
    if not root.is_dir():
        raise UserError(f"--directory {root}: no such directory")
    files: Files = {}
    for folder in (root, *sorted(child for child in root.iterdir() if child.is_dir())):
        for part in PARTS:
            for suffix in SUFFIXES:
                if (folder / f"{part}{suffix}").is_file():
                    files.setdefault(part, folder / f"{part}{suffix}")
    for name, parts in layout.folders.items():
        if (root / name).is_dir():
            for part in parts:
                files.setdefault(part, root / name)
    if not files:
        raise UserError(f"--directory {root}: nothing of {family} in it: expected {layout.examples}")
    return files


def _download(repository: str, path: str, layout: Family) -> pathlib.Path:
    """The local copy of a directory on the hub, with the family's parts alone."""
    prefix, wanted = f"{path}/" if path else "", []
    files = [file for file in hub.list_files(repository) if file.startswith(prefix)]
    for file in files:
        inside = pathlib.PurePosixPath(file.removeprefix(prefix))
        if inside.stem in PARTS and inside.suffix in SUFFIXES and len(inside.parts) <= 2:
            wanted.append(file)
    for folder in layout.folders:
        wanted += weights_in_folder(files, f"{prefix}{folder}/")
    if not wanted:
        raise UserError(f"--directory {repository}: nothing of its family in it: expected {layout.examples}")
    return hub.download_files(repository, dict.fromkeys(wanted)) / path
