"""From a configuration to the step and state that it means, before any array exists."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from animate_jax.config import TrainConfig
from animate_jax.errors import UserError
from animate_jax.models.params import Params, abstract_model
from animate_jax.parallel.chips import find_chip
from animate_jax.parallel.mesh import check_batch
from animate_jax.parallel.rules import shardings
from animate_jax.presets import preset_of
from animate_jax.training.losses import Batch, Loss
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import State, make_state
from animate_jax.training.step import make_step

LossFunction = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]  # (model, batch, key) -> value, metrics


class Program(NamedTuple):
    step: Callable[[State, Batch, Key[Array, ""]], tuple[State, dict[str, Array]]]
    initial: Callable[[Params], State]  # pure, to be jitted with `layout` as the shardings of what it returns
    shapes: Params  # of the model's parameters
    abstract: State
    layout: State  # shardings


def make_program(config: TrainConfig, loss: Loss | LossFunction, mesh: Mesh) -> Program:
    """What training runs and planning compiles.

    Raises:
        UserError: an impossible size, a batch that the mesh does not divide, or nothing to train.
    """
    preset = preset_of(config)
    if found := problem(preset):
        raise UserError(f"preset {preset.name}: {found[0]} is {found[1]} and must be {found[2]}: see --size")
    # The autoencoder sees single pictures.
    check_batch(mesh, config.data.batch // config.accumulate, 1 if config.stage == "vae" else config.data.frames)
    graphdef, shapes = abstract_model(preset.model, config.remat)
    tx = make_optimizer(config.optim, config.steps)
    initial = functools.partial(make_state, trainable=config.trainable, tx=tx, ema=config.optim.ema > 0,
                                freeze=config.frozen, half=config.frozen_bf16)  # fmt: skip
    abstract = jax.eval_shape(initial, shapes)
    step = make_step(graphdef, loss, tx, config.optim.ema, config.accumulate, config.compute_dtype,
                     gathers_once(config, loss, mesh, abstract), config.optim.gradient_dtype)  # fmt: skip
    return Program(step, initial, shapes, abstract, shardings(abstract, mesh))


def gathers_once(config: TrainConfig, loss: Loss | LossFunction, mesh: Mesh, state: State) -> bool:
    """What `--mesh.gather` means here. Devices that all have the same clips, and losses that are no mean over rows, are
    left to the compiler.

    "auto" is "step" where whole weights and gradients leave room on a TPU, and less is sent so. The compiler gathers
    every layer forward and again backward, and sums gradients in the dtype of the passes, for every micro-batch: only
    where nothing is gathered and there is one micro-batch does it send less, in bfloat16.

    Raises:
        UserError: "step" is asked of the autoencoder's loss.
    """
    possible = isinstance(loss, Loss) and loss.mean_over_rows
    if config.mesh.gather == "step" and isinstance(loss, Loss) and not possible:
        raise UserError("--mesh.gather step: not for the autoencoder, whose loss looks at all crops of a batch at once")
    if not possible or config.mesh.gather == "layer" or mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return False
    if config.mesh.gather == "step":
        return True
    width, summed = (jnp.dtype(dtype).itemsize for dtype in (config.compute_dtype, config.optim.gradient_dtype))
    trained, frozen = (sum(leaf.size for leaf in state[name].values()) for name in ("trainable", "frozen"))
    whole = (trained + frozen) * width + trained * 4  # gradients add up in float32
    chip = find_chip(mesh.devices.flat[0].device_kind)
    fits = chip is not None and whole <= chip.memory / 3
    return fits and (mesh.shape["fsdp"] > 1 or config.accumulate * width >= summed)
