"""The sampling loop over steps and windows, for any denoiser."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from animate_jax.config import SamplingConfig
from animate_jax.diffusion.guidance import guide
from animate_jax.diffusion.samplers import MULTISTEP, SAMPLERS, timesteps
from animate_jax.diffusion.schedule import Schedule
from animate_jax.diffusion.windows import blend, windows

Latents = Float[Array, "b f h w c"]
# denoise(x, t, frames) -> prediction: `x` [rows, window, h, w, c] with rows [unconditional, conditional] when
# guided, `frames` the indices of the window's frames in the video.
Denoise = Callable[[Float[Array, "r n h w c"], Float[Array, "r 1"], Int[Array, " n"]], Float[Array, "r n h w c"]]


def initial_noise(key: Key[Array, ""], shape: tuple[int, int, int, int, int], shared: bool) -> Latents:
    """Standard normal [B, F, h, w, C]; `shared` gives every frame of a clip the same noise."""
    if shared:
        return jnp.broadcast_to(jax.random.normal(key, (shape[0], 1, *shape[2:])), shape)
    return jax.random.normal(key, shape)


def sample(denoise: Denoise, noise: Latents, schedule: Schedule, options: SamplingConfig,
           progress: Callable[[], None] | None = None, key: Key[Array, ""] | None = None) -> Latents:  # fmt: skip
    """The sampler of `options` with classifier-free guidance over overlapping windows.

    The predictions of overlapping windows are averaged before guidance, as in the peers (unlike them also when
    guidance is off).

    Args:
        denoise: see `Denoise`.
        noise: x_T, [B, F, h, w, C].
        options: sampler, steps, guidance, window, overlap and their variants are used.
        progress: called after every evaluation of `denoise`.
        key: of the noise that "euler_ancestral" adds.

    Raises:
        UserError: impossible steps or windows.
    """
    frames = noise.shape[1]
    plan = iter(plans(frames, schedule, options))

    def predict(x: Latents, t: np.integer) -> Latents:
        chunks, guided = next(plan)
        predictions = []
        for chunk in chunks:
            part = x[:, jnp.asarray(chunk)]
            part = jnp.concatenate([part, part]) if guided else part
            time = jnp.full((part.shape[0], 1), t, jnp.float32)
            predictions.append(denoise(part, time, jnp.asarray(chunk)))
            if progress:
                progress()
        prediction = blend(jnp.stack(predictions), chunks, frames, options.blend == "flat")
        if guided:
            prediction = guide(*jnp.split(prediction, 2), options.guidance, options.guidance_rescale)
        return prediction

    key = jax.random.key(0) if key is None else key
    return SAMPLERS[options.sampler](predict, noise, schedule, options.steps, key)


def plans(frames: int, schedule: Schedule, options: SamplingConfig) -> list[tuple[list[list[int]], bool]]:
    """For every step: its windows, and whether it is guided."""
    last, (low, high) = schedule.config.train_steps - 1, options.guidance_interval
    visited = timesteps(options.steps, schedule, beyond=int(options.sampler in MULTISTEP))
    stride = options.window - options.overlap
    return [
        (
            # Steps of the golden ratio: positions spread evenly after any number of steps.
            windows(frames, options.window, options.overlap, options.closed_loop,
                    round(step * 0.618 * stride) if options.shift_windows else 0),
            bool(options.guidance > 1 and low <= t / last <= high),
        )
        for step, t in enumerate(visited)
    ]  # fmt: skip


def evaluations(frames: int, schedule: Schedule, options: SamplingConfig) -> int:
    """How often `sample` will call `denoise`: the length of a progress bar."""
    return sum(len(chunks) for chunks, _ in plans(frames, schedule, options))
