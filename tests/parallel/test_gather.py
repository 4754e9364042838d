"""Weights gathered and gradients summed once per step: when that is chosen, and that many devices do as one does. The
devices are pretended, in a process of their own, because a flag makes them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from animate_jax.config import MeshConfig, OptimConfig, TrainConfig, VAELossConfig
from animate_jax.errors import UserError
from animate_jax.parallel.mesh import AXES
from animate_jax.training.losses import DiffusionLoss, VAELoss
from animate_jax.training.state import TrainState
from animate_jax.training.step import choose_gather
from tests.conftest import MICRO

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]

# data, fsdp, frames, micro-batches; 16 are summed in two rounds
LAYOUTS = [(2, 4, 1, 1), (2, 4, 1, 2), (2, 2, 2, 1), (2, 2, 2, 2), (8, 1, 1, 2)]
SIXTEEN = [(1, 16, 1, 1), (1, 16, 1, 2)]

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
sys.path.insert(0, "tests")
from conftest import MICRO
from animate_jax.config import DataConfig, DiffusionLossConfig, MeshConfig, TrainConfig
from animate_jax.models.params import abstract_model, split_model
from animate_jax.models.sharding import shard_frames, shard_pixels, sum_over_shards
from animate_jax.parallel import rules
from animate_jax.parallel.mesh import make_mesh, to_devices
from animate_jax.data.batch import Batch
from animate_jax.training.losses import DiffusionLoss, Loss
from animate_jax.training.state import make_state
from animate_jax.training.step import make_step

jax.config.update("jax_disable_most_optimizations", True)
rules.MIN_SHARDED_SIZE = 64  # so that the parameters of so small a model are divided
random = np.random.default_rng(0)


class Small(nnx.Module):
    # Spatial, temporal, spatial, as the layers of the real one.

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(12, 32, rngs=rngs), nnx.Linear(32, 12, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.first(shard_frames(x)))
        return self.second(shard_frames(x + jnp.cumsum(shard_pixels(x), 1)))


class SmallLoss(Loss):
    mean_over_rows = True

    def sample_randomness(self, batch, key):
        return {"noise": jax.random.normal(key, batch["frames"].shape), "keys": jax.random.split(key, 32)}

    def compute(self, model, batch, randomness):
        error = jnp.square(model(batch["frames"] + randomness["noise"]) - batch["frames"]).mean((1, 2, 3))
        drawn = jax.vmap(jax.random.uniform)(randomness["keys"])
        high = batch["frames"][:, 0, 0, 0] > 0
        return (error * drawn).mean(), {"high": sum_over_shards((error * high).sum()) / sum_over_shards(high.sum())}


if sys.argv[2] == "small":
    graphdef, shapes = split_model(Small(nnx.Rngs(0)))
    loss, trainable = SmallLoss(), "first|second.bias"
    batch = {"frames": random.standard_normal((32, 2, 4, 12), np.float32)}
else:
    config = TrainConfig(stage="stage2", output="", preset=MICRO, data=DataConfig(batch=16, frames=2),
                         loss=DiffusionLossConfig(person_weight=1.0, weighting="min_snr", flicker_weight=0.1))
    graphdef, shapes = abstract_model(MICRO.model)
    loss, trainable = DiffusionLoss(config), "denoising_unet|pose_guider"
    batch = jax.tree.map(lambda leaf: random.integers(0, 256, leaf.shape).astype(leaf.dtype), Batch.abstract(config))
params = {path: 0.1 * random.standard_normal(leaf.shape, np.float32) for path, leaf in shapes.items()}
tx = optax.chain(optax.trace(decay=0.0), optax.sgd(0.1))  # its state is the last gradient


def step(mesh, passes, gather):
    state = make_state(jax.tree.map(jnp.asarray, params), trainable, tx, True)
    layout = rules.shardings(state, mesh)
    made = make_step(graphdef, loss, tx, 0.9, passes, gather=gather)
    with jax.set_mesh(mesh):
        state, metrics = jax.jit(made, out_shardings=(layout, None))(
            jax.device_put(state, layout), to_devices(batch, mesh), jax.random.key(0))
    assert all(leaf.sharding.is_equivalent_to(place, leaf.ndim)
               for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True))
    return jax.device_get({"grads": state.opt[0].trace, "trainable": state.trainable, "ema": state.ema,
                           "metrics": metrics})


def difference(found, expected):
    # Of every array, relative to its largest element; NaN where both are NaN.
    def one(a, b):
        assert (np.isnan(a) == np.isnan(b)).all()
        return np.nanmax(np.abs(a - b), initial=0) / (np.nanmax(np.abs(b), initial=0) + 1e-30)
    return {name: max(jax.tree.leaves(jax.tree.map(one, found[name], expected[name]))) for name in expected}


report = {}
alone = {}
for data, fsdp, frames, passes in json.loads(sys.argv[1]):
    if passes not in alone:
        alone[passes] = step(make_mesh(devices=jax.devices()[:1]), passes, "layer")
    mesh = make_mesh(MeshConfig(fsdp, frames), jax.devices()[: data * fsdp * frames])
    for gather in ("step", "weights") if passes > 1 else ("step",):
        many = difference(step(mesh, passes, gather), alone[passes])
        report[f"{data} {fsdp} {frames} {passes} {gather}"] = {k: float(v) for k, v in many.items()}
print(json.dumps(report))
"""


@pytest.mark.parametrize(
    "model, layouts", [("small", LAYOUTS + SIXTEEN), pytest.param("real", LAYOUTS, marks=pytest.mark.slow)]
)
def test_gradients_and_state_are_those_of_one_device(model, layouts):
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=16 --xla_cpu_use_fusion_emitters=false",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(layouts), model],
        cwd=ROOT,
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for layout, found in json.loads(done.stdout).items():
        assert max(found.values()) < 1e-5, (layout, found)


# What `--mesh.gather` comes to, for the parameters of the paper's stages.


@dataclasses.dataclass(frozen=True, eq=False)  # equal by identity: meshes are compared by their devices
class Device:
    device_kind: str
    __class__ = property(lambda self: jax.Device)  # for the type checks


STAGE1 = {"trainable": 1_720_000_000, "frozen": 840_000_000}
STAGE2 = {"trainable": 453_000_000, "frozen": 2_110_000_000}


def chosen(device, sizes, gather="auto", data=1, fsdp=16, frames=1, dtype="bfloat16", loss=None, **options):
    mesh = Mesh(np.array([Device(device) for _ in range(data * fsdp * frames)]).reshape(data, fsdp, frames), AXES)
    config = TrainConfig(
        stage="stage1", output="", preset=MICRO, mesh=MeshConfig(fsdp, frames, gather), compute_dtype=dtype, **options
    )
    params = {name: {name: jax.ShapeDtypeStruct((size,), jnp.float32)} for name, size in sizes.items()}
    state = TrainState(step=jax.ShapeDtypeStruct((), jnp.int32), **params, opt=(), ema={})
    return choose_gather(config, DiffusionLoss(config) if loss is None else loss, mesh, state)


@pytest.mark.parametrize(
    "device, stage1, stage2",
    [
        ("TPU v5 lite", "layer", "layer"),
        ("TPU v6 lite", "weights", "step"),
        ("TPU v5", "step", "step"),
        ("TPU7x", "step", "step"),
        ("NVIDIA H100 80GB HBM3", "layer", "layer"),
        ("cpu", "layer", "layer"),
    ],
)
@pytest.mark.parametrize("data, fsdp, frames", [(1, 16, 1), (16, 16, 1), (1, 4, 4)])
def test_auto_gathers_once_where_whole_weights_leave_room(device, stage1, stage2, data, fsdp, frames):
    assert chosen(device, STAGE1, data=data, fsdp=fsdp, frames=frames) == stage1
    assert chosen(device, STAGE2, data=data, fsdp=fsdp, frames=frames) == stage2


@pytest.mark.parametrize(
    "accumulate, dtype, found", [(1, "float32", "layer"), (2, "float32", "step"), (1, "bfloat16", "step")]
)
def test_auto_sends_no_more_where_nothing_is_gathered(accumulate, dtype, found):
    options = {"accumulate": accumulate, "optim": OptimConfig(gradient_dtype=dtype)}
    assert chosen("TPU v5", STAGE1, data=256, fsdp=1, **options) == found
    assert (
        chosen("TPU v6 lite", STAGE1, data=256, fsdp=1, **options) == "layer"
    )  # sums for every micro-batch either way


def test_float32_passes_take_twice_the_room():
    assert chosen("TPU v6 lite", STAGE2) == "step"
    assert chosen("TPU v6 lite", STAGE2, dtype="float32") == "layer"


@pytest.mark.parametrize("device", ["TPU v5", "TPU v5 lite", "cpu"])
def test_one_clip_at_a_time_is_left_to_the_compiler(device):
    for gather in ("auto", "step", "weights", "layer"):
        assert chosen(device, STAGE1, gather, fsdp=1) == "layer"
        assert chosen(device, STAGE2, gather, fsdp=1, frames=4) == "layer"


def test_who_asks_gets_what_was_asked():
    for gather in ("step", "weights", "layer"):
        assert chosen("TPU v5 lite", STAGE1, gather) == gather
        assert chosen("TPU v5", STAGE1, gather) == gather


@pytest.mark.parametrize("gather", ["step", "weights"])
def test_losses_that_are_no_mean_over_rows_are_left_to_the_compiler(gather):
    config = TrainConfig(stage="vae", output="", preset=MICRO, vae_loss=VAELossConfig())
    assert chosen("TPU v5", STAGE1, loss=VAELoss(config, lambda a, b: 0.0)) == "layer"
    assert chosen("TPU v5", STAGE1, loss=lambda model, batch, key: (0.0, {})) == "layer"
    with pytest.raises(UserError, match=f"--mesh.gather {gather}: not for the autoencoder"):
        chosen("TPU v5", STAGE1, gather, loss=VAELoss(config, lambda a, b: 0.0))
