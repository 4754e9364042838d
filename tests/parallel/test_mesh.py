"""Which clips every host reads, on the slices one can rent: no clip twice, whatever order the torus gives the chips."""

import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from animate_jax.config import MeshConfig
from animate_jax.errors import UserError
from animate_jax.parallel.mesh import check_batch, make_mesh, rows_of_process

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]
KINDS = {"v5e": "TPU v5 lite", "v6e": "TPU v6 lite", "v5p": "TPU v5"}
HOST = (2, 2, 1)  # chips of a host
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
TOPOLOGIES = [
    *(f"{chip}:{sides}" for chip in ("v5e", "v6e") for sides in FLAT),
    *(f"v5p:{sides}" for sides in ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x4")),
    *("v5e:4x4*2", "v5e:8x16*2", "v6e:4x4*2", "v6e:8x16*2", "v5p:2x2x4*2", "v5p:4x4x4*2"),
]
MESHES = [(fsdp, frames) for fsdp in (1, 2, 4, 8, 16, 32) for frames in (1, 2, 4, 8)]


@dataclasses.dataclass(frozen=True, eq=False)  # equal by identity: JAX compares them with devices of its own, too
class Device:
    """What JAX looks at when it orders devices in a mesh."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    slice_index: int
    device_kind: str
    platform: str
    core_on_chip: int = 0
    __class__ = property(lambda self: jax.Device)  # for the type checks


def devices(topology, platform="tpu"):
    """Those of "v5e:4x4", or of two slices, "v5e:4x4*2", as JAX lists them: hosts in rows, a host's chips in rows."""
    generation, _, rest = topology.partition(":")
    sides, _, slices = rest.partition("*")
    x, y, z = (*map(int, sides.split("x")), 1)[:3]
    hosts = [range(side // of) for side, of in zip((x, y, z), HOST, strict=True)]
    listed = []
    for part in range(int(slices or 1)):
        for host in itertools.product(*hosts[::-1]):
            process = len(listed) // 4
            for place in itertools.product(*map(range, HOST[::-1])):
                at = tuple(h * of + p for h, of, p in zip(host[::-1], HOST, place[::-1], strict=True))
                number = at[0] + x * (at[1] + y * at[2])
                listed.append(Device(number + part * x * y * z, at, process, part, KINDS[generation], platform))
    return listed


def clips_of_a_batch(mesh):
    """The clip in each row when part i of n reads clips i, i + n, ...; every process fills the rows it holds."""
    rows = mesh.devices.reshape(-1, mesh.shape["frames"])
    batch = np.full(len(rows), -1)
    for process in {device.process_index for device in mesh.devices.flat}:
        held = [row for row, of in enumerate(rows) if any(device.process_index == process for device in of)]
        part, parts = rows_of_process(mesh, process)
        assert len(rows) == parts * len(held)
        read = np.arange(part, len(rows), parts)
        assert (batch[held] == -1).all() or (batch[held] == read).all()  # who shares a row reads the same clip
        batch[held] = read
    return batch


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_clip_is_read_twice_on_any_slice(topology):
    listed, tried = devices(topology), 0
    for fsdp, frames in MESHES:
        slices = 2 if topology.endswith("*2") else 1
        if fsdp * frames * slices > len(listed):
            continue
        mesh = make_mesh(MeshConfig(fsdp, frames), listed)
        assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in listed)
        inside = [len({device.slice_index for device in part.flat}) for part in mesh.devices]
        assert set(inside) == {1}  # only `data` crosses slices
        assert len(set(clips_of_a_batch(mesh))) == len(listed) // frames, (fsdp, frames)
        tried += 1
    assert tried >= 6


def test_an_order_that_the_torus_does_not_have_is_refused(monkeypatch):
    def impossible(*_, **__):
        raise NotImplementedError("Failed to find assignment\nand a long tail")

    monkeypatch.setattr("jax.experimental.mesh_utils.create_device_mesh", impossible)
    with pytest.raises(UserError, match=r"--mesh.fsdp 16 .* cannot be ordered as 1 x 16 x 1 \(Failed to find") as told:
        make_mesh(MeshConfig(16), devices("v6e:4x4"))
    assert "\n" not in str(told.value)


def test_clips_shared_by_halves_are_refused():
    mesh = make_mesh(MeshConfig(frames=3), devices("v5e:4x4", "gpu")[:12])  # not ordered by place
    with pytest.raises(UserError, match=r"--mesh.frames 3: clips would be shared"):
        rows_of_process(mesh, 0)


@pytest.mark.parametrize(
    "frames, mesh, clips, words",
    [
        (1, (1, 1), 64, "use a multiple of 256, or 64 devices in all"),  # the paper's stage 1
        (1, (16, 4), 64, "--mesh.frames 4: larger than the 1 frames of a clip"),
        (24, (8, 32), 8, "--mesh.frames 32: larger than the 24 frames of a clip"),
        (24, (4, 4), 32, "use a multiple of 64, or divide their frames with --mesh.frames 8"),
        (24, (4, 4), 4, "use a multiple of 64, or 4 devices in all"),
    ],
)
def test_work_that_chips_would_do_twice_is_refused(frames, mesh, clips, words):
    with pytest.raises(UserError) as told:
        check_batch(make_mesh(MeshConfig(*mesh), devices("v5e:16x16")), clips, frames)
    assert words in str(told.value)


def test_frames_that_do_not_divide_are_told():
    mesh = make_mesh(MeshConfig(4, 16), devices("v5e:16x16"))
    with pytest.warns(UserWarning, match="--mesh.frames 16 does not divide the 24 frames of a clip.*--mesh.frames 12"):
        check_batch(mesh, 16, 24)
    check_batch(make_mesh(MeshConfig(4, 8), devices("v5e:16x16")), 32, 24)


PROCESS = """
import json, sys
import grain.experimental, jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from animate_jax.parallel import processes
from animate_jax.parallel.mesh import AXES, rows_of_process, to_devices

with processes.distributed():
    of = {(d.process_index, i % 4): d for i, d in enumerate(sorted(jax.devices(), key=lambda d: d.id))}
    found = []
    for sides, order in json.loads(sys.argv[1]):
        mesh = Mesh(np.array([of[tuple(at)] for at in order]).reshape(sides), AXES, axis_types=(AxisType.Auto,) * 3)
        clips = grain.MapDataset.range(100).map(lambda i: {"clip": np.int32(i)})
        shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
        batch = to_devices(next(grain.experimental.ElasticIterator(clips, 16, shard)), mesh)
        whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(batch["clip"])
        found += [shard.data.tolist() for shard in whole.addressable_shards]
    print(json.dumps(found), flush=True)
"""


def test_four_processes_read_sixteen_clips():
    """In the order of v5p:2x2x4, where a host has every fourth row."""
    meshes = [make_mesh(MeshConfig(4, frames), devices("v5p:2x2x4")).devices for frames in (1, 4)]
    orders = [(grid.shape, [(d.process_index, d.coords[0] + 2 * d.coords[1]) for d in grid.flat]) for grid in meshes]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "4",
    }
    command = [sys.executable, "-c", PROCESS, json.dumps(orders)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment | {"JAX_PROCESS_ID": str(index)}, **pipes)
        for index in range(4)
    ]
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * 4, said
    for out, _ in said:
        assert all(sorted(copy) == list(range(16)) for copy in json.loads(out.splitlines()[-1])), out
