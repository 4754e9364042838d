"""What a run carries from step to step: trainable and frozen parameters as two dicts, moments, averaged weights."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from animate_jax.config import OptimConfig
from animate_jax.errors import UserError
from animate_jax.models.params import Params

State = dict[str, Any]  # step, trainable, frozen, opt, ema


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon with linear warm-up, then a constant or cosine rate, and clipping by global norm.

    With `moments` "factored" the second moment is Adafactor's (Shazeer & Stern 2018, section 4; updates clipped to
    root mean square 1) and the first is held in bfloat16. 8-bit second moments are not offered: rounded to nearest
    they never decay at beta 0.999, because a step changes them by less than half a unit.

    "muon" (Jordan 2024; scaled as Liu et al. 2025 to AdamW's learning rates) orthogonalises the momentum of every
    kernel, as a matrix of inputs x outputs; AdamW trains the rest and what touches pictures and predictions.
    """
    rate = learning_rate(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.optimizer == "muon":
        adam = {"adam_b1": config.betas[0], "adam_b2": config.betas[1], "adam_weight_decay": config.weight_decay}
        matrices = lambda params: {path: _MATRIX if path.startswith(_STACK) else None for path in params}  # noqa: E731
        return optax.chain(clip, _stacked(optax.contrib.muon(
            rate, weight_decay=config.weight_decay, consistent_rms=0.2, muon_weight_dimension_numbers=matrices, **adam
        )))  # fmt: skip
    if config.moments == "full":
        return optax.chain(clip, optax.adamw(rate, *config.betas, weight_decay=config.weight_decay))
    return optax.chain(
        clip,
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(config.betas[0], debias=True, accumulator_dtype=jnp.bfloat16),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Updates done -> learning rate of the next."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup)
    rest: optax.Schedule = optax.constant_schedule(config.learning_rate)
    boundaries, schedules = [config.warmup], [warmup, rest]
    if config.decay == "cosine":
        start = max(int(steps * config.decay_start), config.warmup + 1)
        schedules.append(optax.cosine_decay_schedule(config.learning_rate, max(steps - start, 1)))
        boundaries.append(start)
    return optax.join_schedules(schedules, boundaries)


_STACK = "kernels of "
_MATRIX = optax.contrib.MuonDimensionNumbers((1,), (2,))


def _stacked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` sees the kernels of one shape as one array [kernels, inputs, outputs]: some dozens of products instead of
    thousands of small ones, which take minutes to compile. What touches pictures and predictions stays by itself."""

    def stack_of(path: str, array: Any) -> str:
        if not path.endswith(".kernel") or re.search(r"conv_(in|out)\.", path) or array.ndim < 2:
            return path
        return f"{_STACK}{'x'.join(map(str, array.shape))}"

    def stack(tree: Params) -> Params:
        members: dict[str, list[jax.Array]] = {}
        for path, array in sorted(tree.items()):
            name = stack_of(path, array)
            members.setdefault(name, []).append(array)
        return {
            name: jnp.stack([array.reshape(-1, array.shape[-1]) for array in arrays]) if name.startswith(_STACK)
            else arrays[0] for name, arrays in members.items()
        }  # fmt: skip

    def unstack(stacks: Params, like: Params) -> Params:
        parts = {name: iter(array) if name.startswith(_STACK) else iter([array]) for name, array in stacks.items()}
        return {path: next(parts[stack_of(path, array)]).reshape(array.shape) for path, array in sorted(like.items())}

    def update(updates: Params, state: Any, params: Params) -> tuple[Params, Any]:
        stacks, state = tx.update(stack(updates), state, stack(params))
        return unstack(stacks, updates), state

    return optax.GradientTransformation(lambda params: tx.init(stack(params)), update)


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
        raise UserError(f"--trainable {trainable!r} and --freeze {freeze!r} leave no parameter to train")
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
