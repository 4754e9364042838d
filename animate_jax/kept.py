"""Traced programs, kept for the next process in the folder of JAX's compiled ones: tracing a UNet takes seconds.

A program is kept as StableHLO (`jax.export`), under the hash of all that its trace depends on: the source of this
package, versions, flags, device, shapes. Nothing is unpickled, but a program is trusted as the compiled ones beside it
are. So a file counts only if it belongs to this user, nobody else may write it, and it is whole; otherwise the program
is traced again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import stat
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.export

from animate_jax.storage import compiled_programs

T = TypeVar("T")
PACKAGES = ("jax", "jaxlib", "flax", "einops", "numpy", "qwix")  # that a trace may go through
FLAGS = ("JAX_", "XLA_", "LIBTPU_")  # environment variables
FILES = 256  # that are kept; the oldest go
DIGEST = 64  # characters


def call(function: Callable[..., T], name: str, *args: Any) -> T:
    """`function(*args)` for use inside `jax.jit`, on one device: traced only if no process has done so before.

    Args:
        name: with the shapes of `args` and with `key`, says all that the result depends on.
    """
    if _folder() is None:
        return function(*args)
    leaves, structure = jax.tree.flatten(args)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type) for leaf in leaves]
    kept = key(name, structure, [(leaf.shape, leaf.dtype.name, leaf.weak_type) for leaf in shapes])

    def flat(*leaves: jax.Array) -> T:
        return function(*jax.tree.unflatten(structure, leaves))

    exported = None
    if (found := read(kept)) is not None:
        with contextlib.suppress(Exception):  # of a damaged file
            exported = jax.export.deserialize(bytearray(found))
    if exported is None:
        try:
            exported = jax.export.export(jax.jit(flat))(*shapes)
        except ValueError:  # a kernel that is not StableHLO
            return function(*args)
        write(kept, bytes(exported.serialize()))
    return cast(T, exported.call(*leaves))


def key(*parts: Any) -> str:
    """The hash of everything a trace depends on: `parts` and what they do not say."""
    device = jax.devices()[0]
    return _hash(
        *map(str, parts),
        _source(),
        *map(_version, PACKAGES),
        *sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(FLAGS)),
        *sorted(f"{name}={value}" for name, value in jax.config.values.items() if "compilation_cache" not in name),
        f"{device.platform}, {device.device_kind}, {device.client.platform_version}, {os.cpu_count()} cores",
    )


@functools.cache
def _source() -> str:
    package = pathlib.Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    return _hash(*(f"{file.relative_to(package)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files))


@functools.cache
def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return f"no {package}"


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def read(kept: str) -> bytes | None:
    """What was written under a `key`; None if nothing was, or nothing that may be trusted."""
    folder = _folder()
    if folder is None:
        return None
    with contextlib.suppress(OSError), (folder / kept).open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        digest, data = file.read(DIGEST), file.read()
        if digest.decode("ascii", "replace") == _digest(kept, data):
            os.utime(file.fileno())
            return data
    return None


def write(kept: str, data: bytes) -> None:
    """Keeps `data` under a `key`; a folder that cannot be written is no error."""
    folder = _folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = folder / f".{kept}.{os.getpid()}"
        partial.touch(mode=0o600)
        partial.write_bytes(_digest(kept, data).encode() + data)
        partial.replace(folder / kept)
        for old in sorted(folder.iterdir(), key=lambda file: -file.stat().st_mtime)[FILES:]:
            old.unlink()


def _digest(kept: str, data: bytes) -> str:
    return hashlib.sha256(kept.encode() + data).hexdigest()


def _folder() -> pathlib.Path | None:
    """None unless compiled programs are kept, on this machine."""
    folder = compiled_programs()
    return None if folder is None else folder / "traced"
