"""Writes a checkpoint as PyTorch files in a family's names and layout, bit for bit as imported or trained."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from tqdm import tqdm

from animate_jax.atomic import atomic_folder, check_folder
from animate_jax.checkpoints import checkpoint
from animate_jax.checkpoints.batches import group_by_bytes, nbytes
from animate_jax.config import FamilyName, ModelConfig
from animate_jax.errors import UserError
from animate_jax.models.embeddings import frame_positions
from animate_jax.storage import Address, Folder
from animate_jax.torch_weights import names
from animate_jax.torch_weights.convert import to_torch
from animate_jax.torch_weights.families import FAMILIES
from animate_jax.torch_weights.fetching import find_checkpoint
from animate_jax.torch_weights.read import safetensors_header

Format = Literal["pth", "safetensors"]
Stored = dict[str, jax.ShapeDtypeStruct]


def export_checkpoint(
    source: Address, family: FamilyName, output: str | pathlib.Path, form: Format | None = None
) -> list[str]:
    """Writes the parts of a checkpoint as the family's files, all or none.

    Args:
        source: a checkpoint's directory or a training run's.
        output: a new directory.
        form: format of the files outside of folders; default: "pth", which needs torch.

    Returns:
        A line for each file.

    Raises:
        UserError: no checkpoint, a part of another shape than the family's, or `output` is there already.
    """
    check_folder(output, "export", replace=False)
    folder = find_checkpoint(source)
    files = FAMILIES[family].files
    if form != "safetensors" and not all("/" in file for file in files.values()):
        _torch()  # before any work
    model = checkpoint.read_preset(folder).model
    stored = checkpoint.stored_arrays(folder)
    parts = {part: _leaves_of(part, stored) for part in files}
    lines = []
    total = sum(nbytes(leaf) for leaves in parts.values() for leaf in leaves.values())
    quiet = not sys.stderr.isatty()
    with (
        atomic_folder(output, "export", replace=False) as fresh,
        tqdm(total=total, unit="B", unit_scale=True, desc="exporting", dynamic_ncols=True, disable=quiet) as bar,
    ):
        for part, leaves in parts.items():
            if not leaves:
                continue
            in_folder = "/" in files[part]
            suffix = "safetensors" if in_folder else form or "pth"
            path = fresh / f"{files[part]}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            tables = position_tables(leaves, model.unet.motion_max_length) if part == "motion_module" else {}
            write = write_safetensors if suffix == "safetensors" else write_pth
            write(path, folder, leaves, tables, bar)
            if in_folder:
                (path.parent / "config.json").write_text(json.dumps(folder_config(part, model), indent=2))
            lines.append(f"{path.relative_to(fresh)}: {len(leaves) + len(tables)} tensors")
    return lines


def _leaves_of(part: str, stored: Stored) -> Stored:
    return {path: leaf for path, leaf in stored.items() if checkpoint.part_of(path) == part}


def torch_key(path: str) -> str:
    """The key in its part's file."""
    return names.torch_key(path.partition(".")[2])


def position_tables(leaves: Stored, length: int) -> dict[str, np.ndarray]:
    """The tables `pos_encoder.pe` [1, length, channels] beside each temporal attention of AnimateDiff's files."""
    tables = {}
    for path, leaf in leaves.items():
        if path.endswith(".to_q.kernel"):
            key = torch_key(path).replace("to_q.weight", "pos_encoder.pe")
            tables[key] = frame_positions(length, leaf.shape[0])[None].astype(leaf.dtype)
    return tables


def tensors(source: Folder, leaves: Stored, bar: tqdm) -> Iterator[tuple[str, np.ndarray]]:
    """(torch key, array in torch's layout), a few hundred megabytes in memory at a time."""
    for paths in group_by_bytes({path: nbytes(leaf) for path, leaf in leaves.items()}):
        arrays = checkpoint.read_arrays(source, {path: leaves[path] for path in paths})
        for key, array in to_torch({path.partition(".")[2]: arrays[path] for path in paths}).items():
            yield key, array
            bar.update(array.nbytes)


def write_safetensors(
    path: pathlib.Path, source: Folder, leaves: Stored, tables: dict[str, np.ndarray], bar: tqdm
) -> None:
    """Writes the header, then tensor by tensor; the library would hold the whole file in memory."""
    shapes = {
        torch_key(key): jax.ShapeDtypeStruct(names.torch_shape(key, leaf.shape), leaf.dtype)
        for key, leaf in leaves.items()
    }
    with path.open("wb") as file:
        file.write(safetensors_header({**shapes, **tables}))
        for _, array in (*tensors(source, leaves, bar), *tables.items()):
            file.write(array.reshape(-1).view(np.uint8).data)


def write_pth(path: pathlib.Path, source: Folder, leaves: Stored, tables: dict[str, np.ndarray], bar: tqdm) -> None:
    torch = _torch()

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:  # unknown to torch.from_numpy
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    state_dict = {key: tensor(array) for key, array in tensors(source, leaves, bar)}
    with path.open("wb") as file:  # its errors say that the disk is full; torch's own do not
        torch.save(state_dict | {key: tensor(table) for key, table in tables.items()}, file)


def folder_config(part: str, model: ModelConfig) -> dict[str, Any]:
    """config.json of a diffusers or transformers folder."""
    if part == "image_encoder":
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            **dataclasses.asdict(model.image_encoder),
        }
    if part == "vae":
        levels = len(model.vae.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            **{
                name: getattr(model.vae, name)
                for name in (
                    "in_channels",
                    "latent_channels",
                    "block_out_channels",
                    "layers_per_block",
                    "norm_num_groups",
                    "scaling_factor",
                )
            },
            "out_channels": model.vae.in_channels,
        }
    return unet_config(model)


def unet_config(model: ModelConfig) -> dict[str, Any]:
    """diffusers' UNet2DConditionModel of the same shapes."""
    unet = model.unet
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in unet.attention_levels]
    return {
        "_class_name": "UNet2DConditionModel",
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        **{
            name: getattr(unet, name)
            for name in (
                "in_channels",
                "out_channels",
                "block_out_channels",
                "layers_per_block",
                "cross_attention_dim",
                "norm_num_groups",
            )
        },
        "attention_head_dim": unet.num_attention_heads,  # diffusers' name for the number of heads
    }


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "writing .pth needs torch: pip install 'animate-jax[convert]', or use --format safetensors"
        ) from error
    return torch
