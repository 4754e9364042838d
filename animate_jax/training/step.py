"""Losses of the three kinds of training, and one pure step around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from animate_jax.config import Preset, TrainConfig
from animate_jax.diffusion.losses import draw_noise, loss_weight, weighted_mse
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.models import params as P
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.vae import AutoencoderKL
from animate_jax.training.state import State, update_ema

Batch = dict[str, Array]
Loss = Callable[[AnimateAnyone, Batch, Key[Array, ""]], tuple[Float[Array, ""], dict[str, Array]]]


def make_step(graphdef: nnx.GraphDef, loss: Loss, tx: optax.GradientTransformation, ema: float
              ) -> Callable[[State, Batch, Key[Array, ""]], tuple[State, dict[str, Array]]]:  # fmt: skip
    """`step(state, batch, key) -> (state, metrics)`; pure, to be jitted with the state donated.

    Only trainable parameters have gradients and moments. The key is folded with the step, so that a resumed run
    draws the same noise.
    """

    def step(state: State, batch: Batch, key: Key[Array, ""]) -> tuple[State, dict[str, Array]]:
        def objective(trainable: P.Params):
            model = P.merge(graphdef, {**state["frozen"], **trainable})
            return loss(model, batch, jax.random.fold_in(key, state["step"]))

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state["trainable"])
        updates, opt = tx.update(grads, state["opt"], state["trainable"])
        trainable = optax.apply_updates(state["trainable"], updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **metrics}
        ema_params = update_ema(state["ema"], trainable, state["step"], ema)
        return {
            **state,
            "step": state["step"] + 1,
            "trainable": trainable,
            "opt": opt,
            "ema": ema_params,
        }, metrics

    return step


def to_unit(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """uint8 -> [0, 1]."""
    return images.astype(jnp.float32) / 255


def to_signed(images: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """uint8 -> [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def diffusion_loss(config: TrainConfig, preset: Preset) -> Loss:
    """Stage 1 (single frames, each with its own timestep, no temporal layers) and stage 2 (clips, one timestep).

    Follows Hu et al. 2023, section 3.3; the options of `config.loss` are the peers'. Batches are uint8:
    `reference` [B, H, W, 3], `reference_pose` likewise, `clip_pixels` [B, S, S, 3] float, `frames` and `poses`
    [B, F, H, W, 3], `masks` [B, F, H, W] the person.

    Raises:
        UserError: more frames than the temporal layers take.
    """
    schedule, options, temporal = make_schedule(preset.schedule), config.loss, config.stage == "stage2"
    longest = preset.model.unet.motion_max_length
    if temporal and config.data.frames > longest:
        raise UserError(f"--data.frames {config.data.frames}: this model's temporal layers take at most {longest}")

    def loss(model: AnimateAnyone, batch: Batch, key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
        clips, frames = batch["frames"].shape[:2]
        keys = jax.random.split(key, 5)
        pictures = jnp.concatenate([batch["reference"][:, None], batch["frames"]], 1)
        latents = jax.lax.stop_gradient(encode(model.vae, to_signed(pictures), keys[0]))
        reference, x0 = latents[:, 0], latents[:, 1:]

        # One stratified draw over the batch: every step sees all noise levels.
        count = clips if temporal else clips * frames
        strata = (jax.random.permutation(keys[1], count) + jax.random.uniform(keys[4], (count,))) / count
        t = (strata * preset.schedule.train_steps).astype(jnp.int32).reshape(clips, -1)

        noise = draw_noise(keys[2], x0.shape, options.noise_offset)
        if temporal and options.shared_noise:
            noise = jnp.broadcast_to(noise[:, :1], noise.shape)
        per_frame = jnp.broadcast_to(t, (clips, frames))
        x_t = schedule.add_noise(x0, noise, per_frame)
        keep = jax.random.bernoulli(keys[3], 1 - options.condition_dropout, (clips,))
        conditioning = model.condition(reference, batch["clip_pixels"], to_unit(batch["reference_pose"]), keep)
        pose = model.pose_guider(to_unit(batch["poses"]))
        prediction = model.denoise(x_t, t.astype(jnp.float32), conditioning, pose, temporal)

        person = None
        if options.person:
            masks = batch["masks"].astype(jnp.float32) / 255
            size = model.vae.config.downscale
            masks = masks.reshape(*masks.shape[:2], x0.shape[2], size, x0.shape[3], size).mean((3, 5))
            person = flat(1 + options.person * masks[..., None])
        target = schedule.target(x0, noise, per_frame)
        weight = loss_weight(schedule, per_frame.reshape(-1), options.weighting)
        error = weighted_mse(flat(prediction), flat(target), jnp.ones_like(weight), person)
        quarters = per_frame.reshape(-1) * 4 // preset.schedule.train_steps
        # NaN where no sample of the batch falls into that quarter of the noise levels.
        by_noise = {f"mse_q{q}": jnp.sum(error * (quarters == q)) / jnp.sum(quarters == q) for q in range(4)}
        return jnp.mean(weight * error), {"mse": error.mean(), **by_noise}

    return loss


def flat(x: Float[Array, "b f *rest"]) -> Float[Array, "bf *rest"]:
    return x.reshape(-1, *x.shape[2:])


def encode(vae: AutoencoderKL, pictures: Float[Array, "b f h w 3"], key: Key[Array, ""]) -> Float[Array, "b f y x c"]:
    """Scaled latents drawn from the posterior, as the peers train; [-1, 1] pictures."""
    mean, log_variance = vae.encode(flat(pictures))
    drawn = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)
    return (drawn * vae.config.scaling_factor).reshape(*pictures.shape[:2], *mean.shape[1:])


def vae_loss(config: TrainConfig, perceptual: Callable[[Array, Array], Array]) -> Loss:
    """Reconstruction of crops of the frames; `perceptual(a, b) -> [B]` takes [-1, 1] pictures."""
    options = config.vae_loss

    def loss(model: AnimateAnyone, batch: Batch, key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
        crop_key, noise_key = jax.random.split(key)
        images = crops(flat(to_signed(batch["frames"])), options.crop, model.vae.config.downscale, crop_key)
        mean, log_variance = model.vae.encode(images)
        latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(noise_key, mean.shape)
        result = model.vae.decode(latents)
        difference = result - images
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1).mean()
        seen = slice(0, options.perceptual_crops)
        parts: dict[str, Any] = {
            "l1": jnp.abs(difference).mean(),
            "mse": jnp.square(difference).mean(),
            "lpips": perceptual(images[seen], result[seen]).mean(),
            "kl": kl,
        }
        total = parts["l1"] + options.mse * parts["mse"] + options.perceptual * parts["lpips"] + options.kl * kl
        psnr = -10 * jnp.log10(parts["mse"] / 4)
        return total, {**parts, "psnr": psnr, "latent_std": mean.std()}

    return loss


def crops(images: Float[Array, "b h w c"], size: int, step: int, key: Key[Array, ""]) -> Float[Array, "b s s c"]:
    """One random square of every picture, its corner on the VAE's grid.

    Raises:
        UserError: the square is not on the grid or larger than the pictures.
    """
    if size % step or not 0 < size <= min(images.shape[1:3]):
        raise UserError(f"--vae-loss.crop {size}: must be a multiple of {step}, at most {min(images.shape[1:3])}")
    rows, columns = ((side - size) // step + 1 for side in images.shape[1:3])
    y, x = (jax.random.randint(k, images.shape[:1], 0, n) * step for k, n in zip(jax.random.split(key), (rows, columns),
                                                                              strict=True))  # fmt: skip
    cut = lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (size, size, image.shape[-1]))  # noqa: E731
    return jax.vmap(cut)(images, y, x)
