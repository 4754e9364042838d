"""Weight files as dictionaries of tensors in torch's layout: .safetensors (also in shards with an index), and .pth,
.pt, .bin, .ckpt. Folders and hub names lead to files. No tensor is read here, see `tensor`; torch is needed only for
files from before torch 1.6.
"""

from __future__ import annotations

import json
import math
import pathlib
import pickle
import re
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from animate_jax.errors import UserError
from animate_jax.weights.pickles import read_pickle
from animate_jax.weights.tensor import Tensor

StateDict = dict[str, Tensor | np.ndarray]

_SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
INDEX = ".safetensors.index.json"
# What a folder's weights may be called, best first; diffusers' and transformers' names.
_IN_FOLDER = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", f"diffusion_pytorch_model{INDEX}", f"model{INDEX}",
    "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)  # fmt: skip
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read(path: str | pathlib.Path) -> StateDict:
    """The state dict in a file, a diffusers folder or on the hub: tensors by torch key, without a
    {"state_dict": ...} around them, without the prefix "module." of distributed training, and without entries that
    are not tensors.

    Args:
        path: a file, a folder with one of diffusers' or transformers' weight files, or "owner/name[/folder]" on the
            hub, if there is no such file and `huggingface_hub` is installed.

    Raises:
        UserError: no such file, not a weight file, damaged, or torch is needed and not installed.
    """
    path = find(path)
    if path.name.endswith(INDEX):
        state_dict = _read_shards(path)
    else:
        state_dict = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not state_dict:
        raise UserError(f"{path} holds no tensors; expected a state dict")
    while all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    return state_dict


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The weight file that `path` means; see `read`.

    Raises:
        UserError: there is none.
    """
    name, path = str(path), pathlib.Path(path)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)*", name) and path.suffix not in SUFFIXES:
        path = _download(name)
    if path.is_dir():
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: a folder without weights: expected one of {', '.join(_IN_FOLDER[:3])}, ...")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def _download(name: str) -> pathlib.Path:
    """The local copy of "owner/name[/folder]" on the hub, fetching only one of several formats."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name}: no such file (a hub name needs huggingface_hub: pip install it)") from error
    owner, repository, *folder = name.split("/")
    prefix = "".join(f"{part}/" for part in folder)
    try:
        files = huggingface_hub.list_repo_files(f"{owner}/{repository}")
        chosen = next((prefix + file for file in _IN_FOLDER if prefix + file in files), None)
        wanted = [chosen] if chosen else [file for file in files if file.startswith(prefix) and
                                          file.endswith(SUFFIXES)]  # fmt: skip
        if chosen and chosen.endswith(INDEX):
            wanted = [f"{chosen.removesuffix(INDEX)}*"]
        root = huggingface_hub.snapshot_download(f"{owner}/{repository}", allow_patterns=[*wanted, "*.json"])
    except Exception as error:  # the hub raises its own, requests' and the file system's
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise UserError(f"{name}: no such file, and the hub could not give it ({reason})") from error
    return pathlib.Path(root, *folder)


def _read_shards(path: pathlib.Path) -> StateDict:
    try:
        places = json.loads(path.read_text())["weight_map"]
        names = sorted(set(places.values()))
        if any(pathlib.PurePath(name).name != name for name in names):
            raise ValueError("a shard outside of the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an index of safetensors files, or it is damaged ({error})") from error
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(f"{path.parent / missing[0]}: no such file, but {path.name} names it")
    shards = {name: _read_safetensors(path.parent / name) for name in names}
    absent = [key for key, name in places.items() if key not in shards[name]]
    if absent:
        raise UserError(f"{path}: {absent[0]} is not in {places[absent[0]]}: take a whole copy of the folder")
    return {key: shards[name][key] for key, name in places.items()}


def _read_safetensors(path: pathlib.Path) -> StateDict:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if not 0 < header_size <= size - 8:
                raise ValueError("its header does not fit into it")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        return {key: _tensor(path, 8 + header_size, size, **entry) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError, RecursionError) as error:
        raise UserError(f"{path} is not a safetensors file, or it is damaged ({error})") from error


def _tensor(path: pathlib.Path, start: int, size: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    kind, (begin, end) = np.dtype(_SAFETENSORS_DTYPES[dtype]), data_offsets
    if begin < 0 or start + end > size:
        raise ValueError("it is truncated")
    if end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError("a tensor of an impossible shape")
    return Tensor(path, start + begin, kind, tuple(shape))


def _read_torch(path: pathlib.Path) -> StateDict:
    loaded = read_pickle(path) if zipfile.is_zipfile(path) else _read_old(path)
    while isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a state dict")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor | np.ndarray)}


def _read_old(path: pathlib.Path) -> Any:
    """Files from before torch 1.6 are a bare pickle followed by the storages."""
    with path.open("rb") as file:
        if file.read(2)[:1] != b"\x80":  # every pickle begins so, and a zip without its end does not
            raise UserError(f"{path} is not a torch file of plain tensors, or it is damaged (truncated?)")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: this old format needs torch; install it, or convert to .safetensors") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a torch file of plain tensors, or it is damaged ({reason})") from error

    def to_numpy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: to_numpy(item) for key, item in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        if value.dtype == torch.bfloat16:  # unknown to numpy
            return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    return to_numpy(loaded)
