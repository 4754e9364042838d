"""Reading what the TPU compiler says; and, where it is installed, asking it."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from animate_jax.errors import UserError
from animate_jax.parallel import forecast
from animate_jax.parallel.chips import find_chip

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]


def test_micro_batches_add_up_and_the_optimizer_counts_once():
    tx, weights = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), jnp.ones((128, 128))

    def flops(passes):
        def step(weights, opt, rows):
            grad = jax.grad(lambda weights, part: jnp.sum(jnp.square(part @ weights)))

            def add(total, part):
                return (total + grad(weights, part), None)

            total, _ = jax.lax.scan(add, jnp.zeros_like(weights), rows.reshape(passes, -1, 128))
            updates, opt = tx.update(total, opt, weights)
            return optax.apply_updates(weights, updates), opt

        compiled = jax.jit(step).lower(weights, tx.init(weights), jnp.ones((64, 128))).compile()
        return forecast.step_flops(compiled, {"w": weights}, passes)

    assert flops(4) == pytest.approx(flops(1), rel=0.02)


def test_overflow_is_told_in_one_line():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

  Largest program allocations in hbm:

  1. Size: 1.37G
     Operator: op_name="jit(step)/jvp()/exp" source_file="attention.py"
     Shape: f32[4,8,9216,9216]{3,2,1,0:T(8,128)}
"""  # noqa: E501
    used, words = forecast.overflow(message)
    assert used == 20.5 * 2**30
    assert words == "Used 20.50G of 15.75G hbm; largest array f32[4,8,9216,9216], 1.37G, of jit(step)/jvp()/exp"


def test_a_plan_tells_what_bounds_the_step_and_what_to_cut():
    chip = find_chip("TPU v5 lite")
    memory = {"weights": 2e9, "optimizer": 3e9, "batch": 1e8, "activations": 6e9}
    cuts = {"optimizer": "raise --mesh.fsdp"}
    mesh, sent = {"data": 4, "fsdp": 2, "frames": 2}, {"all-reduce": 2e10}
    fits = forecast.Plan(mesh, chip, memory, cuts, None, 197e12, 37e12, 819e8, sent, 60.0)
    assert fits.seconds == {"compute": 1.0, "memory": 0.1, "links": 0.1}
    assert "16 chips v5e: data 4 x fsdp 2 x frames 2" in str(fits)
    assert "197.00 T, of them 37.00 T for the second time" in str(fits)
    assert "step at least 1.000 s" in str(fits) and "11.10 GB of 16 GB" in str(fits)
    over = dataclasses.replace(fits, memory={**memory, "optimizer": 14e9}, overflow="Used 23.3G of 15.75G hbm")
    assert "does not fit: Used 23.3G of 15.75G hbm\nlargest: optimizer; raise --mesh.fsdp" in str(over)


def test_chips_are_known_by_what_jax_calls_them():
    names = {
        "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
        "TPU7x": "half a TPU7x", "NVIDIA A100-SXM4-40GB": "A100", "NVIDIA A100 80GB PCIe": "A100",
        "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H100 NVL": "H100 NVL",
        "NVIDIA H200": "H200", "NVIDIA H200 NVL": "H200 NVL", "NVIDIA B200": "B200", "NVIDIA GB200": "GB200",
        "NVIDIA L4": "L4", "NVIDIA L40": "L40", "NVIDIA L40S": "L40S",
    }  # fmt: skip
    assert {kind: find_chip(kind).name for kind in names} == names
    assert find_chip("cpu") is None and find_chip("NVIDIA A10") is None and find_chip("NVIDIA H20") is None


def test_without_the_compiler_the_user_hears_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'animate-jax\[tpu\]'"):
        forecast.topology_devices("v5e:4x4")


def test_another_compiler_is_told_with_the_version_that_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast.metadata, "version", lambda name: "0.0.52")
    with pytest.raises(UserError, match=r"libtpu 0.0.52\) wrote nothing .*; pip install 'libtpu==") as told:
        forecast.compile_to_text(jax.jit(jnp.sin).lower(jnp.ones(3)), {}, tmp_path)  # a CPU's compiler
    assert "\n" not in str(told.value)


# A process of its own: the compiler for TPUs is loaded once, and its surroundings are set before.
COMPILE = """
import dataclasses, json, os, sys
sys.path.insert(0, "tests")
from conftest import MICRO
from animate_jax.config import DataConfig, MeshConfig, TrainConfig
from animate_jax.errors import UserError
from animate_jax.parallel.mesh import make_mesh, rows_of_process
from animate_jax.parallel.forecast import topology_devices
from animate_jax.training.forecast import plan

try:
    topology_devices("v5e:5x5")
    raise AssertionError
except UserError as error:
    assert "no such TPU topology" in str(error)
slices = make_mesh(MeshConfig(fsdp=2, frames=4), topology_devices("v5e:4x4*2"))
assert dict(slices.shape) == {"data": 4, "fsdp": 2, "frames": 4}
assert [len({d.slice_index for d in part.flat}) for part in slices.devices] == [1, 1, 1, 1]
hosts = make_mesh(MeshConfig(frames=8), topology_devices("v5e:4x4"))
assert {rows_of_process(hosts, p) for p in {d.process_index for d in hosts.devices.flat}} == {(0, 2), (1, 2)}
config = TrainConfig(stage="stage2", output="", preset=MICRO, trainable=".*motion_modules", mesh=MeshConfig(frames=4),
                     data=DataConfig(batch=4, frames=8))
print(json.dumps(dataclasses.asdict(plan(config, "v5e:4x4"))), flush=True)
os._exit(0)
"""

# The widths are those of heads that the kernel takes; 128x128 latents so that the first level is long enough for it.
SAMPLE = """
import dataclasses, json, os, sys
sys.path.insert(0, "tests")
from conftest import MICRO
from animate_jax.config import MeshConfig
from animate_jax.sampling.forecast import plan

found = plan(MICRO, sys.argv[1], "bfloat16", MeshConfig(frames=int(sys.argv[2])), width=256, height=256, window=8)
print(json.dumps(dataclasses.asdict(found)), flush=True)
os._exit(0)
"""


needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu'")


def planned(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


# Two layers, wide enough that the compiler scatters their gradients; the step is that of training.
COMMUNICATION = """
import json, os
import jax, jax.numpy as jnp, optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from animate_jax.config import MeshConfig
from animate_jax.models.params import split_model
from animate_jax.parallel import rules
from animate_jax.parallel.forecast import compile_plan, topology_devices
from animate_jax.parallel.mesh import batch_sharding, make_mesh
from animate_jax.training.losses import Loss
from animate_jax.training.state import make_state
from animate_jax.training.step import make_step


class Reconstruction(Loss):
    mean_over_rows = True

    def sample_randomness(self, batch, key):
        return {}

    def compute(self, model, batch, randomness):
        return jnp.square(model(batch["x"]) - batch["x"]).mean(), {}


mesh = make_mesh(MeshConfig(fsdp=16), topology_devices("v5e:4x4"))
rngs = nnx.Rngs(0)
graphdef, params = split_model(nnx.Sequential(nnx.Linear(640, 1280, rngs=rngs), nnx.Linear(1280, 640, rngs=rngs)))
tx = optax.adam(1e-3)
state = jax.eval_shape(lambda: make_state(params, ".*", tx, False))
layout = rules.shardings(state, mesh)
state = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), state, layout)
key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=NamedSharding(mesh, PartitionSpec()))
found = {}
for passes in (1, 4):
    batch = {"x": jax.ShapeDtypeStruct((64 * passes, 128, 640), jnp.float32, sharding=batch_sharding(mesh))}
    step = make_step(graphdef, Reconstruction(), tx, 0.0, passes, jnp.bfloat16, gather=True)
    found[passes] = compile_plan(step, (state, batch, key), {}, mesh, {}, (layout, None)).collectives
print(json.dumps(found), flush=True)
os._exit(0)
"""


@needs_compiler
def test_training_communicates_once_per_step_however_many_micro_batches():
    """The weights in bfloat16, the gradients in float32: a scatter in two rounds, of the whole and of a quarter."""
    kernels = 2 * 640 * 1280
    for sent in planned(COMMUNICATION).values():
        assert sent["all-gather"] == pytest.approx(2 * kernels, rel=0.01)
        assert sent["reduce-scatter"] == pytest.approx(4 * kernels * 1.25, rel=0.1)  # the compiler pads
        assert sent["all-reduce"] < 40e3  # biases, norms, metrics


@needs_compiler
def test_a_small_step_compiled_for_sixteen_chips():
    answer = planned(COMPILE)
    assert answer["overflow"] is None and answer["flops"] > 0 and answer["compile_seconds"] > 0
    assert all(size > 0 for size in answer["memory"].values())
    assert answer["collectives"]["all-to-all"] > 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "topology, frames, kinds", [("v5e:1x1", 1, set()), ("v5e:2x4", 1, set()), ("v5e:2x2", 4, {"all-to-all"})]
)
def test_sampling_sends_only_what_is_meant(topology, frames, kinds):
    """Windows on chips of their own have nothing to tell each other; the frames of one go to the temporal layers and
    back."""
    answer = planned(SAMPLE, topology, str(frames))
    assert answer["overflow"] is None and answer["flops"] > 0 and all(answer["memory"].values())
    assert {kind for kind, size in answer["collectives"].items() if size} == kinds
