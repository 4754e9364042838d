"""`--plan TOPOLOGY` of sampling: a step at full size, compiled for TPUs that need not be attached."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from animate_jax.config import DType, MeshShape, Preset
from animate_jax.models.guidance_pairs import pair
from animate_jax.models.params import abstract_model
from animate_jax.models.sharding import BATCH_AXES
from animate_jax.parallel.chips import find_chip
from animate_jax.parallel.forecast import Plan, compile_plan, topology_devices
from animate_jax.parallel.mesh import make_mesh
from animate_jax.parallel.rules import shardings
from animate_jax.sampling.denoiser import held_on_host
from animate_jax.sampling.pipeline import Pipeline

REMEDIES = {
    "denoising UNet": "hold the weights in bfloat16 (--dtype), or raise --mesh.fsdp",
    "other networks": "hold the weights in bfloat16 (--dtype), or raise --mesh.fsdp",
    "conditioning": "make the picture smaller",
    "activations": "raise --mesh.frames, use --dtype bfloat16, or make the picture smaller",
}


def plan(preset: Preset, topology: str, dtype: DType, config: MeshShape, **overrides: Any) -> Plan:
    """Memory by kind, work, communication and least time of one guided step on `topology` ("v5e:1x1"), with a window
    per group of chips and the networks in memory that `Pipeline.from_pretrained` leaves there. `overrides` as in
    `Pipeline.stream`.

    Raises:
        UserError: impossible options, or the TPU compiler is not installed.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing is run, so libtpu need not find a TPU
    mesh = make_mesh(config, topology_devices(topology))
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    shapes = abstract_model(preset.model)[1]
    places = shardings(shapes, mesh)
    params = {path: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=places[path]) for path, leaf in shapes.items()}
    pipeline = Pipeline(params, preset, mesh)
    options = pipeline.animation_config(**overrides)

    def inputs(*sides: int, dtype=dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype, sharding=rows)

    def paired(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return inputs(*jax.eval_shape(pair, leaf, leaf).shape, dtype=leaf.dtype)

    windows, side = pipeline.num_shards, preset.model.image_encoder.image_size
    latents = (options.height // preset.model.vae.downscale, options.width // preset.model.vae.downscale)
    picture = inputs(windows, options.height, options.width, 3)
    conditioning = jax.eval_shape(
        pipeline._conditioning,
        params,
        inputs(windows, *latents, preset.model.unet.in_channels),
        inputs(windows, side, side, 3),
        picture,
    )
    conditioning = jax.tree.map(lambda leaf: leaf.update(sharding=rows), conditioning)
    latent = inputs(windows, *latents, preset.model.unet.in_channels)
    warped = (latent, latent, inputs(windows, options.height, options.width, 2)) if pipeline.copies_reference else ()
    pose = jax.eval_shape(pipeline._pose_features, params, picture, *warped)
    x = inputs(windows, options.window, *latents, preset.model.unet.in_channels)
    t = inputs(windows, 1, dtype=jnp.float32)
    pose = inputs(windows, options.window, *pose.shape[1:])
    if options.guidance > 1:
        x, t = paired(x), paired(t)
        pose = pose if windows == 1 else paired(pose)  # see `Denoiser.sample`
    chip = find_chip(mesh.devices.flat[0].device_kind)
    on_host = held_on_host(shapes, dtype, chip.memory) if chip and mesh.size == 1 else set()
    params = {path: leaf for path, leaf in params.items() if path not in on_host}
    kinds = {
        "denoising UNet": {path: leaf for path, leaf in params.items() if path.startswith("denoising_unet")},
        "other networks": {path: leaf for path, leaf in params.items() if not path.startswith("denoising_unet")},
        "conditioning": [conditioning, pose],
    }

    def step(x, params, t, conditioning, pose):
        unused = {path: jnp.zeros(shapes[path].shape, dtype) for path in on_host}  # the compiler drops them
        return pipeline._run_unet({**params, **unused}, x, t, conditioning, pose)

    return compile_plan(step, (x, params, t, conditioning, pose), kinds, mesh, REMEDIES)
