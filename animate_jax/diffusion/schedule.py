"""The noise schedule: signal and noise at every training step, and the target of the UNet's prediction.

Letters are those of DDPM (Ho et al. 2020): x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from animate_jax.config import ScheduleConfig
from animate_jax.errors import UserError

FloatArray = Float[Array | np.ndarray, "*shape"]
# One for all samples, or one per sample.
Timestep = Int[Array | np.ndarray, "*batch"] | int | np.integer


@functools.partial(jax.tree_util.register_dataclass, data_fields=["alphas_cumprod"], meta_fields=["config"])
@dataclasses.dataclass(frozen=True)
class Schedule:
    """From `make_schedule`; a pytree, so that it may be an argument or a constant of a jitted function.

    Timesteps are in 0..train_steps-1, one number or one per sample (leading axes); results are float32. NumPy arrays
    at a number's timestep stay NumPy arrays: sampling keeps a whole video in host memory.
    """

    config: ScheduleConfig
    alphas_cumprod: Float[Array | np.ndarray, " train_steps"]  # alpha_bar, falling from almost 1

    def _signal_and_noise(self, x: FloatArray, t: Timestep) -> tuple[Array | np.ndarray, Array | np.ndarray]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply x."""
        numbers = np if isinstance(t, int | np.integer) and isinstance(self.alphas_cumprod, np.ndarray) else jnp
        alpha_bar = numbers.asarray(self.alphas_cumprod)[t]
        alpha_bar = alpha_bar.reshape(alpha_bar.shape + (1,) * (x.ndim - alpha_bar.ndim))
        return numbers.sqrt(alpha_bar), numbers.sqrt(1 - alpha_bar)

    def add_noise(self, x0: FloatArray, noise: FloatArray, t: Timestep) -> FloatArray:
        """x_t, the noisy version of x0."""
        signal, sigma = self._signal_and_noise(x0, t)
        return signal * x0 + sigma * noise

    def target(self, x0: FloatArray, noise: FloatArray, t: Timestep) -> FloatArray:
        """The target of the prediction: the noise, v (Salimans & Ho 2022), or x0."""
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "x0":
            return x0
        signal, sigma = self._signal_and_noise(x0, t)
        return signal * noise - sigma * x0

    def to_x0_epsilon(self, prediction: FloatArray, x_t: FloatArray, t: Timestep) -> tuple[FloatArray, FloatArray]:
        """The clean sample and the noise that a prediction implies; exact also where alpha_bar is 0."""
        signal, sigma = self._signal_and_noise(x_t, t)
        if self.config.prediction == "epsilon":
            return (x_t - sigma * prediction) / signal, prediction
        if self.config.prediction == "x0":
            return prediction, (x_t - signal * prediction) / sigma
        return signal * x_t - sigma * prediction, signal * prediction + sigma * x_t

    def snr(self, t: Timestep) -> Float[Array, "*batch"]:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
        alpha_bar = jnp.asarray(self.alphas_cumprod)[t]
        return alpha_bar / (1 - alpha_bar)


def make_schedule(config: ScheduleConfig) -> Schedule:
    """alpha_bar, computed in float64 and kept in float32; with zero terminal SNR the last is exactly 0.

    Raises UserError for epsilon prediction with zero terminal SNR: where x_t is pure noise, the noise says
    nothing about x0 (Lin et al. 2023, section 3.2).
    """
    if config.prediction == "epsilon" and config.zero_terminal_snr:
        raise UserError(
            "schedule: prediction 'epsilon' cannot work with zero_terminal_snr=True; choose 'v' or 'x0', "
            "or zero_terminal_snr=False"
        )
    if config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, config.train_steps)
    else:  # Stable Diffusion's: linear in the square root
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.train_steps) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    if config.zero_terminal_snr:  # Lin et al. 2023, algorithm 1: shift and stretch sqrt(alpha_bar)
        root = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return Schedule(config, alphas_cumprod.astype(np.float32))
