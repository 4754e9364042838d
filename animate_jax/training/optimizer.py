"""The optimizer: learning-rate schedule, AdamW, Muon."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from animate_jax.config import OptimConfig
from animate_jax.models.params import Params


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW or Muon with linear warm-up, then a constant or cosine rate, and clipping by global norm.

    With `moments` "factored" the second moment is Adafactor's (Shazeer & Stern 2018, section 4; updates clipped to
    root mean square 1) and the first is held in bfloat16. 8-bit second moments are not offered: rounded to nearest
    they never decay at beta 0.999, because a step changes them by less than half a unit.

    "muon" (Jordan 2024; scaled as Liu et al. 2025 to AdamW's learning rates) orthogonalizes the momentum of every
    kernel, as a matrix of inputs x outputs; AdamW trains the rest and what touches pictures and predictions.
    """
    rate = learning_rate(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.optimizer == "muon":
        adam: dict[str, Any] = {
            "adam_b1": config.betas[0],
            "adam_b2": config.betas[1],
            "adam_weight_decay": config.weight_decay,
        }

        def matrices(params: Any) -> Any:  # path -> how a stack is read as matrices; None: AdamW's
            return {path: _MATRIX if path.startswith(_STACK) else None for path in params}

        muon = optax.contrib.muon(
            rate, weight_decay=config.weight_decay, consistent_rms=0.2, muon_weight_dimension_numbers=matrices, **adam
        )
        return optax.chain(clip, stack_by_shape(muon))
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


def stack_by_shape(tx: optax.GradientTransformation) -> optax.GradientTransformation:
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
            name: jnp.stack([array.reshape(-1, array.shape[-1]) for array in arrays])
            if name.startswith(_STACK)
            else arrays[0]
            for name, arrays in members.items()
        }

    def unstack(stacks: Any, like: Params) -> Params:
        parts = {name: iter(array) if name.startswith(_STACK) else iter([array]) for name, array in stacks.items()}
        return {path: next(parts[stack_of(path, array)]).reshape(array.shape) for path, array in sorted(like.items())}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacks, state = tx.update(stack(updates), state, stack(params))
        return unstack(stacks, updates), state

    return optax.GradientTransformation(lambda params: tx.init(stack(params)), update)
