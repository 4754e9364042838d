"""The device mesh, and where batches and parameters live on it."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(fsdp: int = 1, frames: int = 1) -> Mesh:
    """All devices of all processes as (`data`, `fsdp`, `frames`); `data` takes what the other two leave.

    Raises:
        ValueError: the devices do not divide.
    """
    count = jax.device_count()
    if count % (fsdp * frames):
        raise ValueError(f"{count} devices do not divide into fsdp={fsdp} x frames={frames}")
    axes = ("data", "fsdp", "frames")
    return jax.make_mesh((count // (fsdp * frames), fsdp, frames), axes, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
