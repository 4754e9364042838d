"""Torch's files (.pth, .pt, .bin, .ckpt) without torch: where each tensor lies. Their pickles are read as data.

Since PyTorch 1.6 `torch.save` writes an uncompressed zip of `data.pkl` and one member per storage; before, it wrote
five pickles (a magic number, the format's version, the machine's facts, the object, the storages' keys) and then the
storages, each behind its number of elements. Several tensors may lie in one storage (DeepSpeed's flat buffers); each
is found by itself.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from animate_jax import limits, unpickle
from animate_jax.torch_weights.tensor import Tensor, checked_tensor
from animate_jax.unpickle import Call

_STORAGES = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}
_IGNORED_NAMES = (
    # The original Stable Diffusion files hold a Lightning callback with numpy scalars.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of bytes that tensors lie in."""

    key: str
    dtype: np.dtype
    first: int  # element of the storage `key` where this one begins, if it is a view

    @classmethod
    def of(cls, call: Call) -> _Storage:
        """From its persistent id: "storage", type, key, device, length, and in old files what it is a view of: (its own
        key, first element, length), or None."""
        kind, dtype, key, _, _, *view = call.args[0]
        if kind != "storage" or dtype not in _STORAGES or type(key) is not str:
            raise ValueError("it holds an unknown kind of storage")
        return cls(key, _STORAGES[dtype], view[0][1] if view and view[0] else 0)


Span = tuple[int, int]  # first byte, number of bytes


def _makers(path: pathlib.Path, span: Callable[[str], Span]) -> unpickle.Makers:
    """Names that a torch file may hold, and what they become; `span` says where a storage lies in the file."""

    def tensor(call: Call) -> Tensor:
        storage, first, shape, strides = call.args[:4]
        if type(storage) is not _Storage:
            raise ValueError("it holds a tensor without a storage")
        return checked_tensor(path, storage.dtype, *span(storage.key), shape, strides, (first, storage.first))

    def ordered(call: Call) -> dict:
        """OrderedDict(), filled later, or of a list of pairs."""
        pairs = call.args[0] if call.args else ()
        return {unpickle.checked_key(key): value for key, value in pairs} | call.items

    return {
        unpickle.PERSISTENT: _Storage.of,
        "torch._utils._rebuild_tensor": tensor,  # of the oldest files
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda call: call.args[0],
        "torch.Size": lambda call: tuple(call.args[0]),
        "collections.OrderedDict": ordered,
        **dict.fromkeys(_STORAGES, unpickle.never),
        **dict.fromkeys(_IGNORED_NAMES, lambda call: None),
    }


def read_torch(path: pathlib.Path) -> Any:
    """What a torch file holds, with a `Tensor` for every tensor; reads no tensor and runs nothing.

    Raises:
        Exception: damaged, or not a file of plain tensors.
    """
    with path.open("rb") as file:
        return _read_zip(path, file) if zipfile.is_zipfile(file) else _read_legacy(path, file)


class _BoundedDirectory(io.FileIO):
    """A zip file whose directory does not fill the memory: zipfile reads it at once, as large as it says it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        if size > limits.DIRECTORY_BYTES:
            raise ValueError("its directory is too large")
        return super().read(size if size >= 0 else limits.DIRECTORY_BYTES)


def _read_zip(path: pathlib.Path, file: IO[bytes]) -> Any:
    with _BoundedDirectory(path) as directory, zipfile.ZipFile(directory) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def span(name: str) -> Span:
        """The local header may be longer than the directory's copy of it."""
        if (info := members.get(name)) is None:
            raise ValueError(f"it lacks {name!a}"[: limits.NAME_LENGTH])
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError("its members are compressed or encrypted: torch writes them plain")
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        return start, info.file_size

    start, size = span("data.pkl")
    if size > limits.PICKLE_BYTES:
        raise ValueError(f"its structure takes more than {limits.PICKLE_BYTES >> 20} MB")
    file.seek(start)
    pickled = file.read(size)
    if zlib.crc32(pickled) != members["data.pkl"].CRC:
        raise ValueError("its checksum is wrong")
    return unpickle.read(pickled, _makers(path, lambda key: span(f"data/{key}")))


def _read_legacy(path: pathlib.Path, file: IO[bytes]) -> Any:
    file.seek(0)
    content = file.read(limits.PICKLE_BYTES)
    if content[:2] == b"PK":
        raise ValueError("a zip file without its end: truncated?")
    spans: dict[str, Span] = {}
    makers = _makers(path, lambda key: spans[key])
    magic = unpickle.load(content, ())
    version = unpickle.load(content, (), magic.end)
    if (magic.value, version.value) != (_MAGIC, _VERSION):
        raise ValueError("its magic number is wrong")
    machine = unpickle.load(content, (), version.end)
    if machine.value["little_endian"] is not True:
        raise ValueError("it was written by a machine with another order of bytes")
    saved = unpickle.load(content, makers, machine.end)
    keys = unpickle.load(content, (), saved.end)
    dtypes = {storage.key: storage.dtype for storage in map(_Storage.of, saved.persistent)}
    at, size = keys.end, path.stat().st_size
    for key in keys.value:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        spans[key] = at + 8, count * dtypes[key].itemsize
        at = sum(spans[key])
        if at > size:
            raise ValueError("it ends too early: truncated?")
    return unpickle.build(saved.value, makers)
