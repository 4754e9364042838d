"""The same video from one device and from several, which share windows and frames. Pretended devices need a process of
their own, because a flag makes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, "tests")
from conftest import MICRO
from animate_jax.config import MeshConfig
from animate_jax.models.params import abstract_model
from animate_jax.parallel import rules
from animate_jax.parallel.mesh import make_mesh
from animate_jax.sampling.pipeline import Pipeline

jax.config.update("jax_disable_most_optimizations", True)
rules.MIN_SHARDED_SIZE = 64  # so that the parameters of so small a model are divided
random = np.random.default_rng(0)
params = {path: jnp.asarray(0.1 * random.standard_normal(leaf.shape, np.float32))
          for path, leaf in abstract_model(MICRO.model)[1].items()}
poses, picture = (random.integers(0, 256, shape, np.uint8) for shape in ((10, 64, 48, 3), (64, 48, 3)))


def video(pipeline):
    options = pipeline.animation_config()
    conditioning = pipeline.precompute_conditioning(picture, poses[0], options)
    latents = pipeline.sample(conditioning, poses, options, progress=False)
    return latents, pipeline.decode(latents)


alone, shown = video(Pipeline(params, MICRO))
for config in (MeshConfig(), MeshConfig(fsdp=2, frames=2)):
    mesh = make_mesh(config)
    spread = jax.device_put(params, rules.shardings(params, mesh))
    calls, pipeline = [], Pipeline(spread, MICRO, mesh)
    denoise = pipeline._run_unet
    pipeline._run_unet = lambda params, x, *rest: calls.append(x) or denoise(params, x, *rest)
    together, seen = video(pipeline)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(seen.astype(int) - shown).max() <= 1
    # 3 windows in 2 steps; a device holds its own rows, and the program its frames.
    rows = 4 // config.frames
    assert len(calls) == 2 * -(-3 // rows) and {x.shape[0] for x in calls} == {2 * rows}
    assert {shard.data.shape[0] for x in calls for shard in x.addressable_shards} == {2}
print("the same")
"""


def test_several_devices_make_the_same_video():
    flags = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=flags, capture_output=True, text=True)
    assert done.stdout.endswith("the same\n"), done.stderr[-4000:]
