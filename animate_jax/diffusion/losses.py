"""Terms of the training losses, and the noise of training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from animate_jax.config import Weighting
from animate_jax.diffusion.schedule import Schedule


def sample_noise(
    key: Key[Array, ""], shape: tuple[int, ...], offset: float = 0.0
) -> Float[Array, "batch *positions channels"]:
    """Standard normal noise [B, ..., C], plus `offset` times one normal number per sample and channel.

    The offset lets a model whose schedule never reaches pure noise learn the overall brightness; the PyTorch
    implementations use 0.05, the same for all frames of a clip.
    """
    key, offset_key = jax.random.split(key)
    noise = jax.random.normal(key, shape)
    if offset == 0:
        return noise
    per_channel = (shape[0], *[1] * (len(shape) - 2), shape[-1])
    return noise + offset * jax.random.normal(offset_key, per_channel)


def loss_weight(
    schedule: Schedule, t: Int[Array, " batch"], weighting: Weighting, gamma: float = 5.0
) -> Float[Array, " batch"]:
    """The weight of every sample's mean squared error.

    "none" is 1. "min_snr" is Hang et al. 2023 as in the PyTorch implementations, where the weight on the x0 error is
    min(SNR, gamma) for "epsilon" and "x0", and for "v" min(SNR + 1, gamma), which stays positive at SNR 0.
    "x0" is min(SNR + 1, gamma) = min(1 / (1 - alpha_bar), gamma), for x0 prediction: the v loss, bounded.
    """
    if weighting == "none":
        return jnp.ones(t.shape)
    snr = schedule.snr(t)
    if weighting == "x0":
        return jnp.minimum(snr + 1, gamma)
    if schedule.config.prediction == "x0":
        return jnp.minimum(snr, gamma)
    if schedule.config.prediction == "v":
        return jnp.minimum(snr + 1, gamma) / (snr + 1)
    return jnp.minimum(snr, gamma) / snr


def weighted_mse(
    prediction: Float[Array, " batch *rest"],
    target: Float[Array, " batch *rest"],
    weight: Float[Array, " batch"],
    spatial_weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, " batch"]:
    """Every sample's weight times its mean squared error; the caller takes the mean.

    `spatial_weight` >= 0 broadcasts against the target (for example [B, F, H, W, 1]) and is scaled to mean 1
    per sample: it shifts weight within an image but not between samples.
    """
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    if spatial_weight is not None:
        axes = tuple(range(1, spatial_weight.ndim))
        error = error * (spatial_weight / jnp.mean(spatial_weight, axis=axes, keepdims=True))
    return weight * jnp.mean(error, axis=tuple(range(1, error.ndim)))


def flicker(
    latents: Float[Array, "batch frames h w c"], truth: UInt8[Array, "batch frames height width 3"]
) -> Float[Array, " batch"]:
    """Every clip's mean absolute change of the latents from frame to frame where the true frames do not change.

    A position does not change if no level of its pixels changes by more than 2, as in evaluation's metric of this name.
    """
    batch, frames, h, w, _ = latents.shape
    levels = truth.astype(jnp.int16)
    moves = jnp.abs(levels[:, 1:] - levels[:, :-1]).reshape(batch, frames - 1, h, truth.shape[2] // h, w, -1)
    still = moves.max((3, 5)) <= 2
    changes = jnp.abs(latents[:, 1:] - latents[:, :-1]).mean(-1)
    return jnp.sum(changes * still, (1, 2, 3)) / jnp.maximum(still.sum((1, 2, 3)), 1)
