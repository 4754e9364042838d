"""What a run carries from step to step: trainable and frozen parameters as two dicts, moments, averaged weights."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from animate_jax.errors import UserError
from animate_jax.models.params import Params

State = dict[str, Any]  # step, trainable, frozen, opt, ema


def make_state(
    params: Params,
    trainable: str,
    tx: optax.GradientTransformation,
    ema: bool,
    freeze: str | None = None,
    half: str | None = None,
) -> State:
    """Divides the parameters by regular expressions, matched from the start of the path.

    Args:
        trainable, freeze: trained is what matches the first and not the second; the rest has neither gradient nor
            moments.
        half: frozen parameters held in bfloat16.

    Raises:
        UserError: nothing is left to train.
    """

    def matches(pattern: str | None, path: str) -> bool:
        return pattern is not None and re.match(pattern, path) is not None

    def held(path: str, array: jax.Array) -> jax.Array:
        return array.astype(jnp.bfloat16) if matches(half, path) else array

    chosen = {path: array for path, array in params.items() if matches(trainable, path) and not matches(freeze, path)}
    if not chosen and freeze is not None:
        raise UserError(f"--trainable {trainable!r} and --frozen {freeze!r} leave no parameter to train")
    if not chosen:
        raise UserError(f"--trainable {trainable!r} matches no parameter; paths look like {next(iter(params))!r}")
    return {
        "step": jnp.zeros((), jnp.int32),
        "trainable": chosen,
        "frozen": {path: held(path, array) for path, array in params.items() if path not in chosen},
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
