"""The sampling loop over steps and windows, for any denoiser."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from animate_jax.config import SamplingConfig
from animate_jax.diffusion.guidance import guide
from animate_jax.diffusion.samplers import ddim_step, timesteps
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
           progress: Callable[[], None] | None = None) -> Latents:  # fmt: skip
    """DDIM with classifier-free guidance over overlapping windows.

    The predictions of overlapping windows are averaged before guidance, as in the peers (unlike them also when
    guidance is off).

    Args:
        denoise: see `Denoise`.
        noise: x_T, [B, F, h, w, C].
        options: steps, guidance, window, overlap and closed_loop are used.
        progress: called after every evaluation of `denoise`.

    Raises:
        UserError: impossible steps or windows.
    """
    frames = noise.shape[1]
    chunks = windows(frames, options.window, options.overlap, options.closed_loop)
    guided = options.guidance > 1
    x = noise
    for t in timesteps(options.steps, schedule):
        predictions = []
        for chunk in chunks:
            part = x[:, jnp.asarray(chunk)]
            part = jnp.concatenate([part, part]) if guided else part
            time = jnp.full((part.shape[0], 1), t, jnp.float32)
            predictions.append(denoise(part, time, jnp.asarray(chunk)))
            if progress:
                progress()
        prediction = blend(jnp.stack(predictions), chunks, frames)
        if guided:
            prediction = guide(*jnp.split(prediction, 2), options.guidance)
        x = ddim_step(schedule, prediction, x, t, options.steps)
    return x


def evaluations(frames: int, options: SamplingConfig) -> int:
    """How often `sample` will call `denoise`: the length of a progress bar."""
    return options.steps * len(windows(frames, options.window, options.overlap, options.closed_loop))
