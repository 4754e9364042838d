"""Sampling checkpoints: an Orbax directory with the item `params` and the preset it was trained with."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from animate_jax.config import Preset, preset_from_dict, to_dict
from animate_jax.errors import UserError
from animate_jax.models import params as P

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every step of its work


def save(path: str | pathlib.Path, params: P.Params, preset: Preset, dtype: DTypeLike | None = None) -> None:
    """Writes a checkpoint directory, replacing one that is there; complete or not at all.

    Args:
        params: the whole model's parameters.
        dtype: casts on the way, for example `jnp.bfloat16` to halve the size.

    Raises:
        UserError: something else than a checkpoint is there.
    """
    path = pathlib.Path(path).absolute()
    if path.exists() and not (path / "params").is_dir():
        raise UserError(f"{path}: is there already and no checkpoint: choose another name")
    if dtype is not None:
        params = {key: jnp.asarray(array, dtype) for key, array in params.items()}
    fresh, old = path.with_name(path.name + ".saving"), path.with_name(path.name + ".replaced")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    ocp.save_checkpointables(fresh, {"params": params}, custom_metadata={"preset": to_dict(preset)})
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The checkpoint directory meant by `path`: itself, the latest in a run's directory, or in its `checkpoints/`.

    Raises:
        UserError: there is none.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint: give the directory of a checkpoint or of a training run")
    if (path / "params").is_dir():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [child for child in root.iterdir() if child.name.isdigit() and (child / "params").is_dir()]
    if not steps:
        raise UserError(f"{path}: holds no checkpoint: expected a folder 'params', or folders of numbered steps")
    return max(steps, key=lambda child: int(child.name))


def read_preset(path: pathlib.Path) -> Preset:
    """The preset that a checkpoint carries.

    Raises:
        UserError: the checkpoint is damaged or of another program.
    """
    try:
        metadata: Any = json.loads((path / "_CHECKPOINT_METADATA").read_text())
        return preset_from_dict(metadata["custom_metadata"]["preset"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its preset cannot be read ({type(error).__name__}): take a whole checkpoint of animate_jax"
        ) from error


def load(path: str | pathlib.Path, preset: Preset | None = None, dtype: DTypeLike = jnp.float32
         ) -> tuple[P.Params, Preset]:  # fmt: skip
    """Parameters (cast to `dtype`) and preset of a checkpoint.

    Args:
        preset: replaces the numerical choices that the checkpoint carries; its model must have the same shapes.

    Raises:
        UserError: no checkpoint there, a damaged one, or one whose arrays do not fit the model.
    """
    path = find(path)
    preset = preset or read_preset(path)
    _, expected = P.abstract(preset.model)
    found = stored_shapes(path)
    wrong = [key for key in expected if key not in found or found[key] != tuple(expected[key].shape)]
    surplus = [key for key in found if key not in expected]
    if wrong or surplus:
        raise UserError(
            f"{path}: does not fit the model of preset '{preset.name}': {len(wrong)} arrays missing or of another "
            f"shape, {len(surplus)} unknown, first {(wrong + surplus)[0]!r}: choose the checkpoint's own preset"
        )
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {key: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding) for key, leaf in expected.items()}
    try:
        return ocp.load_checkpointables(path, {"params": target})["params"], preset
    except Exception as error:
        raise damaged(path, error) from error


def stored_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shape of every array in a checkpoint, without reading the arrays."""
    try:
        stored = ocp.checkpointables_metadata(path).metadata["params"]
        return {key: tuple(leaf.shape) for key, leaf in stored.items()}
    except Exception as error:
        raise damaged(path, error) from error


def damaged(path: pathlib.Path, error: Exception) -> UserError:
    """Orbax raises many kinds of errors; all mean that the files are not what they should be."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # every read that Orbax abandoned would report itself
    return UserError(f"{path}: damaged or incomplete ({type(error).__name__}): take a whole copy")
