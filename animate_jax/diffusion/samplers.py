"""Samplers: from noise to a clean sample, one function each. The letters are those of the cited papers.

A sampler is called as `sampler(predict, x, schedule, steps, keys)`, where `predict(x, t)` returns the UNet's
prediction at timestep t. x is in host memory: NumPy in, NumPy out. All are deterministic but `euler_ancestral` and
`lcm`, the only ones to use `keys`, one per video. The numerics are those of diffusers' schedulers of the same names.

A new sampler is a function here that calls `predict` once per step, its row in `SAMPLERS`, and its name in
`config.SamplerName`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from animate_jax.config import SamplerName
from animate_jax.diffusion.noise import per_frame_normal
from animate_jax.diffusion.schedule import FloatArray, Schedule
from animate_jax.errors import UserError

Predict = Callable[[FloatArray, np.integer], FloatArray]
Sampler = Callable[[Predict, FloatArray, Schedule, int, Key[Array, " b"]], FloatArray]


def timesteps(steps: int, schedule: Schedule, extra: int = 0) -> Int[np.ndarray, " steps"]:
    """The timesteps to denoise at, noisiest first, spaced as `schedule.config.timestep_spacing` says.

    "trailing" starts at the very last training step, which a zero-terminal-SNR schedule needs; "leading" is
    Stable Diffusion's original choice, shifted by `steps_offset`; the multistep solvers compute one more step
    (`extra` = 1) and drop the least noisy. Raises UserError for an impossible number.
    """
    train_steps = schedule.config.train_steps
    if not 1 <= steps <= train_steps:
        raise UserError(f"sampling steps must be between 1 and {train_steps}, not {steps}")
    if schedule.config.timestep_spacing == "leading":
        places = np.arange(extra, steps + extra)[::-1]
        chosen = places * (train_steps // (steps + extra)) + schedule.config.steps_offset
        if chosen[0] >= train_steps:
            raise UserError(
                f"{steps} sampling steps with leading spacing begin at timestep {chosen[0]}, but the last "
                f"is {train_steps - 1}; use fewer steps"
            )
    else:
        # A fractional spacing, rounded to even as in diffusers; [:steps] drops arange's surplus.
        chosen = np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps] - 1
    return chosen.astype(np.int32)


def alphas_and_sigmas(
    t: Int[np.ndarray, " steps"], schedule: Schedule
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Signal alpha and noise sigma at every timestep, followed by 1 and 0. As in diffusers, alpha is never exactly 0:
    log(alpha / sigma) is finite."""
    alpha_bar = np.maximum(np.asarray(schedule.alphas_cumprod, np.float64)[t], 2.0**-24)
    return np.append(alpha_bar, 1.0) ** 0.5, np.append(1 - alpha_bar, 0.0) ** 0.5


def log_snr(alpha: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """lambda = log(alpha / sigma); infinite without noise."""
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def ddim_step(
    schedule: Schedule, prediction: FloatArray, x_t: FloatArray, t: int | np.integer, steps: int
) -> FloatArray:
    """x at the previous timestep.

    The step is always train_steps // steps long, as in diffusers and the PyTorch implementations, although `timesteps`
    with trailing spacing may differ by other amounts. A step that ends before timestep 0 ends at alpha_bar = 1.
    """
    x0, epsilon = schedule.to_x0_epsilon(prediction, x_t, t)
    previous = t - schedule.config.train_steps // steps
    alpha_bar = 1.0 if previous < 0 else float(schedule.alphas_cumprod[previous])
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * epsilon


def ddim(
    predict: Predict, x: FloatArray, schedule: Schedule, steps: int, keys: Key[Array, " b"] | None = None
) -> FloatArray:
    """Song et al. 2020, without added noise (eta = 0)."""
    for t in timesteps(steps, schedule):
        x = ddim_step(schedule, predict(x, t), x, t, steps)
    return x


def euler(
    predict: Predict, x: FloatArray, schedule: Schedule, steps: int, keys: Key[Array, " b"] | None = None
) -> FloatArray:
    """Karras et al. 2022, algorithm 2 without churn. In this scaling of x it is DDIM between the actual timesteps."""
    t = timesteps(steps, schedule)
    alpha, sigma = alphas_and_sigmas(t, schedule)
    for i in range(steps):
        x0 = predict_x0(predict(x, t[i]), x, schedule, alpha[i], sigma[i])
        ratio = sigma[i + 1] / sigma[i]
        x = float(ratio) * x + float(alpha[i + 1] - ratio * alpha[i]) * x0
    return x


def euler_ancestral(
    predict: Predict, x: FloatArray, schedule: Schedule, steps: int, keys: Key[Array, " b"]
) -> FloatArray:
    """k-diffusion's ancestral Euler: a step down to sigma_down, and fresh noise sigma_up. Here sigma is noise over
    signal, and x is scaled to unit variance before and after."""
    t = timesteps(steps, schedule)
    alpha, noise = alphas_and_sigmas(t, schedule)
    sigma = noise / alpha
    for i in range(steps):
        x0 = predict_x0(predict(x, t[i]), x, schedule, alpha[i], noise[i])
        up = (sigma[i + 1] ** 2 * (sigma[i] ** 2 - sigma[i + 1] ** 2) / sigma[i] ** 2) ** 0.5
        down = (sigma[i + 1] ** 2 - up**2) ** 0.5
        ratio = down / sigma[i]
        x = float(alpha[i + 1] * ratio / alpha[i]) * x + float(alpha[i + 1] * (1 - ratio)) * x0
        x = x + float(alpha[i + 1] * up) * per_frame_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x.shape)
    return x


def dpm_solver(
    predict: Predict, x: FloatArray, schedule: Schedule, steps: int, keys: Key[Array, " b"] | None = None
) -> FloatArray:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, midpoint; first and last step are of first order."""
    t = timesteps(steps, schedule, extra=1)
    alpha, sigma = alphas_and_sigmas(t, schedule)
    lam = log_snr(alpha, sigma)
    previous_x0 = None
    for i in range(steps):
        x0 = predict_x0(predict(x, t[i]), x, schedule, alpha[i], sigma[i])
        h = lam[i + 1] - lam[i]
        d = x0
        if previous_x0 is not None and i < steps - 1:
            r = (lam[i] - lam[i - 1]) / h
            d = x0 + float(0.5 / r) * (x0 - previous_x0)
        x = float(sigma[i + 1] / sigma[i]) * x - float(alpha[i + 1] * np.expm1(-h)) * d
        previous_x0 = x0
    return x


def unipc(
    predict: Predict, x: FloatArray, schedule: Schedule, steps: int, keys: Key[Array, " b"] | None = None
) -> FloatArray:
    """UniPC of second order (Zhao et al. 2023, B2(h), data prediction): each step is predicted, and corrected with the
    prediction made at its end. First and last step are of first order."""
    t = timesteps(steps, schedule, extra=1)
    alpha, sigma = alphas_and_sigmas(t, schedule)
    lam = log_snr(alpha, sigma)
    start, x0s, order = x, [], 1  # the sample the last step began with, its x0 and the one before, its order
    for i in range(steps):
        x0 = predict_x0(predict(x, t[i]), x, schedule, alpha[i], sigma[i])
        if i > 0:
            h = lam[i] - lam[i - 1]
            b = np.expm1(-h)
            phi = -b / h - 1  # phi_2(-h), then phi_3
            correction = 0.5 * (x0 - x0s[-1])
            if order == 2:
                r = (lam[i - 2] - lam[i - 1]) / h
                rhs = np.array([phi / b, 2 * (-phi / h - 0.5) / b])
                rho = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), rhs)
                correction = float(rho[0] / r) * (x0s[-2] - x0s[-1]) + float(rho[1]) * (x0 - x0s[-1])
            x = float(sigma[i] / sigma[i - 1]) * start - float(alpha[i] * b) * (x0s[-1] + correction)
        start, x0s = x, [*x0s[-1:], x0]
        order = min(2, i + 1, steps - i)
        h = lam[i + 1] - lam[i]
        d = x0
        if order == 2:
            r = (lam[i - 1] - lam[i]) / h
            d = x0 + float(0.5 / r) * (x0s[-2] - x0)
        x = float(sigma[i + 1] / sigma[i]) * x - float(alpha[i + 1] * np.expm1(-h)) * d
    return x


def lcm(predict: Predict, x: FloatArray, schedule: Schedule, steps: int, keys: Key[Array, " b"]) -> FloatArray:
    """Multistep sampling of consistency models (Luo et al. 2023, algorithm 3), for distilled models: x0, and fresh
    noise up to the next timestep. c_skip and c_out, 0 and 1 within 1e-5 from timestep 19 on, are left out."""
    t = timesteps(steps, schedule)
    alpha, sigma = alphas_and_sigmas(t, schedule)
    for i in range(steps):
        x = predict_x0(predict(x, t[i]), x, schedule, alpha[i], sigma[i])
        if i < steps - 1:
            noise = per_frame_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x.shape)
            x = float(alpha[i + 1]) * x + float(sigma[i + 1]) * noise
    return x


def predict_x0(prediction: FloatArray, x: FloatArray, schedule: Schedule, alpha: float, sigma: float) -> FloatArray:
    """x0 from the UNet's prediction, with alpha and sigma of `alphas_and_sigmas`."""
    kind = schedule.config.prediction
    if kind == "x0":
        return prediction
    if kind == "v":
        return float(alpha) * x - float(sigma) * prediction
    return (x - float(sigma) * prediction) / float(alpha)


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "unipc": unipc,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "lcm": lcm,
}
