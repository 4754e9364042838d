"""Weight files as numpy arrays in torch's layout: .safetensors, and .pth, .pt, .bin, .ckpt through torch.

Arrays are windows on the memory-mapped file: nothing is read before it is used.
"""

from __future__ import annotations

import json
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from animate_jax.errors import UserError

_SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in a file: arrays by torch key, without a {"state_dict": ...} around them, without
    the prefix "module." of distributed training, and without entries that are not tensors.

    Torch files are opened with `weights_only`, so they cannot run code.

    Raises:
        UserError: no such file, not a weight file, damaged, or torch is needed and not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    state_dict = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not state_dict:
        raise UserError(f"{path} holds no tensors; expected a state dict")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): array for key, array in state_dict.items()}
    return state_dict


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
        data = np.memmap(path, np.uint8, mode="r", offset=8 + header_size)
        header.pop("__metadata__", None)
        return {key: _view(data, **entry) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{path} is not a safetensors file, or it is damaged ({error})") from error


def _view(data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    return data[slice(*data_offsets)].view(_SAFETENSORS_DTYPES[dtype]).reshape(shape)


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: reading this format needs torch; install it, or convert to .safetensors") from error
    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a torch file of plain tensors, or it is damaged ({reason})") from error
    while isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a state dict")

    def to_numpy(tensor: torch.Tensor) -> np.ndarray:
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # unknown to numpy
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return {key: to_numpy(value) for key, value in loaded.items() if isinstance(value, torch.Tensor)}
