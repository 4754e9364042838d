"""The device mesh, and where batches live on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from animate_jax.config import MeshConfig
from animate_jax.errors import UserError

AXES = ("data", "fsdp", "frames")
DEFAULT = MeshConfig()


def make_mesh(config: MeshConfig = DEFAULT, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes as (`data`, `fsdp`, `frames`); `data` takes what the other two leave.

    On several TPU slices `data` spans them, and `fsdp` and `frames` stay inside one: between slices only the sum of
    the gradients travels. Run the jitted function under `jax.set_mesh(mesh)`, which is how the models know it.

    Raises:
        UserError: the devices do not divide.
    """
    devices = jax.devices() if devices is None else list(devices)
    inside, slices = config.fsdp * config.frames, len({getattr(device, "slice_index", 0) for device in devices})
    if inside < 1 or len(devices) // slices % inside:
        of = f" of each of {slices} slices" if slices > 1 else ""
        raise UserError(
            f"--mesh.fsdp {config.fsdp} --mesh.frames {config.frames}: the {len(devices) // slices} devices{of} "
            "do not divide into groups of their product; choose divisors"
        )
    shape = (len(devices) // slices // inside, config.fsdp, config.frames)
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def compiler_options(mesh: Mesh) -> dict[str, int]:
    """For `Lowered.compile`. A TPU's compiler would send weights around in a ring while it uses each piece, which reads
    the activations, here far larger than the weights, once per piece: gathering first moves half as many bytes."""
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000} if on_tpu else {}


def check_batch(mesh: Mesh, clips: int) -> None:
    """Are `clips` (of one forward pass, over all processes) divided evenly and without communication?

    Raises:
        UserError: they are not. With `frames`, a device holds frames of one clip: with more clips than that, the
            convolutions' merged clip and frame axes would not be divided, and every device would see all frames.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    better = f"--mesh.frames {mesh.size // math.gcd(clips, mesh.size)}"
    if clips % shards:
        raise UserError(
            f"--data.batch: {clips} clips per pass do not divide over data x fsdp = {shards} devices; "
            f"use a multiple of {shards}, or divide their frames with {better}"
        )
    if mesh.shape["frames"] > 1 and clips > shards:
        raise UserError(
            f"--mesh.frames {mesh.shape['frames']}: with {clips} clips per pass on {mesh.size} devices, "
            f"{better} divides the work with less communication"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`; devices along `frames` get the same rows."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def rows_of_process(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(index, count): this process reads the index-th of `count` equal parts of every batch.

    Processes whose devices hold other frames of the same clips get the same part.
    """
    process = jax.process_index() if process is None else process
    rows = mesh.devices.reshape(-1, mesh.shape["frames"])
    mine = [row for row, devices in enumerate(rows) if any(device.process_index == process for device in devices)]
    return mine[0] // len(mine), len(rows) // len(mine)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch (`rows_of_process`) -> global arrays."""
    sharding = batch_sharding(mesh)
    count = rows_of_process(mesh)[1]
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (len(rows) * count, *rows.shape[1:]))
        for name, rows in batch.items()
    }
