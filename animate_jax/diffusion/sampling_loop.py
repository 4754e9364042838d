"""The sampling loop over steps and windows, for any denoiser."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from animate_jax.config import SamplingConfig
from animate_jax.diffusion.guidance import apply_guidance
from animate_jax.diffusion.samplers import SAMPLERS
from animate_jax.diffusion.schedule import FloatArray, Schedule
from animate_jax.diffusion.windows import blend, windows
from animate_jax.models.guidance_pairs import pair, unpair

Latents = Float[np.ndarray, "b f h w c"]
# predict_windows(x, t, frames) -> prediction: `x` [rows, window, h, w, c], video by video and in each window by
# window, in pairs when guided (`models.guidance_pairs`); `frames` the indices of each window's frames in the video.
PredictWindows = Callable[
    [Float[np.ndarray, "r n h w c"], Float[np.ndarray, "r 1"], Int[np.ndarray, "w n"]],
    Float[Array | np.ndarray, "r n h w c"],
]


class Position(NamedTuple):
    """Where sampling is: step and window, from 1, and how many there are."""

    step: int
    steps: int
    window: int
    windows: int

    def __str__(self) -> str:
        window = f", window {self.window} of {self.windows}" if self.windows > 1 else ""
        return f"step {self.step} of {self.steps}{window}"


def sample_windowed(
    predict_windows: PredictWindows,
    noise: Latents,
    schedule: Schedule,
    options: SamplingConfig,
    progress: Callable[[Position], object] | None = None,
    keys: Key[Array, " b"] | None = None,
    windows_per_call: int = 1,
) -> Latents:
    """The sampler of `options` with classifier-free guidance over overlapping windows.

    The video's latents stay in host memory and `predict_windows` gets a few windows at a time, so that device memory
    does not depend on the video's length. The predictions of overlapping windows are averaged before guidance, as in
    the PyTorch implementations (unlike them also when guidance is off).

    Args:
        predict_windows: see `PredictWindows`.
        noise: x_T, [B, F, h, w, C].
        options: sampler, steps, guidance, window, overlap and their variants are used.
        progress: called before every evaluation of `predict_windows`.
        keys: of the noise that "euler_ancestral" and "lcm" add, one per video.
        windows_per_call: windows in one call; the last window is repeated where there are fewer.

    Raises:
        UserError: impossible steps or windows.
    """
    frames = noise.shape[1]
    last, (low, high) = schedule.config.train_steps - 1, options.guidance_interval
    steps = step_windows(frames, options)
    visited = iter(enumerate(steps, 1))

    def predict(x: FloatArray, t: np.integer) -> Latents:
        step, chunks = next(visited)
        guided = options.guidance > 1 and low <= t / last <= high

        def predictions() -> Iterator[Float[np.ndarray, "r n h w c"]]:
            for start in range(0, len(chunks), windows_per_call):
                if progress:
                    progress(Position(step, len(steps), start + 1, len(chunks)))
                group = chunks[start : start + windows_per_call]
                group = np.array(group + [group[-1]] * (windows_per_call - len(group)))
                rows = np.asarray(x)[:, group].reshape(-1, *group.shape[1:], *x.shape[2:])
                rows = pair(rows, rows) if guided else rows
                prediction = np.asarray(predict_windows(rows, np.full((len(rows), 1), t, np.float32), group))
                by_window = prediction.reshape(len(x), windows_per_call, -1, *rows.shape[1:]).swapaxes(0, 1)
                yield from by_window.reshape(windows_per_call, -1, *rows.shape[1:])

        prediction = blend(itertools.islice(predictions(), len(chunks)), chunks, frames, options.blend == "flat")
        if guided:
            prediction = apply_guidance(*unpair(prediction), options.guidance, options.guidance_rescale)
        return np.asarray(prediction)

    keys = jax.random.split(jax.random.key(0), len(noise)) if keys is None else keys
    return np.asarray(SAMPLERS[options.sampler](predict, noise, schedule, options.steps, keys))


def step_windows(frames: int, options: SamplingConfig) -> list[list[list[int]]]:
    """The windows of every step."""
    stride = options.window - options.overlap
    # Multiples of the golden ratio: evenly spread positions after any number of steps.
    shifts = [round(step * 0.618 * stride) if options.shift_windows else 0 for step in range(options.steps)]
    return [windows(frames, options.window, options.overlap, options.closed_loop, shift) for shift in shifts]


def num_function_evaluations(frames: int, options: SamplingConfig, windows_per_call: int = 1) -> int:
    """How often `sample_windowed` will call `predict_windows`: the length of a progress bar."""
    return sum(math.ceil(len(chunks) / windows_per_call) for chunks in step_windows(frames, options))
