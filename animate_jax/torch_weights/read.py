"""Weight files as dictionaries of tensors in torch's layout: .safetensors (also in shards with an index), and .pth,
.pt, .bin, .ckpt. Folders and hub names lead to files. No tensor is read here, see `tensor`.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from animate_jax import limits
from animate_jax.checkpoints import hub
from animate_jax.errors import UserError, reading
from animate_jax.torch_weights.pickles import read_torch
from animate_jax.torch_weights.tensor import StateDict, Tensor, checked_tensor

LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
INDEX = ".safetensors.index.json"
# What a folder's weights may be called, best first; diffusers' and transformers' names.
_FOLDER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    f"diffusion_pytorch_model{INDEX}",
    f"model{INDEX}",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    LORA_FILE,
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read_state_dict(path: str | pathlib.Path) -> StateDict:
    """The state dict in a file, a diffusers folder or on the hub: tensors by torch key, without a
    {"state_dict": ...} around them, without the prefix "module." of distributed training, and without entries that
    are not tensors.

    Args:
        path: a file, a folder with one of diffusers' or transformers' weight files, or either on the hub
            ("owner/name", "owner/name/folder", "owner/name/file.pth"), if there is no such file here.

    Raises:
        UserError: no such file, not a weight file, or damaged.
    """
    path = find_file(path)
    if path.name.endswith(INDEX):
        state_dict = _read_shards(path)
    else:
        state_dict = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not state_dict:
        raise UserError(f"{path} holds no tensors; expected a state dict")
    if len(state_dict) > limits.TENSORS:
        raise UserError(f"{path} holds more than {limits.TENSORS:,} tensors; expected a state dict")
    for key in state_dict:
        if len(key) > limits.NAME_LENGTH or not key.isprintable():
            raise UserError(f"{path}: a tensor has no proper name, {key[:40]!a}...: take a whole copy")
    while all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    return state_dict


def find_file(path: str | pathlib.Path) -> pathlib.Path:
    """The weight file that `path` means; see `read_state_dict`.

    Raises:
        UserError: there is none.
    """
    name, path = str(path), pathlib.Path(path)
    with reading(path, "weight file", "check the path"):
        if not path.exists() and (remote := hub.split(name)) and (remote[1] or path.suffix not in SUFFIXES):
            path = _download(*remote)
        if path.is_dir():
            for name in _FOLDER_FILES:
                if (path / name).is_file():
                    return path / name
            raise UserError(f"{path}: a folder without weights: expected one of {', '.join(_FOLDER_FILES[:3])}, ...")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return path


def _download(repository: str, path: str) -> pathlib.Path:
    """The local copy of a file or folder on the hub, of which one of several formats is downloaded."""
    if path.endswith(SUFFIXES):
        return hub.download_files(repository, [path]) / path
    prefix = f"{path}/" if path else ""
    return hub.download_files(repository, weights_in_folder(hub.list_files(repository), prefix)) / path


def weights_in_folder(files: Iterable[str], prefix: str = "") -> list[str]:
    """Those of `files` that make up the weights of the folder `prefix`, in the best format."""
    inside = [file for file in files if file.startswith(prefix) and "/" not in file.removeprefix(prefix)]
    chosen = next((prefix + name for name in _FOLDER_FILES if prefix + name in inside), None)
    if chosen is None:
        return []
    if chosen.endswith(INDEX):
        return [file for file in inside if file.startswith(chosen.removesuffix(INDEX))]
    return [chosen]


def _read_shards(path: pathlib.Path) -> StateDict:
    with reading(path, "index of safetensors files", "take a whole copy of the folder"):
        with path.open("rb") as file:
            text = file.read(limits.JSON_BYTES + 1)
        if len(text) > limits.JSON_BYTES:
            raise ValueError(f"more than {limits.JSON_BYTES >> 20} MB")
        places = json.loads(text)["weight_map"]
        names = sorted(set(places.values()))
        if any(len(name) > limits.NAME_LENGTH or not name.isprintable() for name in [*places, *names]):
            raise ValueError("a name that is too long or not printable")
        if any(pathlib.PurePath(name).name != name for name in names):
            raise ValueError("a shard outside of the folder")
        missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(f"{path.parent / missing[0]}: no such file, but {path.name} names it")
    shards = {name: _read_safetensors(path.parent / name) for name in names}
    absent = [key for key, name in places.items() if key not in shards[name]]
    if absent:
        raise UserError(f"{path}: {absent[0]} is not in {places[absent[0]]}: take a whole copy of the folder")
    return {key: shards[name][key] for key, name in places.items()}


def _read_safetensors(path: pathlib.Path) -> StateDict:
    with reading(path, "safetensors file", "take a whole copy"):
        start, header = _read_header(path)
        size = path.stat().st_size
        return {key: _tensor(path, start, size, **entry) for key, entry in header.items() if key != "__metadata__"}


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """What a safetensors file says about itself.

    Raises:
        UserError: damaged.
    """
    with reading(path, "safetensors file", "take a whole copy"):
        metadata = _read_header(path)[1].get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no texts")
        return metadata


def _read_header(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the header."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 0 < header_size <= min(path.stat().st_size - 8, limits.HEADER_BYTES):
            raise ValueError("its header does not fit into it")
        return 8 + header_size, json.loads(file.read(header_size))


def safetensors_header(tensors: Mapping[str, Any], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The beginning of a safetensors file; the tensors' bytes follow, in this order.

    Args:
        tensors: anything with shape and dtype.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    dtypes = {np.dtype(dtype): name for name, dtype in _SAFETENSORS_DTYPES.items()}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        header[key] = {"dtype": dtypes[np.dtype(tensor.dtype)], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensor(path: pathlib.Path, start: int, size: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    if type(begin) is not int or type(end) is not int or begin < 0:
        raise ValueError("a tensor in an impossible place")
    if start + end > size:
        raise ValueError("it is truncated")
    return checked_tensor(path, np.dtype(_SAFETENSORS_DTYPES[dtype]), start + begin, end - begin, shape)


def _read_torch(path: pathlib.Path) -> StateDict:
    with reading(path, "torch file of plain tensors", "take a whole copy, or convert it to .safetensors"):
        loaded = read_torch(path)
        while isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a state dict")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
