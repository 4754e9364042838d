"""Where parameters, states and batches live, on eight pretended devices (a process of its own: a flag makes them)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import jax, numpy as np
from jax.sharding import PartitionSpec
from animate_jax.config import ModelConfig, OptimConfig
from animate_jax.models import params as P
from animate_jax.parallel.mesh import batch_sharding, make_mesh, to_devices
from animate_jax.parallel.rules import SMALL, shardings, spec
from animate_jax.training.state import make_state, optimizer

assert jax.device_count() == 8
mesh = make_mesh(fsdp=4)
assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "frames": 1}
assert dict(make_mesh(fsdp=2, frames=2).shape) == {"data": 2, "fsdp": 2, "frames": 2}
assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "frames": 1}
try:
    make_mesh(fsdp=3)
    raise AssertionError
except ValueError as error:
    assert "8 devices do not divide into fsdp=3" in str(error)

# Single arrays: the largest divisible axis; small, odd and one-dimensional ones whole.
assert spec("a.kernel", (3, 3, 320, 640), mesh) == PartitionSpec(None, None, None, "fsdp")
assert spec("a.kernel", (1280, 320), mesh) == PartitionSpec("fsdp")
assert spec("a.kernel", (1282, 320), mesh) == PartitionSpec(None, "fsdp")
assert spec("a.kernel", (1025, 1023), mesh) == PartitionSpec()
assert spec("a.kernel", (64, 64), mesh) == PartitionSpec()
assert spec("a.bias", (SMALL * 4,), mesh) == PartitionSpec()
assert spec("a.norm.scale", (SMALL * 4,), mesh) == PartitionSpec()
assert spec("embeddings.class_embedding", (SMALL * 4,), mesh) == PartitionSpec()
assert spec("a.kernel", (1280, 320), make_mesh()) == PartitionSpec()

# The full-size model, as shapes only: most of its bytes are divided, and nothing unevenly.
_, shapes = P.abstract(ModelConfig.sd15())
layout = shardings(shapes, mesh)
bytes_whole = sum(leaf.size for leaf in shapes.values())
bytes_here = sum(np.prod(layout[path].shard_shape(leaf.shape)) for path, leaf in shapes.items())
assert 0.25 < bytes_here / bytes_whole < 0.27, bytes_here / bytes_whole

# Moments and averages lie where their parameter lies.
state = jax.eval_shape(lambda p: make_state(p, ".*attn1", optimizer(OptimConfig(), 10), ema=True), shapes)
places = shardings(state, mesh)
assert jax.tree.structure(places) == jax.tree.structure(state)
assert places["step"].spec == PartitionSpec()
adam = places["opt"][1][0]
assert adam.count.spec == PartitionSpec()
divided = 0
for path, place in places["trainable"].items():
    assert adam.mu[path] == adam.nu[path] == places["ema"][path] == place == layout[path]
    divided += place.spec != PartitionSpec()
assert divided > 50
for path, place in places["frozen"].items():
    assert place == layout[path]

# Batches: rows over data x fsdp.
rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
batch = to_devices({"rows": rows}, mesh)["rows"]
assert batch.sharding == batch_sharding(mesh) and batch.shape == (16, 3)
assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
np.testing.assert_array_equal(batch, rows)
"""


@pytest.fixture(scope="module")
def done():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], cwd=ROOT, env=os.environ | flags, capture_output=True, text=True
    )


def test_rules_and_batches_on_eight_devices(done):
    assert done.returncode == 0, done.stderr
