"""The arrays of a checkpoint on this machine, read by TensorStore, which is what Orbax itself reads with.

Orbax takes a second to import and to plan the reading of a thousand small arrays. It remains the writer, and the reader
of buckets, of older formats, and of whatever cannot be read here, which it has an error for.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from animate_jax.storage import Folder

DESCRIPTION = "/zarr.json"  # of each array, in the database (OCDBT) that holds them all


def describe(path: Folder) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array; any exception means that Orbax should be asked."""
    import tensorstore

    database = tensorstore.KvStore.open(_database(path)).result()
    names = [key.decode().removesuffix(DESCRIPTION) for key in database.list().result() if key.endswith(b"/zarr.json")]
    if not names:
        raise ValueError(f"{path}: of another format")
    found = {name: database.read(name + DESCRIPTION) for name in sorted(names)}
    texts = {name: json.loads(reading.result().value) for name, reading in found.items()}
    return {
        name: jax.ShapeDtypeStruct(tuple(text["shape"]), tensorstore.dtype(text["data_type"]).numpy_dtype)
        for name, text in texts.items()
    }


def read(path: Folder, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some arrays, as stored; any exception means that Orbax should be asked."""
    import tensorstore

    kvstore = _database(path)
    opening = {
        name: tensorstore.open({"driver": "zarr3", "kvstore": {**kvstore, "path": f"{name}/"}}, open=True)
        for name in names
    }
    reading = {name: array.result().read() for name, array in opening.items()}
    return {name: array.result() for name, array in reading.items()}


def _database(path: Folder) -> dict[str, Any]:
    if not isinstance(path, pathlib.Path):
        raise ValueError(f"{path}: in a bucket")
    folder = (path / "params").absolute()
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
