"""PyTorch weight files become checkpoints, and checkpoints become PyTorch files:

    animate-jax weights fetch  moore
    animate-jax weights import moore   --directory pretrained_weights/ --output ckpt/
    animate-jax weights import sd15    --unet v1-5-pruned.ckpt --vae v1-5-pruned.ckpt --output ckpt/
    animate-jax weights export moore   ckpt/ --output dir/
    animate-jax weights inspect        FILE
    animate-jax weights verify         ckpt/ --against dir/

Formats, families and figures: docs/weights.md.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro

from animate_jax.commands.options import parse
from animate_jax.config import FamilyName, PublishedName
from animate_jax.errors import UserError, exit_status
from animate_jax.torch_weights.exporting import Format, export_checkpoint
from animate_jax.torch_weights.families import FAMILIES, Files, find_files
from animate_jax.torch_weights.fetching import fetch, find_checkpoint, is_fetched
from animate_jax.torch_weights.importing import choose_preset, import_checkpoint
from animate_jax.torch_weights.inspect import inspect
from animate_jax.torch_weights.published import PUBLISHED


@dataclasses.dataclass(frozen=True)
class Import:
    """Files, diffusers folders or hub names become a checkpoint. Parts may come in several calls."""

    output: str  # checkpoint, which may lie in a bucket (gs://...); parts that are in it already stay
    family: tyro.conf.Positional[FamilyName | None] = None  # of a new checkpoint, and of --directory
    directory: str | None = None  # with everything, here or on the hub (owner/name); sd15: a single file, too
    unet: str | None = None  # Stable Diffusion UNet, for both UNets
    denoising_unet: str | None = None  # of a model that is trained already
    reference_unet: str | None = None  # of a model that is trained already
    motion_module: str | None = None  # AnimateDiff's, or diffusers' MotionAdapter
    pose_guider: str | None = None  # of a model that is trained already
    pose_controlnet: str | None = None  # ControlNet whose condition embedding begins the Pose Guider
    vae: str | None = None  # Stable Diffusion's autoencoder
    image_encoder: str | None = None  # CLIP's, with its projection
    preset: str | None = None  # none: the family's, or the one of the checkpoint to be completed
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # none: as in the files


@dataclasses.dataclass(frozen=True)
class Export:
    """A checkpoint becomes the family's files."""

    family: tyro.conf.Positional[FamilyName]  # whose layout and names the files get
    checkpoint: tyro.conf.Positional[str]  # what is exported
    output: pathlib.Path  # directory, must not exist
    format: Format = "pth"  # of the files outside of diffusers folders


@dataclasses.dataclass(frozen=True)
class Inspect:
    """What is this file or checkpoint? Reads no weights."""

    file: tyro.conf.Positional[str]  # a PyTorch file, or a checkpoint: a folder, or a name such as tiny


@dataclasses.dataclass(frozen=True)
class Verify:
    """Runs the same inputs through a checkpoint and through PyTorch, part by part."""

    checkpoint: tyro.conf.Positional[str]  # what is verified
    against: pathlib.Path  # directory with the files, as for import --directory
    family: FamilyName = "moore"  # of the files


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Downloads published weights from the hub and converts them: `--checkpoint NAME` then finds them."""

    name: tyro.conf.Positional[PublishedName]  # docs/gpu.md describes them
    accept_licenses: Annotated[bool, tyro.conf.arg(aliases=["--accept-licences"])] = False
    """Without being asked, in scripts."""


Command = (
    Annotated[Fetch, tyro.conf.subcommand("fetch")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def main(arguments: list[str], program: str = "animate-jax weights") -> int:
    command = parse(Command, arguments, program, __doc__)
    return exit_status(program, lambda: _run(command), "nothing written")


def _run(command: Fetch | Import | Export | Inspect | Verify) -> int:
    jax.config.update("jax_platforms", "cpu")  # no work for an accelerator, which another process may hold
    match command:
        case Fetch():
            print(fetch(command.name, command.accept_licenses))
        case Import():
            _import(command)
        case Export():
            print(*export_checkpoint(command.checkpoint, command.family, command.output, command.format), sep="\n")
        case Inspect():
            name = command.file
            if not is_fetched(name):
                raise UserError(f"{name}: is not here: animate-jax weights fetch {name}")
            print(inspect(str(find_checkpoint(name)) if name == "tiny" or name in PUBLISHED else name))
        case Verify():
            return _verify(command)
    return 0


def _import(command: Import) -> None:
    family = command.family
    if command.directory and family is None:
        raise UserError(f"--directory: which family of files is it? Give one of {', '.join(FAMILIES)}")
    files = _files(command)
    preset = choose_preset(command.output, family, command.preset)
    dtype = None if command.dtype is None else jnp.dtype(command.dtype)
    reports, missing = import_checkpoint(files, command.output, preset, dtype)
    print(*reports, sep="\n")
    flags = ", ".join(f"{part} (--{part.replace('_', '-')})" for part in missing)
    print(f"{command.output}: preset {preset.name}{flags and f'; still missing: {flags}'}")


def _files(command: Import) -> Files:
    files = find_files(command.directory, command.family) if command.directory and command.family else {}
    given = {
        "denoising_unet": command.denoising_unet or command.unet,
        "reference_unet": command.reference_unet or command.unet,
        "motion_module": command.motion_module,
        "pose_guider": command.pose_guider or command.pose_controlnet,
        "vae": command.vae,
        "image_encoder": command.image_encoder,
    }
    files |= {part: path for part, path in given.items() if path is not None}
    if not files:
        raise UserError("import: nothing to import: give --directory or files, see --help")
    return files


def _verify(command: Verify) -> int:
    from animate_jax.torch_weights.verify import verify

    worst = verify(command.checkpoint, find_files(command.against, command.family))
    for part, error in worst.items():
        print(f"{part}: worst error {error:.1e} of the largest value")
    return 0 if max(worst.values()) < 1e-4 else 1
