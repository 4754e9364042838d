"""The same training on one device and on eight: equal losses, and everything where it should be. Eight pretended
devices need a process of their own, because a flag makes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]

# data x fsdp x frames, and in how many passes 8 clips are done, so that a device has one clip or part of one
LAYOUTS = {"8x1x1": 1, "2x4x1": 1, "2x2x2": 2, "1x1x8": 8}

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, "tests")
from conftest import MICRO
from animate_jax.config import DataConfig, MeshConfig, OptimConfig, TrainConfig
from animate_jax.models.params import abstract_model
from animate_jax.parallel import rules
from animate_jax.parallel.mesh import check_batch, make_mesh, to_devices
from animate_jax.data.batch import Batch
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import make_state
from animate_jax.training.losses import DiffusionLoss
from animate_jax.training.step import make_step

jax.config.update("jax_disable_most_optimizations", True)
rules.MIN_SHARDED_SIZE = 64  # so that the parameters of so small a model are divided
layouts = json.loads(sys.argv[1])
random = np.random.default_rng(0)
graphdef, shapes = abstract_model(MICRO.model)
params = {path: 0.1 * random.standard_normal(leaf.shape, np.float32) for path, leaf in shapes.items()}


def losses(mesh, passes):
    config = TrainConfig(stage="stage2", output="", preset=MICRO, trainable="denoising_unet", optim=OptimConfig(1e-3),
                         data=DataConfig(batch=8, frames=8))
    random = np.random.default_rng(1)
    batch = jax.tree.map(lambda leaf: random.integers(0, 256, leaf.shape).astype(leaf.dtype), Batch.abstract(config))
    check_batch(mesh, 8 // passes, 8)
    tx = make_optimizer(config.optim, 10)
    state = make_state(jax.tree.map(jnp.asarray, params), config.trainable, tx, True)
    layout = rules.shardings(state, mesh)
    state = jax.device_put(state, layout)
    step = jax.jit(make_step(graphdef, DiffusionLoss(config), tx, 0.9, passes), donate_argnums=0,
                   out_shardings=(layout, None))
    with jax.set_mesh(mesh):
        compiled = step.lower(state, to_devices(batch, mesh), jax.random.key(0)).compile()
        values = []
        for _ in range(3):
            state, metrics = compiled(state, to_devices(batch, mesh), jax.random.key(0))
            values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return values, state, layout, compiled


values_alone, _, _, compiled_alone = losses(make_mesh(devices=jax.devices()[:1]), 1)
report = {}
for name, passes in layouts.items():
    data, fsdp, frame_shards = map(int, name.split("x"))
    mesh = make_mesh(MeshConfig(fsdp, frame_shards))
    assert tuple(mesh.shape.values()) == (data, fsdp, frame_shards)
    values, state, layout, compiled = losses(mesh, passes)
    # What comes out lies where the rules say, and as few bytes of it on each device.
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True))
    assert all(leaf.sharding.is_equivalent_to(place, leaf.ndim) for leaf, place in leaves)
    whole = sum(leaf.nbytes for leaf, _ in leaves)
    here = {device: 0 for device in mesh.devices.flat}
    for leaf, _ in leaves:
        for shard in leaf.addressable_shards:
            here[shard.device] += shard.data.nbytes
    flops, flops_alone = (each.cost_analysis()["flops"] for each in (compiled, compiled_alone))
    room, room_alone = (each.memory_analysis().temp_size_in_bytes for each in (compiled, compiled_alone))
    report[name] = {
        "error": float(np.abs(np.array(values) / values_alone - 1).max()),
        "state": max(here.values()) / whole,
        "flops": passes * flops / flops_alone,  # the compiler counts a loop's body once
        "temporaries": room / room_alone,
    }
print(json.dumps(report))
"""


def train(layouts):
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(layouts)],
        cwd=ROOT,
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param({"2x2x2": 2}, id="2x2x2"),
        pytest.param(LAYOUTS, id="all", marks=pytest.mark.slow),  # each compiles the step again
    ],
)
def test_training_is_the_same_and_nothing_is_silently_replicated(layouts):
    """Per device, in shares of what one device alone holds and does."""
    for layout, shares in train(layouts).items():
        fsdp = int(layout.split("x")[1])
        assert shares["error"] < 1e-5, layout
        assert shares["state"] < {1: 1.01, 2: 0.6, 4: 0.4}[fsdp], layout
        # What comes on top of 1/8: the reference's side, which all devices along `frames` compute.
        assert shares["flops"] < 0.25, layout
        assert shares["temporaries"] < 0.4, layout
