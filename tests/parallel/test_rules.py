"""Where parameters, states and batches live, on eight pretended devices (a process of its own: a flag makes them)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]

SCRIPT = """
import collections, re
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from animate_jax.config import MeshConfig, ModelConfig, OptimConfig
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model, merge_model, split_model
from animate_jax.models.temporal import MotionModule
from animate_jax.parallel.mesh import batch_sharding, check_batch, make_mesh, rows_of_process, to_devices
from animate_jax.parallel.hlo import COLLECTIVES
from animate_jax.parallel.rules import MIN_SHARDED_SIZE, param_spec, shardings
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import make_state

assert jax.device_count() == 8
mesh = make_mesh(MeshConfig(fsdp=4))
assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "frames": 1}
assert dict(make_mesh(MeshConfig(2, 2)).shape) == {"data": 2, "fsdp": 2, "frames": 2}
assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "frames": 1}


def refuses(words, function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)


refuses("--mesh.fsdp 3 --mesh.frames 1: the 8 devices do not divide", make_mesh, MeshConfig(fsdp=3))
refuses("--mesh.fsdp 0", make_mesh, MeshConfig(fsdp=0))
check_batch(mesh, 16, 2)
refuses("12 clips per pass do not divide over data x fsdp = 8 devices", check_batch, mesh, 12, 2)
refuses("--mesh.frames 2", check_batch, mesh, 4, 2)  # advice that is right:
check_batch(make_mesh(MeshConfig(frames=2)), 4, 2)
refuses("--mesh.frames 1 divides the work", check_batch, make_mesh(MeshConfig(frames=2)), 8, 2)
assert rows_of_process(mesh) == (0, 1)

# Single arrays: the largest divisible axis; small, odd and one-dimensional ones whole.
assert param_spec("a.kernel", (3, 3, 320, 640), mesh) == PartitionSpec(None, None, None, "fsdp")
assert param_spec("a.kernel", (1280, 320), mesh) == PartitionSpec("fsdp")
assert param_spec("a.kernel", (1282, 320), mesh) == PartitionSpec(None, "fsdp")
assert param_spec("a.kernel", (1025, 1023), mesh) == PartitionSpec()
assert param_spec("a.kernel", (64, 64), mesh) == PartitionSpec()
assert param_spec("a.bias", (MIN_SHARDED_SIZE * 4,), mesh) == PartitionSpec()
assert param_spec("a.norm.scale", (MIN_SHARDED_SIZE * 4,), mesh) == PartitionSpec()
assert param_spec("embeddings.class_embedding", (MIN_SHARDED_SIZE * 4,), mesh) == PartitionSpec()
assert param_spec("a.kernel", (1280, 320), make_mesh()) == PartitionSpec()

# The full-size model, as shapes only: most of its bytes are divided, and nothing unevenly.
_, shapes = abstract_model(ModelConfig.sd15())
layout = shardings(shapes, mesh)
bytes_whole = sum(leaf.size for leaf in shapes.values())
bytes_here = sum(np.prod(layout[path].shard_shape(leaf.shape)) for path, leaf in shapes.items())
assert 0.25 < bytes_here / bytes_whole < 0.27, bytes_here / bytes_whole

# Moments and averages lie where their parameter lies.
state = jax.eval_shape(lambda p: make_state(p, ".*attn1", make_optimizer(OptimConfig(), 10), ema=True), shapes)
places = shardings(state, mesh)
assert jax.tree.structure(places) == jax.tree.structure(state)
assert places.step.spec == PartitionSpec()
adam = places.opt[1][0]
assert adam.count.spec == PartitionSpec()
divided = 0
for path, place in places.trainable.items():
    assert adam.mu[path] == adam.nu[path] == places.ema[path] == place == layout[path]
    divided += place.spec != PartitionSpec()
assert divided > 50
for path, place in places.frozen.items():
    assert place == layout[path]

# Batches: rows over data x fsdp.
rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
batch = to_devices({"rows": rows}, mesh)["rows"]
assert batch.sharding == batch_sharding(mesh) and batch.shape == (16, 3)
assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
np.testing.assert_array_equal(batch, rows)

# A temporal layer: frames lie apart before and after it, pixels inside. Two all-to-alls and nothing else.
graphdef, weights = split_model(nnx.eval_shape(lambda: MotionModule(32, 4, 8, rngs=nnx.Rngs(0))))
mesh = make_mesh(MeshConfig(fsdp=2, frames=2))
apart = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "frames"))
clips = jax.ShapeDtypeStruct((4, 8, 8, 8, 32), np.float32, sharding=apart)
layer = jax.jit(lambda weights, x: merge_model(graphdef, weights)(x))
with jax.set_mesh(mesh):
    compiled = layer.lower(weights, clips).compile()
counted = collections.Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?[(]", compiled.as_text()))
assert counted == {"all-to-all": 2}, counted
assert compiled.output_shardings.is_equivalent_to(apart, 5)
alone = layer.lower(weights, jax.ShapeDtypeStruct(clips.shape, np.float32)).compile()
assert compiled.cost_analysis()["flops"] < 0.14 * alone.cost_analysis()["flops"]
"""


@pytest.fixture(scope="module")
def done():
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], cwd=ROOT, env=os.environ | flags, capture_output=True, text=True
    )


def test_rules_and_batches_on_eight_devices(done):
    assert done.returncode == 0, done.stderr
