"""DDIM (Song et al. 2020) without added noise (eta = 0): which timesteps to visit, and one step.

for t in timesteps(steps, schedule):
    x = ddim_step(schedule, denoise(x, t), x, t, steps)
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from animate_jax.diffusion.schedule import Sample, Schedule
from animate_jax.errors import UserError


def timesteps(steps: int, schedule: Schedule) -> Int[np.ndarray, " steps"]:
    """The timesteps to denoise at, noisiest first, spaced as `schedule.config.timestep_spacing` says.

    "trailing" starts at the very last training step, which a zero-terminal-SNR schedule needs; "leading" is
    Stable Diffusion's original choice, shifted by `steps_offset`. Raises UserError for an impossible number.
    """
    train_steps = schedule.config.train_steps
    if not 1 <= steps <= train_steps:
        raise UserError(f"sampling steps must be between 1 and {train_steps}, not {steps}")
    if schedule.config.timestep_spacing == "leading":
        chosen = np.arange(steps)[::-1] * (train_steps // steps) + schedule.config.steps_offset
        if chosen[0] >= train_steps:
            raise UserError(
                f"{steps} sampling steps with leading spacing begin at timestep {chosen[0]}, but the last "
                f"is {train_steps - 1}; use fewer steps"
            )
    else:
        # The spacing is a fraction, rounded to even as in diffusers; [:steps] drops arange's surplus.
        chosen = np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps] - 1
    return chosen.astype(np.int32)


def ddim_step(
    schedule: Schedule, prediction: Sample, x_t: Sample, t: Int[Array, ""] | int | np.integer, steps: int
) -> Sample:
    """x at the previous timestep; `t` may be traced, so that the loop can be jax.lax.fori_loop or scan.

    The step is always train_steps // steps long, as in diffusers, although `timesteps` with trailing spacing
    need not be integers that far apart: weights are compared with their peers under that rule. A step that
    ends before timestep 0 ends at alpha_bar = 1.
    """
    x0, epsilon = schedule.to_x0_epsilon(prediction, x_t, t)
    previous = t - schedule.config.train_steps // steps
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
    alpha_bar: Float[Array, ""] = jnp.where(previous < 0, 1.0, alphas_cumprod[jnp.maximum(previous, 0)])
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * epsilon
