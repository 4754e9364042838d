"""A checkpoint becomes the peers' files: their names, their layout, bit for bit what was imported or trained."""

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
from animate_jax.checkpoints.batches import in_batches, nbytes
from animate_jax.config import ModelConfig
from animate_jax.errors import UserError
from animate_jax.torch_weights import names

Format = Literal["pth", "safetensors"]
Stored = dict[str, jax.ShapeDtypeStruct]

_PEERS = {
    "denoising_unet": "denoising_unet", "motion_module": "motion_module", "reference_unet": "reference_unet",
    "pose_guider": "pose_guider", "vae": "sd-vae-ft-mse/diffusion_pytorch_model",
    "image_encoder": "image_encoder/model",
}  # fmt: skip
# Family -> part -> where it goes; what has a folder is for diffusers or transformers, and always .safetensors.
LAYOUTS = {
    "moore": _PEERS,
    "musepose": _PEERS,
    "novita": _PEERS,
    "sd15": {"denoising_unet": "unet/diffusion_pytorch_model", "vae": "vae/diffusion_pytorch_model",
             "image_encoder": "image_encoder/model"},
}  # fmt: skip

_SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
}  # fmt: skip


def export(source: str | pathlib.Path, family: str, output: str | pathlib.Path, form: Format | None = None
           ) -> list[str]:  # fmt: skip
    """Writes the parts of a checkpoint as the family's files, complete or not at all.

    Args:
        source: a checkpoint's directory or a training run's.
        output: a directory that is not there yet.
        form: of the files outside of folders; default: "pth", which needs torch.

    Returns:
        A line for each file.

    Raises:
        UserError: no checkpoint, a part of another shape than the family's, or `output` is there already.
    """
    check_folder(output, "export", replace=False)
    source = checkpoint.find(source)
    if form != "safetensors" and family != "sd15":
        _torch()  # before any work
    model = checkpoint.read_preset(source).model
    stored = checkpoint.stored_arrays(source)
    parts = {part: {path: leaf for path, leaf in stored.items() if checkpoint.part_of(path) == part}
             for part in LAYOUTS[family]}  # fmt: skip
    parts = {part: leaves for part, leaves in parts.items() if leaves}
    lines = []
    total = sum(nbytes(leaf) for leaves in parts.values() for leaf in leaves.values())
    with (
        atomic_folder(output, "export", replace=False) as fresh,
        tqdm(total=total, unit="B", unit_scale=True, desc="exporting", dynamic_ncols=True,
             disable=not sys.stderr.isatty()) as bar,
    ):  # fmt: skip
        for part, leaves in parts.items():
            name, in_folder = LAYOUTS[family][part], "/" in LAYOUTS[family][part]
            suffix = "safetensors" if in_folder else form or "pth"
            path = fresh / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            tables = positions(leaves, model.unet.motion_max_length) if part == "motion_module" else {}
            write = write_safetensors if suffix == "safetensors" else write_pth
            write(path, source, leaves, tables, bar)
            if in_folder:
                (path.parent / "config.json").write_text(json.dumps(folder_config(part, model), indent=2))
            lines.append(f"{path.relative_to(fresh)}: {len(leaves) + len(tables)} tensors")
    return lines


def torch_key(path: str) -> str:
    """The key in its part's file."""
    return names.torch_key(path.partition(".")[2])


def positions(leaves: Stored, length: int) -> dict[str, np.ndarray]:
    """The tables `pos_encoder.pe` [1, length, channels] that the peers' files carry beside each temporal attention:
    the sinusoid of Vaswani et al. 2017, sine and cosine interleaved."""
    tables = {}
    for path, leaf in leaves.items():
        if path.endswith(".to_q.kernel"):
            channels = leaf.shape[0]
            rate = np.exp(np.arange(0, channels, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / channels))
            angle = np.arange(length, dtype=np.float32)[:, None] * rate
            table = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(1, length, channels)
            tables[torch_key(path).replace("to_q.weight", "pos_encoder.pe")] = table.astype(leaf.dtype)
    return tables


def tensors(source: pathlib.Path, leaves: Stored, bar: tqdm) -> Iterator[tuple[str, np.ndarray]]:
    """(torch key, array in torch's layout), a few hundred megabytes in memory at a time."""
    for paths in in_batches({path: nbytes(leaf) for path, leaf in leaves.items()}):
        arrays = checkpoint.read_some(source, {path: leaves[path] for path in paths})
        for path in paths:
            array = arrays.pop(path)
            yield torch_key(path), np.array(names.to_torch_layout(path, array), order="C")
            bar.update(array.nbytes)


def write_safetensors(path: pathlib.Path, source: pathlib.Path, leaves: Stored, tables: dict[str, np.ndarray],
                      bar: tqdm) -> None:  # fmt: skip
    """Header first, then each tensor as it comes; the library would hold the whole file in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    shapes = {torch_key(key): (names.torch_shape(key, leaf.shape), leaf.dtype) for key, leaf in leaves.items()}
    for key, (shape, dtype) in (shapes | {key: (t.shape, t.dtype) for key, t in tables.items()}).items():
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[key] = {"dtype": _SAFETENSORS_NAMES[np.dtype(dtype).name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in (*tensors(source, leaves, bar), *tables.items()):
            file.write(array.reshape(-1).view(np.uint8))


def write_pth(path: pathlib.Path, source: pathlib.Path, leaves: Stored, tables: dict[str, np.ndarray],
              bar: tqdm) -> None:  # fmt: skip
    torch = _torch()

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:  # unknown to torch.from_numpy
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    state_dict = {key: tensor(array) for key, array in tensors(source, leaves, bar)}
    with path.open("wb") as file:  # whose errors say that the disk is full; torch's own do not
        torch.save(state_dict | {key: tensor(table) for key, table in tables.items()}, file)


def folder_config(part: str, model: ModelConfig) -> dict[str, Any]:
    """config.json of a diffusers or transformers folder."""
    if part == "image_encoder":
        return {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model",
                "hidden_act": "quick_gelu", **dataclasses.asdict(model.image_encoder)}  # fmt: skip
    if part == "vae":
        levels = len(model.vae.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            **{name: getattr(model.vae, name) for name in ("in_channels", "latent_channels", "block_out_channels",
               "layers_per_block", "norm_num_groups", "scaling_factor")},
            "out_channels": model.vae.in_channels,
        }  # fmt: skip
    return unet_config(model)


def unet_config(model: ModelConfig) -> dict[str, Any]:
    """diffusers' UNet2DConditionModel of the same shapes."""
    unet = model.unet
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in unet.attention_levels]
    return {
        "_class_name": "UNet2DConditionModel",
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        **{name: getattr(unet, name) for name in ("in_channels", "out_channels", "block_out_channels",
           "layers_per_block", "cross_attention_dim", "norm_num_groups")},
        "attention_head_dim": unet.num_attention_heads,  # diffusers' name for the number of heads
    }  # fmt: skip


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError("writing .pth needs torch: install it, or use --format safetensors") from error
    return torch
