"""The device mesh, and where batches live on it."""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from animate_jax.config import MeshShape
from animate_jax.errors import UserError

AXES = ("data", "fsdp", "frames")
DEFAULT = MeshShape()


def make_mesh(
    config: MeshShape = DEFAULT,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # jax.Device is untyped
) -> Mesh:
    """All devices of all processes as (`data`, `fsdp`, `frames`); `data` takes what the other two leave.

    On several TPU slices `data` spans them, and `fsdp` and `frames` stay inside one: between slices only the sum of
    the gradients travels. Run the jitted function under `jax.set_mesh(mesh)`, which is how the models know it.

    TPUs are ordered by their place in the torus, so that neighbors in the mesh are neighbors in it.

    Raises:
        UserError: the devices do not divide, or have no such order.
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
    try:
        if slices == 1:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        else:
            across = (slices, 1, 1)
            grid = mesh_utils.create_hybrid_device_mesh(shape, across, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"--mesh.fsdp {config.fsdp} --mesh.frames {config.frames}: the {len(devices)} devices cannot be ordered "
            f"as {' x '.join(map(str, shape))} ({str(error).strip().splitlines()[0][:120]}); choose other divisors"
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def compiler_options(mesh: Mesh) -> dict[str, int]:
    """For `Lowered.compile`. A TPU's compiler would send weights around in a ring while it uses each piece, which reads
    the activations, here far larger than the weights, once per piece: gathering first moves half as many bytes."""
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000} if on_tpu else {}


def check_batch(mesh: Mesh, clips: int, frames: int) -> None:
    """Are `clips` of `frames` frames (of one forward pass, over all processes) divided evenly over all devices and
    without communication? Warns when the frames are not divided evenly.

    Raises:
        UserError: they are not. With axis `frames`, a device holds frames of one clip: with more clips than that, the
            convolutions' merged clip and frame axes would not be divided, and every device would see all frames.
    """
    shards, divided = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["frames"]
    if divided > frames:
        raise UserError(
            f"--mesh.frames {divided}: larger than the {frames} frames of a clip, which every device would compute; "
            f"use at most --mesh.frames {frames}"
        )
    most = math.gcd(clips, mesh.size)
    better = f"--mesh.frames {mesh.size // most}"
    possible = mesh.size // most <= frames
    if clips % shards:
        raise UserError(
            f"--data.batch: {clips} clips per pass do not divide over data x fsdp = {shards} devices; use a multiple "
            f"of {shards}, or " + (f"divide their frames with {better}" if possible else f"{most} devices in all")
        )
    if divided > 1 and clips > shards:
        raise UserError(
            f"--mesh.frames {divided}: with {clips} clips per pass on {mesh.size} devices, "
            f"{better} divides the work with less communication"
        )
    if frames % divided:
        even = max(n for n in range(1, divided) if frames % n == 0)
        warnings.warn(
            f"--mesh.frames {divided} does not divide the {frames} frames of a clip: devices wait for the fullest; "
            f"--mesh.frames {even} would",
            stacklevel=2,
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`; devices along `frames` get the same rows."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def rows_of_process(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(index, count): this process reads the index-th of `count` equal parts of every batch.

    Processes whose devices hold other frames of the same clips get the same part. A process's rows need not be
    neighbors: the mesh follows the torus, in which a host is a square.

    Raises:
        UserError: processes share some of their rows and not others.
    """
    held: dict[int, list[int]] = collections.defaultdict(list)
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["frames"])):
        for owner in {device.process_index for device in devices}:
            held[owner].append(row)
    parts = sorted({tuple(rows) for rows in held.values()})
    sizes = {len(part) for part in parts}
    if len(sizes) > 1 or sum(map(len, parts)) != mesh.size // mesh.shape["frames"]:
        raise UserError(
            f"--mesh.frames {mesh.shape['frames']}: clips would be shared by processes that also have clips of their "
            "own; choose a multiple or a divisor of the devices of a process"
        )
    return parts.index(tuple(held[jax.process_index() if process is None else process])), len(parts)


def to_devices(batch: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """This process's rows of a batch (`rows_of_process`) -> global arrays."""
    sharding, count = batch_sharding(mesh), rows_of_process(mesh)[1]

    def to_global(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (len(rows) * count, *rows.shape[1:]))

    return jax.tree.map(to_global, batch)
