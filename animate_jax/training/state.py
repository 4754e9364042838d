"""What a run carries from step to step."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from animate_jax.errors import UserError
from animate_jax.models import lora
from animate_jax.models.params import Params


class TrainState(NamedTuple):
    """Parameters are dicts from path to array. The fields may also be shapes (`jax.ShapeDtypeStruct`) or shardings."""

    step: Int32[Array, ""]  # steps done
    trainable: Params
    frozen: Params  # the other parameters of the model
    opt: Any  # the optimizer's moments
    ema: Params  # averages of the trainable parameters; empty where none are kept


def make_state(
    params: Params,
    trainable: str,
    tx: optax.GradientTransformation,
    ema: bool,
    frozen: str | None = None,
    frozen_bf16: str | None = None,
) -> TrainState:
    """The state of a run that starts from `params`. Patterns are matched from the start of a parameter's path.

    Args:
        trainable, frozen: parameters that match the first and not the second are trained; the others have neither
            gradients nor moments.
        ema: whether averages are kept.
        frozen_bf16: frozen parameters that match it are kept in bfloat16.

    Raises:
        UserError: nothing is left to train.
    """

    def matches(pattern: str | None, path: str) -> bool:
        return pattern is not None and re.match(pattern, path) is not None

    def to_frozen_dtype(path: str, array: jax.Array) -> jax.Array:
        return array.astype(jnp.bfloat16) if matches(frozen_bf16, path) else array

    trained = {path: array for path, array in params.items() if matches(trainable, path) and not matches(frozen, path)}
    if not trained and frozen is not None:
        raise UserError(f"--trainable {trainable!r} and --frozen {frozen!r} leave no parameter to train")
    if not trained:
        raise UserError(f"--trainable {trainable!r} matches no parameter; paths look like {next(iter(params))!r}")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trained,
        frozen={path: to_frozen_dtype(path, array) for path, array in params.items() if path not in trained},
        opt=tx.init(trained),
        ema=jax.tree.map(jnp.copy, trained) if ema else {},
    )


def sampling_params(state: TrainState, lora_scale: float = 1.0) -> Params:
    """The parameters to sample from: the averages where they are kept, and adapters merged."""
    return lora.merge({**state.frozen, **state.trainable, **state.ema}, lora_scale)


def saved_params(state: TrainState) -> Params:
    """What a checkpoint holds: the parameters to sample from, or an adapter without its base."""
    params = {**state.frozen, **state.trainable, **state.ema}
    adapter = {path: array for path, array in params.items() if lora.is_adapter(path)}
    return adapter or params


def update_ema(ema: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """An exponential average whose window grows with the run, so that early averages forget the start."""
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return {path: rate * ema[path] + (1 - rate) * params[path] for path in ema}
