"""Sampling checkpoints: an Orbax directory with the item `params` and the preset it was trained with."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import pathlib
import re
import sys
import typing
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from animate_jax.atomic import atomic_folder, check_folder, entries
from animate_jax.checkpoints import arrays
from animate_jax.checkpoints.batches import group_by_bytes, nbytes
from animate_jax.config import Preset, PublishedName, to_dict
from animate_jax.errors import UserError, reading
from animate_jax.limits import JSON_BYTES
from animate_jax.models.lora import is_adapter
from animate_jax.models.shapes import Params, parameter_shapes
from animate_jax.presets import preset_from_dict
from animate_jax.storage import Address, Folder, check_writable, is_remote, talking_to, to_path, uploaded_folder

APPEARANCE = "appearance"  # the only part that no PyTorch file has
COMMIT = "commit_success.txt"  # Orbax's marker, in buckets, of a complete folder
_OCDBT = r"manifest\.ocdbt|d(/[0-9a-f]+)?"
# What Orbax writes for the item `params` alone.
ORBAX_FILES = re.compile(
    r"_CHECKPOINT_METADATA|orbax\.checkpoint|commit_success\.txt|params"
    rf"(/(_METADATA|_sharding|array_metadatas(/process_\d+)?|{_OCDBT}|ocdbt\.process_[0-9a-f]+(/({_OCDBT}))?))?"
)
WHOLE, COPY = "take a whole checkpoint of animate_jax", "take a whole copy"  # advice

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every step of its work


def _unless_abandoned(hook: Callable[[sys.UnraisableHookArgs], object], raised: sys.UnraisableHookArgs) -> None:
    """Ignores reads that Orbax abandons at the first damaged array, whose error is raised elsewhere."""
    if not (raised.exc_type is RuntimeError and str(raised.exc_value) == "Event loop is closed"):
        hook(raised)


sys.unraisablehook = functools.partial(_unless_abandoned, sys.unraisablehook)


def _not_abandoned(record: logging.LogRecord) -> bool:
    """asyncio reports these reads again when their tasks are collected; only TensorStore's futures are wrapped so."""
    message = record.getMessage()
    return not ("never retrieved" in message and "_wrap_awaitable" in message)


logging.getLogger("asyncio").addFilter(_not_abandoned)
warnings.filterwarnings("ignore", "coroutine 'CompatibleTypeHandler", RuntimeWarning)  # never awaited: the same


def save(path: Address, params: Params, preset: Preset, dtype: DTypeLike | None = None) -> None:
    """Writes a checkpoint directory, complete or not at all, in place of an older one.

    Args:
        params: the whole model's parameters.
        dtype: of the stored arrays, for example `jnp.bfloat16` for half the size.

    Raises:
        UserError: something else than a checkpoint is there.
    """
    from orbax.checkpoint import v1 as ocp

    if dtype is not None:
        params = {key: jnp.asarray(array, dtype) for key, array in params.items()}
    with _writing(path) as fresh:
        metadata = {"preset": to_dict(preset), "checksums": checksums(params)}
        ocp.save_checkpointables(os.fspath(fresh), {"params": params}, custom_metadata=metadata)


def save_batches(path: Address, batches: Iterable[Params], preset: Preset) -> None:
    """`save` for a model that does not fit into memory: takes about four times the largest batch.

    Args:
        batches: the parameters in groups, each path in one of them; some of the model's may be missing.

    Raises:
        UserError: something else than a checkpoint is there.
    """
    from orbax.checkpoint import v1 as ocp

    sums: dict[str, str] = {}
    with _writing(path) as fresh:
        for batch in batches:
            sums |= checksums(batch)
            ocp.partial.save(os.fspath(fresh), batch, custom_metadata={"preset": to_dict(preset)})
        ocp.partial.finalize(os.fspath(fresh))
        # Orbax saves batches under another name than `save` does.
        (fresh / "state").rename(fresh / "params")
        metadata = json.loads((fresh / "_CHECKPOINT_METADATA").read_text())
        handler = ocp.handlers.PyTreeHandler
        metadata["item_handlers"] = {"params": f"{handler.__module__}.{handler.__name__}"}
        metadata["custom_metadata"]["checksums"] = sums
        (fresh / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))


@contextlib.contextmanager
def _writing(path: Address) -> Iterator[pathlib.Path]:
    if is_remote(path):
        folder = uploaded_folder(path, last=[COMMIT])
    else:
        folder = atomic_folder(path, "checkpoint", foreign_in_unmarked)
    with folder as fresh:
        yield fresh
        (fresh / COMMIT).write_text("Checkpoint commit was successful")  # without this machine's path


def check_output(path: Address) -> None:
    """Makes sure that a checkpoint may be written there, before long work.

    Raises:
        UserError: something else is there, or a checkpoint with something else in it, such as a training run's.
    """
    if is_remote(path):
        check_writable(path)
    else:
        check_folder(path, "checkpoint", foreign_in_unmarked)


def foreign_in_unmarked(path: Folder) -> list[str] | None:
    """Files in a checkpoint without a marker (older, or a training run's) that are not Orbax's of `params`; None if it
    has no preset of ours."""
    try:
        json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["preset"]["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return [entry for entry in entries(path) if not ORBAX_FILES.fullmatch(entry)]


def find(path: Address) -> Folder:
    """The checkpoint directory meant by `path`: itself, the latest in a run's directory, or in its `checkpoints/`.

    Raises:
        UserError: there is none, or its bucket does not answer.
    """
    path = to_path(path)
    with talking_to(path) if is_remote(path) else contextlib.nullcontext():
        return _find(path)


def _find(path: Folder) -> Folder:
    if not path.is_dir():
        names = ", ".join(("tiny", *typing.get_args(PublishedName)))
        raise UserError(
            f"{path}: no such checkpoint: give the directory of a checkpoint or of a training run, or one of {names}"
        )
    if (path / "params").is_dir():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [child for child in root.iterdir() if child.name.isdigit() and _is_complete(child)]
    if not steps:
        raise UserError(f"{path}: holds no checkpoint: expected a folder 'params', or folders of numbered steps")
    return max(steps, key=lambda child: int(child.name))


def _is_complete(path: Folder) -> bool:
    """A local folder is renamed when complete; in a bucket a marker is written last."""
    return (path / "params").is_dir() and (not is_remote(path) or (path / COMMIT).exists())


def read_preset(path: Folder) -> Preset:
    """A checkpoint's preset, with every field validated.

    Raises:
        UserError: the checkpoint is damaged or of another program.
    """
    values = _metadata(path).get("preset")
    try:
        return preset_from_dict(values)
    except ValueError as error:
        raise UserError(f"{path}: its preset cannot be read ({error}): {WHOLE}") from error


def _metadata(path: Folder) -> dict[str, Any]:
    """Our part of a checkpoint's metadata: its preset and, unless it is older, its arrays' checksums."""
    file = path / "_CHECKPOINT_METADATA"
    with reading(file, "checkpoint's description, so its preset cannot be read", WHOLE):
        if not file.exists():
            raise UserError(f"{path}: its preset cannot be read (no {file.name}): {WHOLE}")
        with file.open("rb") as stream:
            text = stream.read(JSON_BYTES + 1)
        if len(text) > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES >> 20} MB")
        values = json.loads(text)["custom_metadata"]
        if not isinstance(values, dict):
            raise ValueError("no custom_metadata")
        return values


def checksums(values: Mapping[str, np.ndarray | jax.Array]) -> dict[str, str]:
    """CRC-32 of every array's bytes, in eight hexadecimal digits."""
    return {
        key: f"{zlib.crc32(np.asarray(array).reshape(-1).view(np.uint8).data):08x}" for key, array in values.items()
    }


def stored_checksums(path: Folder) -> dict[str, str]:
    """The `checksums` of a checkpoint when it was saved; empty for older ones and for those of several processes."""
    known = _metadata(path).get("checksums")
    return known if isinstance(known, dict) else {}


def damaged_arrays(known: Mapping[str, str], values: Mapping[str, np.ndarray | jax.Array]) -> list[str]:
    """The arrays of a checkpoint, in the dtype in which they are stored, that differ from what was saved.

    Args:
        known: `stored_checksums`.
    """
    return [key for key, value in checksums(values).items() if known.get(key, value) != value]


def load(
    path: Address,
    preset: Preset | None = None,
    dtype: DTypeLike = jnp.float32,
    shardings: Mapping[str, jax.sharding.Sharding | None] | None = None,
    optional: Collection[str] = (),
) -> tuple[Params, Preset]:
    """Parameters (cast to `dtype`) and preset of a checkpoint.

    Args:
        preset: replaces the checkpoint's own; its model must have the same shapes.
        shardings: of each array, or None for a NumPy array in host memory; default: whole on the first device.
        optional: parts that may be missing in the checkpoint; they are then missing in the result.

    Raises:
        UserError: no checkpoint there, a damaged one, or one whose arrays do not fit the model.
    """
    path = find(path)
    preset = preset or read_preset(path)
    stored = stored_arrays(path)
    expected = _check_fit(path, stored, preset, optional)
    shardings = shardings or dict.fromkeys(expected, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    if jax.process_count() > 1:  # each reads its shards only, which have no checksum
        target = {
            key: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings[key]) for key, leaf in expected.items()
        }
        from orbax.checkpoint import v1 as ocp

        try:
            return ocp.load_checkpointables(os.fspath(path), {"params": target})["params"], preset
        except Exception as error:
            raise damaged(path, error) from error
    params = {}
    for keys in group_by_bytes({key: nbytes(stored[key]) for key in expected}):
        for key, array in read_arrays(path, {key: stored[key] for key in keys}).items():
            array, place = array.astype(dtype, copy=False), shardings[key]
            params[key] = array if place is None else jax.device_put(array, place)
    return params, preset


def _check_fit(
    path: Folder, stored: Mapping[str, jax.ShapeDtypeStruct], preset: Preset, optional: Collection[str]
) -> Params:
    """Paths and shapes of the model without the optional parts that are missing in the checkpoint.

    Raises:
        UserError: arrays are missing, unknown or of another shape.
    """
    expected = parameter_shapes(preset.model)
    if any(map(is_adapter, stored)):
        base = _metadata(path).get("base")
        name = base.get("checkpoint", "BASE") if isinstance(base, dict) else "BASE"
        run = path.parents[1] if path.parent.name == "checkpoints" else path
        raise UserError(f"{path}: holds a LoRA, not a whole model: give --checkpoint {name} --lora {run}")
    missing = missing_parts(stored, expected)
    wrong = [
        key
        for key in expected
        if part_of(key) not in missing and (key not in stored or stored[key].shape != tuple(expected[key].shape))
    ]
    unknown = [key for key in stored if key not in expected]
    if wrong or unknown:
        raise UserError(
            f"{path}: does not fit the model of preset '{preset.name}': {len(wrong)} arrays missing or of another "
            f"shape, {len(unknown)} unknown, first {(wrong + unknown)[0]!r}: choose the checkpoint's own preset"
        )
    if needed := [part for part in missing if part not in optional]:
        raise UserError(f"{path}: lacks {', '.join(needed)}: {import_advice(path, needed)}")
    return {key: leaf for key, leaf in expected.items() if part_of(key) not in missing}


def part_of(path: str) -> str:
    """The part that a parameter belongs to. Temporal layers are a separate part, as in PyTorch files, and so are the
    layers for the warped reference."""
    if "appearance_" in path:
        return APPEARANCE
    part = path.partition(".")[0]
    return "motion_module" if part == "denoising_unet" and ".motion_modules." in path else part


def missing_parts(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Parts of the model without any parameter in a checkpoint."""
    present = {part_of(path) for path in found}
    return [part for part in dict.fromkeys(map(part_of, expected)) if part not in present]


def missing_parts_of(path: Folder, preset: Preset) -> list[str]:
    """Parts of its model without any parameter in a checkpoint."""
    return missing_parts(stored_arrays(path), parameter_shapes(preset.model))


def import_advice(path: Folder, missing: Iterable[str]) -> str:
    """How to add parts that are missing; the command has a flag for each part of PyTorch files."""
    flags = " ".join(f"--{part.replace('_', '-')} FILE" for part in missing if part != APPEARANCE)
    return f"add it with animate-jax weights import {flags} --output {path}" if flags else COPY


def read_arrays(
    path: Folder, stored: Mapping[str, jax.ShapeDtypeStruct], known: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Some arrays of a checkpoint, as stored.

    Args:
        stored: some of `stored_arrays`.
        known: `stored_checksums`, if already read.

    Raises:
        UserError: the checkpoint is damaged.
    """
    try:
        found = arrays.read(path, stored)
    except Exception:
        found = _read_with_orbax(path, stored)
    if wrong := damaged_arrays(stored_checksums(path) if known is None else known, found):
        raise UserError(
            f"{path}: damaged: {len(wrong)} arrays are not what was saved, first {wrong[0]!r}: {_restore_advice(path)}"
        )
    return found


def _read_with_orbax(path: Folder, stored: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    from orbax.checkpoint import v1 as ocp

    target = {key: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for key, leaf in stored.items()}
    loading = ocp.options.PyTreeOptions.Loading(partial_load=True)
    try:
        with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
            return ocp.load_checkpointables(os.fspath(path), {"params": target})["params"]
    except Exception as error:
        raise damaged(path, error) from error


def stored_arrays(path: Folder) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array in a checkpoint, without reading the arrays."""
    with contextlib.suppress(Exception):
        return arrays.describe(path)
    from orbax.checkpoint import v1 as ocp

    try:
        stored = ocp.checkpointables_metadata(os.fspath(path)).metadata["params"]
        return {key: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype) for key, leaf in stored.items()}
    except Exception as error:
        raise damaged(path, error) from error


def damaged(path: Folder, error: Exception) -> UserError:
    """The error for any of the many exceptions that Orbax raises for damaged files."""
    return UserError(f"{path}: damaged or incomplete ({type(error).__name__}): {_restore_advice(path)}")


def _restore_advice(path: Folder) -> str:
    """Advice for a damaged checkpoint."""
    if is_remote(path):
        return COPY
    steps = sorted((child for child in path.parent.iterdir() if child.name.isdigit()), key=lambda each: int(each.name))
    before = [child for child in steps if path.name.isdigit() and int(child.name) < int(path.name)]
    return f"{COPY}, or the one before, {before[-1]}" if before else COPY


def is_whole(path: Folder) -> bool:
    """Whether all arrays of a checkpoint can be read and have their checksums."""
    try:
        stored = stored_arrays(path)
        for keys in group_by_bytes({key: nbytes(leaf) for key, leaf in stored.items()}):
            read_arrays(path, {key: stored[key] for key in keys})
    except UserError:
        return False
    return True
