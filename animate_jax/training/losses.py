"""Losses of the three kinds of training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from animate_jax.config import TrainConfig
from animate_jax.diffusion.losses import draw_noise, flicker, loss_weight, weighted_mse
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.images import to_signed, to_unit
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.sharding import frames_apart
from animate_jax.models.vae import AutoencoderKL
from animate_jax.presets import preset_of

Batch = dict[str, Array]
Metrics = dict[str, Array]
Value = tuple[Float[Array, ""], Metrics]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Everything random is drawn for the whole batch first, so that cutting the batch changes nothing.

    Attributes:
        draw: (batch, key) -> random arrays, as many rows as the batch has.
        of: (model, batch with what was drawn) -> mean over the rows, and metrics.
    """

    draw: Callable[[Batch, Key[Array, ""]], Batch]
    of: Callable[[AnimateAnyone, Batch], Value]

    def __call__(self, model: AnimateAnyone, batch: Batch, key: Key[Array, ""]) -> Value:
        return self.of(model, {**batch, **self.draw(batch, key)})


Distance = Callable[[Float[Array, "b h w 3"], Float[Array, "b h w 3"]], Float[Array, " b"]]  # of [-1, 1] pictures


def diffusion_loss(config: TrainConfig, perceptual: Distance | None = None) -> Loss:
    """Stage 1 (single frames, each with its own timestep, no temporal layers) and stage 2 (clips, one timestep).

    Follows Hu et al. 2023, section 3.3; the options of `config.loss` are the peers'. Batches are uint8:
    `reference` [B, H, W, 3], `reference_pose` likewise, `clip_pixels` [B, S, S, 3] float, `frames` and `poses`
    [B, F, H, W, 3], `masks` [B, F, H, W] the person; of models with `appearance` also `background` [B, H, W, 3], `warp`
    [B, F, H, W, 3] and `warp_masks` [B, F, H, W, 2]. Of encoded frames (data/latents.py) `reference_moments`
    [B, h, w, 2c], `moments` [B, F, h, w, 2c] and `clip_embedding` [B, D] stand for reference, frames and CLIP's pixels.
    `perceptual` is needed if `config.loss.perceptual` is not 0.

    Raises:
        UserError: more frames than the temporal layers take, a size that the autoencoder cannot halve, a square that
            does not fit, a shift of the timesteps that is not positive, a share outside 0..1, no frame to see, or a
            model with `appearance` that does not predict x0.
    """
    preset = preset_of(config)
    schedule, options, temporal = make_schedule(preset.schedule), config.loss, config.stage == "stage2"
    dtype = jnp.dtype(config.compute_dtype)
    longest = preset.model.unet.motion_max_length
    if temporal and config.data.frames > longest:
        raise UserError(f"--data.frames {config.data.frames}: this model's temporal layers take at most {longest}")

    appearance = preset.model.unet.appearance != "none"
    if appearance and preset.schedule.prediction != "x0":
        raise UserError(f"--preset {preset.name}: copies from the warped reference: give --prediction x0")
    if options.timestep_shift <= 0:
        raise UserError(f"--loss.timestep-shift {options.timestep_shift}: must be positive; 1 draws evenly")
    if not 0 <= options.scheduled_sampling <= 1:
        raise UserError(f"--loss.scheduled-sampling {options.scheduled_sampling}: must be a share, 0 to 1")
    if options.perceptual_frames < 1:
        raise UserError(f"--loss.perceptual-frames {options.perceptual_frames}: must be at least 1")
    width, height, size = preset.frames.width, preset.frames.height, preset.model.vae.downscale
    last = preset.schedule.train_steps - 1
    if width % size or height % size:
        raise UserError(f"--size {width} {height}: width and height must be multiples of {size}")

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        clips, frames, height, width, _ = batch["poses"].shape
        keys, latent = jax.random.split(key, 5), (height // size, width // size, preset.model.vae.latent_channels)
        # One stratified draw over the batch: every step sees all noise levels.
        count = clips if temporal else clips * frames
        strata = (jax.random.permutation(keys[1], count) + jax.random.uniform(keys[4], (count,))) / count
        strata = options.timestep_shift * strata / (1 + (options.timestep_shift - 1) * strata)
        noise = draw_noise(keys[2], (clips, frames, *latent), options.noise_offset)
        if temporal and options.shared_noise:
            noise = jnp.broadcast_to(noise[:, :1], noise.shape)
        optional = {}
        if options.perceptual or options.pixels:
            shuffled = jax.vmap(functools.partial(jax.random.permutation, x=frames))
            optional["squares"] = jax.random.split(jax.random.fold_in(key, 5), clips)
            optional["seen"] = shuffled(jax.random.split(jax.random.fold_in(key, 7), clips))
        if options.scheduled_sampling:
            own = jax.random.bernoulli(jax.random.fold_in(key, 6), options.scheduled_sampling, (clips, 1, 1, 1, 1))
            optional["own"] = own
        return optional | {
            "posterior": jax.random.normal(keys[0], (clips, 1 + frames, *latent)),
            # rounding could leave the schedule
            "t": jnp.minimum((strata * preset.schedule.train_steps).astype(jnp.int32), last).reshape(clips, -1),
            "noise": noise,
            "keep": jax.random.bernoulli(keys[3], 1 - options.condition_dropout, (clips,)),
        }

    def of(model: AnimateAnyone, batch: Batch) -> Value:
        model.denoising_unet.remat = model.reference_unet.remat = config.remat
        t, noise, (clips, frames) = batch["t"], batch["noise"], batch["poses"].shape[:2]
        # Apart, so that the frames can be divided over devices.
        draws = batch["posterior"][:, :1], batch["posterior"][:, 1:]
        if "moments" in batch:
            moments, clip = (
                (batch["reference_moments"][:, None], frames_apart(batch["moments"])),
                batch["clip_embedding"],
            )
            reference, x0 = (from_moments(model.vae, *each) for each in zip(moments, draws, strict=True))
        else:
            pictures, clip = (batch["reference"][:, None], frames_apart(batch["frames"])), batch["clip_pixels"]
            reference, x0 = (
                jax.lax.stop_gradient(encode(model.vae, to_signed(seen).astype(dtype), noise))
                for seen, noise in zip(pictures, draws, strict=True)
            )
        reference = reference[:, 0]
        per_frame = jnp.broadcast_to(t, (clips, frames))
        reference_pose, poses = (to_unit(batch[name]).astype(dtype) for name in ("reference_pose", "poses"))
        conditioning = model.condition(reference.astype(dtype), clip.astype(dtype), reference_pose, batch["keep"])
        shown, seen_so = (), ()  # the warped reference, its background and masks: as pictures, as the UNet sees them
        if appearance:
            pictures = frames_apart(to_signed(batch["warp"])), to_signed(batch["background"])[:, None]
            masks = frames_apart(to_unit(batch["warp_masks"]))
            latents = (jax.lax.stop_gradient(latents_of(model.vae, x.astype(dtype))) for x in pictures)
            shown, seen_so = (*pictures, masks), (*latents, masks.astype(dtype))
        pose = model.guide(frames_apart(poses), *seen_so)

        def denoise(x: Array, t: Array) -> Array:
            return model.denoise(x.astype(dtype), t.astype(jnp.float32), conditioning, pose, temporal)

        if options.scheduled_sampling:
            at_last = jnp.full_like(per_frame, last)
            x_last = schedule.add_noise(x0, noise, at_last)
            made = denoise(x_last, jnp.full_like(t, last)).astype(jnp.float32)
            made = jax.lax.stop_gradient(schedule.to_x0_epsilon(made, x_last, at_last)[0])
            # Its error counts as noise: then x_t holds `made` in place of x0, and the target is still x0's. As x_t then
            # says no more about x0 than pure noise did, it weighs as much.
            ratio = jnp.sqrt(schedule.snr(per_frame))[..., None, None, None]
            noise = noise + jnp.where(batch["own"], ratio * (made - x0), 0)
        x_t = schedule.add_noise(x0, noise, per_frame)
        prediction = denoise(x_t, t)

        person = None
        if options.person:
            masks = to_unit(batch["masks"])
            inside = masks.reshape(clips, frames, x0.shape[2], size, x0.shape[3], size).mean((3, 5))[..., None]
            person = flat(1 + options.person * inside)
        target = schedule.target(x0, noise, per_frame)
        seen_as = jnp.where(batch["own"][..., 0, 0, 0], last, per_frame) if options.scheduled_sampling else per_frame
        weight = loss_weight(schedule, seen_as.reshape(-1), options.weighting, options.gamma)
        error = weighted_mse(flat(prediction), flat(target), jnp.ones_like(weight), person)
        quarters = per_frame.reshape(-1) * 4 // preset.schedule.train_steps
        # NaN where no sample of the batch falls into that quarter of the noise levels.
        by_noise = {f"mse_q{q}": jnp.sum(error * (quarters == q)) / jnp.sum(quarters == q) for q in range(4)}
        total, metrics = jnp.mean(weight * error), {"mse": error.mean(), **by_noise}
        expected = schedule.to_x0_epsilon(prediction.astype(jnp.float32), x_t, per_frame)[0]
        if temporal and options.flicker:
            metrics["flicker"] = flicker(expected, batch["frames"]).mean()
            total += options.flicker * metrics["flicker"]
        if options.perceptual or options.pixels:
            square = functools.partial(crops, flag="--loss.perceptual-crop")

            def seen(x: Array, step: int) -> Array:
                """The same places of the same frames, whether of pixels or latents."""
                side, frames = options.perceptual_crop * step // size, batch["seen"][:, : options.perceptual_frames]
                return flat(jax.vmap(lambda x, i, key: square(x[i], side, step, key))(x, frames, batch["squares"]))

            true = seen(to_signed(batch["frames"]), size)
            made = model.vae.to_images(seen(expected, 1).astype(dtype))
            if appearance:
                parts = (jnp.broadcast_to(x, (clips, frames, *x.shape[2:])) for x in shown)
                made = model.appearance_blend(made, *(seen(x, size).astype(dtype) for x in parts))
            made = made.astype(jnp.float32)
            if options.perceptual:
                metrics["lpips"] = perceptual(true, made).mean()
                total += options.perceptual * metrics["lpips"]
            if options.pixels:
                metrics["l1"] = jnp.abs(true - made).mean()
                total += options.pixels * metrics["l1"]
        return total, metrics

    return Loss(draw, of)


def flat(x: Float[Array, "b f *rest"]) -> Float[Array, "bf *rest"]:
    return x.reshape(-1, *x.shape[2:])


def encode(
    vae: AutoencoderKL, pictures: Float[Array, "b f h w 3"], noise: Float[Array, "b f y x c"]
) -> Float[Array, "b f y x c"]:
    """Scaled latents drawn from the posterior, as the peers train, in float32; [-1, 1] pictures."""
    moments = jnp.concatenate(vae.encode(flat(pictures)), -1)
    return from_moments(vae, moments.reshape(*noise.shape[:-1], -1), noise)


def from_moments(
    vae: AutoencoderKL, moments: Float[Array, "b f y x m"], noise: Float[Array, "b f y x c"]
) -> Float[Array, "b f y x c"]:
    """Scaled latents drawn from a posterior of that mean and log variance, in float32."""
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, -1)
    return (mean + jnp.exp(0.5 * log_variance) * noise) * vae.config.scaling_factor


def latents_of(vae: AutoencoderKL, pictures: Float[Array, "b f h w 3"]) -> Float[Array, "b f y x c"]:
    """Scaled latents without chance; [-1, 1] pictures."""
    latents = vae.to_latents(flat(pictures))
    return latents.reshape(*pictures.shape[:2], *latents.shape[1:])


def vae_loss(config: TrainConfig, perceptual: Distance) -> Loss:
    """Reconstruction of crops of the frames."""
    options, dtype = config.vae_loss, jnp.dtype(config.compute_dtype)

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        return {"keys": jax.random.split(key, (len(batch["frames"]), 2))}

    def of(model: AnimateAnyone, batch: Batch) -> Value:
        def cut(frames: Array, key: Key[Array, ""]) -> Array:
            return crops(frames, options.crop, model.vae.config.downscale, key)

        images = flat(jax.vmap(cut)(to_signed(batch["frames"]), batch["keys"][:, 0]))
        mean, log_variance = (x.astype(jnp.float32) for x in model.vae.encode(images.astype(dtype)))
        shape = (batch["frames"].shape[1], *mean.shape[1:])
        noise = flat(jax.vmap(lambda key: jax.random.normal(key, shape))(batch["keys"][:, 1]))
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        result = model.vae.decode(latents.astype(dtype)).astype(jnp.float32)
        difference = result - images
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1).mean()
        seen = slice(0, options.perceptual_crops)
        parts: Metrics = {
            "l1": jnp.abs(difference).mean(),
            "mse": jnp.square(difference).mean(),
            "lpips": perceptual(images[seen], result[seen]).mean(),
            "kl": kl,
        }
        total = parts["l1"] + options.mse * parts["mse"] + options.perceptual * parts["lpips"] + options.kl * kl
        psnr = -10 * jnp.log10(parts["mse"] / 4)
        return total, {**parts, "psnr": psnr, "latent_std": mean.std()}

    return Loss(draw, of)


def crops(
    images: Float[Array, "b h w c"], size: int, step: int, key: Key[Array, ""], flag: str = "--vae-loss.crop"
) -> Float[Array, "b s s c"]:
    """One random square of every picture, its corner on the VAE's grid.

    Raises:
        UserError: the square is not on the grid or larger than the pictures.
    """
    if size % step or not 0 < size <= min(images.shape[1:3]):
        raise UserError(f"{flag} {size}: must be a multiple of {step}, at most {min(images.shape[1:3])}")
    rows, columns = ((side - size) // step + 1 for side in images.shape[1:3])
    y, x = (jax.random.randint(k, images.shape[:1], 0, n) * step for k, n in zip(jax.random.split(key), (rows, columns),
                                                                              strict=True))  # fmt: skip
    cut = lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (size, size, image.shape[-1]))  # noqa: E731
    return jax.vmap(cut)(images, y, x)
