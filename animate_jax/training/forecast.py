"""`train.py CONFIG --plan TOPOLOGY`: the full training step, compiled for TPUs that are not there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from animate_jax.config import TrainConfig
from animate_jax.errors import UserError
from animate_jax.parallel.forecast import Plan, compile_plan, topology_devices
from animate_jax.parallel.mesh import batch_sharding, make_mesh
from animate_jax.presets import preset_of
from animate_jax.training.losses import DiffusionLoss
from animate_jax.training.program import make_program

CUTS = {
    "weights": "raise --mesh.fsdp, or hold frozen ones in bfloat16 (--frozen-bf16)",
    "optimizer": "raise --mesh.fsdp, or use --optim.moments factored",
    "batch": "lower --data.batch or use more chips",
    "activations": "use --remat blocks, --compute-dtype bfloat16, a larger --accumulate or --mesh.frames",
}


def plan(config: TrainConfig, topology: str) -> Plan:
    """What a step of `config` takes on `topology` ("v5e:4x4"): memory by kind, work, communication, least time.

    Raises:
        UserError: impossible options, or the TPU compiler is not installed.
    """
    if config.stage == "vae":
        raise UserError("--plan: plans stage 1 and stage 2; the autoencoder trains on any chip")
    if config.loss.perceptual_weight:
        raise UserError("--plan: does not know LPIPS; leave out --loss.perceptual-weight")
    jax.config.update("jax_platforms", "cpu")  # nothing runs; libtpu must not look for a TPU
    mesh = make_mesh(config.mesh, topology_devices(topology))
    program = make_program(config, DiffusionLoss(config), mesh)
    state = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), program.abstract, program.layout)
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=NamedSharding(mesh, PartitionSpec()))
    batch = abstract_batch(config, batch_sharding(mesh))
    kinds = {
        "weights": [state["trainable"], state["frozen"], state["ema"]],
        "optimizer": state["opt"],
        "batch": batch,
    }
    return compile_plan(program.step, (state, batch, key), kinds, mesh, CUTS, (program.layout, None))


def abstract_batch(config: TrainConfig, sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what the loader yields (see `DiffusionLoss`), over all processes."""
    preset = preset_of(config)
    clips, frames, side = config.data.batch, config.data.frames, preset.model.image_encoder.image_size
    picture = (preset.frames.height, preset.frames.width)
    sides = {
        "reference": (*picture, 3),
        "reference_pose": (*picture, 3),
        "frames": (frames, *picture, 3),
        "poses": (frames, *picture, 3),
        "masks": (frames, *picture),
        "clip_pixels": (side, side, 3),
    }
    if preset.model.unet.appearance != "none":
        sides |= {"background": (*picture, 3), "warp": (frames, *picture, 3), "warp_masks": (frames, *picture, 2)}
    return {
        name: jax.ShapeDtypeStruct(
            (clips, *rest), jnp.float32 if name == "clip_pixels" else jnp.uint8, sharding=sharding
        )
        for name, rest in sides.items()
    }
