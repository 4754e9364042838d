"""Torch's zip files (.pth, .pt, .bin, .ckpt) without torch: where each tensor lies, from a pickle that can run nothing.

The pickle may name only what `_ALLOWED` lists; everything else is refused before it is looked up, let alone called.
The format is PyTorch's `torch.save` since 1.6: an uncompressed zip of `data.pkl` and one member per storage. Several
tensors may lie in one storage (DeepSpeed's flat buffers); each is found by itself.
"""

from __future__ import annotations

import collections
import math
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from animate_jax.errors import UserError
from animate_jax.weights.tensor import Tensor

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


class _Storage:
    def __init__(self, name: str, dtype: np.dtype, count: int):
        self.name, self.dtype, self.count = name, dtype, count


class _Window:
    """A tensor as the pickle describes it: part of a storage."""

    def __init__(self, storage: _Storage, first: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.storage, self.first, self.shape, self.strides = storage, first, shape, strides


class _Inert:
    """Stands for what training programs leave in their files; takes everything and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _rebuild_tensor(storage: _Storage, first: int, shape: tuple, strides: tuple, *_: Any) -> _Window:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Window(storage, int(first), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: _Window, *_: Any) -> _Window:
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    # The original Stable Diffusion files hold a Lightning callback with numpy scalars.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): _Inert,
    ("numpy.core.multiarray", "scalar"): _Inert,
    ("numpy._core.multiarray", "scalar"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("_codecs", "encode"): _Inert,
    **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}, which no file of plain tensors needs")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, name, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"an unknown kind of storage {kind!r}")
        return _Storage(str(name), dtype, int(count))


def read_pickle(path: pathlib.Path) -> Any:
    """What a torch zip file holds, with a `Tensor` for every tensor; reads no tensor and runs nothing.

    Raises:
        UserError: damaged, or not a file of plain tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            with archive.open(members["data.pkl"]) as file:
                loaded = _Unpickler(file).load()
        with path.open("rb") as file:
            return _located(loaded, path, {name: _start(file, info) for name, info in members.items()}, set())
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, ValueError, TypeError, KeyError, IndexError,
            AttributeError, NotImplementedError, RecursionError, MemoryError) as error:  # fmt: skip
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a torch file of plain tensors, or it is damaged ({reason})") from error


def _start(file: Any, info: zipfile.ZipInfo) -> tuple[int, int]:
    """(first byte, size) of a member's data; the local header may be longer than the directory's copy of it."""
    if info.compress_type != zipfile.ZIP_STORED and info.filename.partition("/")[2].startswith("data/"):
        raise ValueError("its tensors are compressed")
    file.seek(info.header_offset + 26)
    name, extra = file.read(2), file.read(2)
    return info.header_offset + 30 + int.from_bytes(name, "little") + int.from_bytes(extra, "little"), info.file_size


def _located(value: Any, path: pathlib.Path, places: dict[str, tuple[int, int]], inside: set[int]) -> Any:
    """`value` with its windows as tensors; dictionaries only, as nothing else holds weights. `inside` are the
    dictionaries around it: one that holds itself is left out."""
    if isinstance(value, dict):
        if id(value) in inside:
            return None
        return {key: _located(item, path, places, inside | {id(value)}) for key, item in value.items()}
    if not isinstance(value, _Window):
        return value
    storage = value.storage
    start, size = places[f"data/{storage.name}"]
    itemsize = storage.dtype.itemsize
    if len(value.shape) != len(value.strides) or min((value.first, *value.shape, *value.strides)) < 0:
        raise ValueError("a tensor of an impossible shape")
    reach = 1 + sum((length - 1) * stride for length, stride in zip(value.shape, value.strides, strict=True))
    if math.prod(value.shape) and (value.first + reach) * itemsize > size:
        raise ValueError("a tensor reaches beyond its storage")
    return Tensor(path, start + value.first * itemsize, storage.dtype, value.shape, value.strides)
