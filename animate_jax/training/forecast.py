"""`animate-jax train CONFIG --plan TOPOLOGY`: what the full training step would take, compiled without the TPUs."""

from __future__ import annotations

import inspect
import logging

import jax
from jax.sharding import NamedSharding, PartitionSpec

from animate_jax.config import TrainConfig
from animate_jax.data.batch import Batch
from animate_jax.errors import UserError
from animate_jax.parallel.forecast import Plan, compile_plan, topology_devices
from animate_jax.parallel.mesh import batch_sharding, make_mesh
from animate_jax.training.losses import make_loss
from animate_jax.training.step import make_program

log = logging.getLogger(__name__)

REMEDIES = {  # by what is too large
    "weights": "raise --mesh.fsdp, or hold frozen ones in bfloat16 (--frozen-bf16)",
    "optimizer": "raise --mesh.fsdp, or use --optim.moments factored",
    "batch": "lower --data.batch or use more chips",
    "activations": "use --remat blocks, --compute-dtype bfloat16, a larger --accumulate or --mesh.frames",
}


def plan(config: TrainConfig, topology: str) -> Plan:
    """What a step of `config` takes on `topology` ("v5e:4x4"): memory by kind, FLOPs, communication, shortest time.

    Raises:
        UserError: impossible options, or the TPU compiler is not installed.
    """
    if config.stage == "vae":
        raise UserError("--plan: plans stage 1, stage 2 and distillation; the autoencoder trains on any chip")
    if config.loss.perceptual_weight:
        raise UserError("--plan: does not know LPIPS; leave out --loss.perceptual-weight")
    jax.config.update("jax_platforms", "cpu")  # nothing is run, and libtpu must not look for a TPU
    mesh = make_mesh(config.mesh, topology_devices(topology))
    program = make_program(config, make_loss(config), mesh)
    state, layout = program.abstract, jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=NamedSharding(mesh, PartitionSpec()))
    batch = Batch.abstract(config, batch_sharding(mesh))
    kinds = {"weights": [state.trainable, state.frozen, state.ema], "optimizer": state.opt, "batch": batch}
    log.info("compiling the training step: minutes, at full size many")
    step = inspect.unwrap(program.step)  # not jitted: the plan jits it with options of its own
    return compile_plan(step, (state, batch, key), kinds, mesh, REMEDIES, (layout, None))
