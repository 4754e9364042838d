"""What a run carries from step to step."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Int32

from animate_jax.errors import UserError
from animate_jax.models import lora
from animate_jax.models.params import Params

TEACHER = "teacher."  # begins the paths of a distillation's copies of what is trained, among the frozen parameters


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
    teacher: DTypeLike | None = None,
) -> TrainState:
    """The state of a run that starts from `params`. Patterns are matched from the start of a parameter's path.

    Args:
        trainable, frozen: parameters that match the first and not the second are trained; the others have neither
            gradients nor moments.
        ema: whether averages are kept.
        frozen_bf16: frozen parameters that match it are kept in bfloat16.
        teacher: what is trained is kept a second time, as it is and in this dtype, for `split_teacher`.

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
    others = {path: to_frozen_dtype(path, array) for path, array in params.items() if path not in trained}
    copies = {} if teacher is None else {path: jnp.array(array, teacher, copy=True) for path, array in trained.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trained,
        frozen=others | {TEACHER + path: array for path, array in copies.items()},
        opt=tx.init(trained),
        ema=jax.tree.map(jnp.copy, trained) if ema else {},
    )


def split_teacher(params: Params) -> tuple[Params, Params]:
    """The student's parameters, and the teacher's: those without adapters and with the copies in their places."""
    student = {path: array for path, array in params.items() if not path.startswith(TEACHER)}
    copies = {path.removeprefix(TEACHER): array for path, array in params.items() if path.startswith(TEACHER)}
    return student, {path: array for path, array in student.items() if not lora.is_adapter(path)} | copies


def sampling_params(state: TrainState, lora_scale: float = 1.0) -> Params:
    """The parameters to sample from: the averages where they are kept, and adapters merged."""
    return lora.merge(split_teacher({**state.frozen, **state.trainable, **state.ema})[0], lora_scale)


def saved_params(state: TrainState) -> Params:
    """What a checkpoint holds: the parameters to sample from, or an adapter without its base."""
    params, _ = split_teacher({**state.frozen, **state.trainable, **state.ema})
    adapter = {path: array for path, array in params.items() if lora.is_adapter(path)}
    return adapter or params


def update_ema(ema: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """An exponential average whose window grows with the run, so that early averages forget the start."""
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return {path: rate * ema[path] + (1 - rate) * params[path] for path in ema}
