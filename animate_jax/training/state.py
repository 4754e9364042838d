"""What a run carries from step to step: trainable and frozen parameters as two dicts, moments, averaged weights."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from animate_jax.config import OptimConfig
from animate_jax.errors import UserError
from animate_jax.models.params import Params

State = dict[str, Any]  # step, trainable, frozen, opt, ema


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up, then a constant or cosine rate, and clipping by global norm."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup)
    rest: optax.Schedule = optax.constant_schedule(config.learning_rate)
    boundaries, schedules = [config.warmup], [warmup, rest]
    if config.decay == "cosine":
        start = max(int(steps * config.decay_start), config.warmup + 1)
        schedules.append(optax.cosine_decay_schedule(config.learning_rate, max(steps - start, 1)))
        boundaries.append(start)
    rate = optax.join_schedules(schedules, boundaries)
    adamw = optax.adamw(rate, *config.betas, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def make_state(params: Params, trainable: str, tx: optax.GradientTransformation, ema: bool) -> State:
    """Divides the parameters by the regular expression `trainable` (matched from the start of the path).

    Raises:
        UserError: nothing matches.
    """
    chosen = {path: array for path, array in params.items() if re.match(trainable, path)}
    if not chosen:
        raise UserError(f"--trainable {trainable!r} matches no parameter; paths look like {next(iter(params))!r}")
    return {
        "step": jnp.zeros((), jnp.int32),
        "trainable": chosen,
        "frozen": {path: array for path, array in params.items() if path not in chosen},
        "opt": tx.init(chosen),
        "ema": jax.tree.map(jnp.copy, chosen) if ema else {},
    }


def sampling_params(state: State) -> Params:
    """The parameters to sample from: averaged where an average is kept."""
    return {**state["frozen"], **state["trainable"], **state["ema"]}


def update_ema(ema: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """An exponential average whose window grows with the run, so that early averages forget the start."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return {path: decay * ema[path] + (1 - decay) * params[path] for path in ema}
