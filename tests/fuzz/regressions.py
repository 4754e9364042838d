"""Files that once failed, written by hand. Every run of the fuzzer tries them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable

import numpy as np


def canvas(width: str) -> Callable[[dict[str, bytes]], bytes]:
    return lambda files: files["a.json"].replace(b'"canvas_width": 48', f'"canvas_width": {width}'.encode())


def tensors(shape: list[int | float], *names: str) -> Callable[[dict[str, bytes]], bytes]:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]} for name in names}
    return lambda files: safetensors(json.dumps(header).encode())


def member(contents: bytes) -> Callable[[dict[str, bytes]], bytes]:
    return lambda files: zipped(files["a.npz"], "body.npy", contents)


def safetensors(header: bytes, data: bytes = bytes(64)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def zipped(contents: bytes, name: str, member: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.namelist():
            new.writestr(each, member if each == name else old.read(each))
    return result.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


# Title -> kind, name of the file, and a function from the undamaged files to its contents.
REGRESSIONS: dict[str, tuple[str, str, Callable[[dict[str, bytes]], bytes]]] = {
    "nested deeply": ("poses", "a.json", lambda files: b"[" * 100_000 + b"]" * 100_000),
    "no canvas": ("poses", "a.json", canvas("0")),
    "endless canvas": ("poses", "a.json", canvas("Infinity")),
    "canvas like a line": ("poses", "a.json", canvas("999999")),
    "claims a terabyte": ("poses", "a.npz", member(npy_header((2**38, 1)))),
    "no array": ("poses", "a.npz", member(b"hello")),
    "negative lengths": ("weights", "a.safetensors", tensors([-2, -2], "x")),
    "half a length": ("weights", "a.safetensors", tensors([4.0], "x")),
    "convolution of one dimension": (
        "weights",
        "a.safetensors",
        tensors([4], "conv_in.weight", "time_embedding.linear_1.weight"),
    ),
    "header of 4 GB": ("weights", "a.safetensors", lambda files: (2**32).to_bytes(8, "little") + b"{}"),
}
