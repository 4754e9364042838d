"""Losses of the four kinds of training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

from animate_jax.config import DiffusionLossConfig, TrainConfig
from animate_jax.data.batch import Batch
from animate_jax.diffusion.guidance import apply_guidance
from animate_jax.diffusion.losses import flicker, loss_weight, sample_noise, weighted_mse
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.images import to_signed, to_unit
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.sharding import shard_frames, sum_over_shards
from animate_jax.models.vae import AutoencoderKL
from animate_jax.perceptual import lpips
from animate_jax.presets import preset_of, starting_preset

Randomness = dict[str, Array]  # as many rows as the batch
Metrics = dict[str, Array]
LossAndMetrics = tuple[Float[Array, ""], Metrics]
PerceptualDistance = Callable[  # of images in [-1, 1]
    [Float[Array, "b h w 3"], Float[Array, "b h w 3"]], Float[Array, " b"]
]


class Loss:
    """A loss whose random numbers are drawn for the whole batch first, so that dividing the batch changes nothing.

    Attributes:
        mean_over_rows: the mean of `compute` over equal parts of a batch is that of the batch, metrics included.
        has_teacher: in the model's place, `compute` is given the trained one and the one it was at the start.
    """

    mean_over_rows = False
    has_teacher = False

    def sample_randomness(self, batch: Any, key: Key[Array, ""]) -> Randomness:
        raise NotImplementedError

    def compute(self, model: Any, batch: Any, randomness: Randomness) -> LossAndMetrics:
        """The mean over the rows of the batch, and metrics."""
        raise NotImplementedError

    def __call__(self, model: Any, batch: Any, key: Key[Array, ""]) -> LossAndMetrics:
        return self.compute(model, batch, self.sample_randomness(batch, key))


def make_loss(config: TrainConfig) -> Loss:
    """The loss of `config.stage`, with LPIPS where it is part of it.

    Raises:
        UserError: impossible options, or the weights of LPIPS are missing.
    """
    if config.stage == "distill":
        return DistillationLoss(config)
    if config.stage != "vae" and not config.loss.perceptual_weight:
        return DiffusionLoss(config)
    distance = functools.partial(lpips.lpips, lpips.load(config.lpips_weights), stages=4)
    return VAELoss(config, distance) if config.stage == "vae" else DiffusionLoss(config, distance)


# denoise(x, t) -> prediction
Denoise = Callable[[Float[Array, "b f y x c"], Int32[Array, " b #f"]], Float[Array, "b f y x c"]]


class WarpedReference(NamedTuple):
    """What models with `appearance` see beside the poses; empty for others."""

    images: tuple[Array, ...] = ()  # warped reference and background in [-1, 1], and masks
    latents: tuple[Array, ...] = ()  # the same as the UNet sees them


class DiffusionLoss(Loss):
    """Stage 1 (single frames, each with its own timestep, no temporal layers) and stage 2 (clips, one timestep).

    Follows Hu et al. 2023, section 3.3; most options of `config.loss` are those of the PyTorch implementations.

    Args:
        perceptual: needed if `config.loss.perceptual_weight` is not 0.

    Raises:
        UserError: more frames than the temporal layers take, a size that the autoencoder cannot halve, a square that
            does not fit, a shift of the timesteps that is not positive, a share outside 0..1, no frame to see, or a
            model with `appearance` that does not predict x0.
    """

    mean_over_rows = True

    def __init__(self, config: TrainConfig, perceptual: PerceptualDistance | None = None):
        preset = preset_of(config)
        self.preset, self.options, self.distance = preset, config.loss, perceptual
        self.schedule, self.temporal = make_schedule(preset.schedule), config.stage != "stage1"
        self.dtype = jnp.dtype(config.compute_dtype)
        self.appearance = preset.model.unet.appearance != "none"
        self.downscale, self.last = preset.model.vae.downscale, preset.schedule.train_steps - 1
        self._check(config)

    def _check(self, config: TrainConfig) -> None:
        preset, options, longest = self.preset, self.options, self.preset.model.unet.motion_max_length
        width, height = preset.frames.width, preset.frames.height
        if self.temporal and config.data.frames > longest:
            raise UserError(f"--data.frames {config.data.frames}: this model's temporal layers take at most {longest}")
        if self.appearance and preset.schedule.prediction != "x0":
            raise UserError(f"--preset {preset.name}: copies from the warped reference: give --prediction x0")
        if options.timestep_shift <= 0:
            raise UserError(f"--loss.timestep-shift {options.timestep_shift}: must be positive; 1 draws evenly")
        if not 0 <= options.scheduled_sampling <= 1:
            raise UserError(f"--loss.scheduled-sampling {options.scheduled_sampling}: must be a share, 0 to 1")
        if options.perceptual_frames < 1:
            raise UserError(f"--loss.perceptual-frames {options.perceptual_frames}: must be at least 1")
        if width % self.downscale or height % self.downscale:
            raise UserError(f"--size {width} {height}: width and height must be multiples of {self.downscale}")

    def sample_randomness(self, batch: Batch, key: Key[Array, ""]) -> Randomness:
        options, (clips, frames, height, width, _) = self.options, batch.poses.shape
        latent = height // self.downscale, width // self.downscale, self.preset.model.vae.latent_channels
        keys = jax.random.split(key, 5)
        # Stratified over the batch: every step sees all noise levels.
        count = clips if self.temporal else clips * frames
        strata = (jax.random.permutation(keys[1], count) + jax.random.uniform(keys[4], (count,))) / count
        strata = options.timestep_shift * strata / (1 + (options.timestep_shift - 1) * strata)
        t = (strata * self.preset.schedule.train_steps).astype(jnp.int32)
        noise = sample_noise(keys[2], (clips, frames, *latent), options.noise_offset)
        if self.temporal and options.shared_noise:
            noise = jnp.broadcast_to(noise[:, :1], noise.shape)
        sampled = {
            "posterior": jax.random.normal(keys[0], (clips, 1 + frames, *latent)),
            "t": jnp.minimum(t, self.last).reshape(clips, -1),  # rounding could leave the schedule
            "noise": noise,
            "keep_condition": jax.random.bernoulli(keys[3], 1 - options.condition_dropout, (clips,)),
        }
        if options.perceptual_weight or options.pixels_weight:
            shuffled = jax.vmap(functools.partial(jax.random.permutation, x=frames))
            sampled["crop_keys"] = jax.random.split(jax.random.fold_in(key, 5), clips)
            sampled["decoded_frames"] = shuffled(jax.random.split(jax.random.fold_in(key, 7), clips))
        if options.scheduled_sampling:
            sampled["use_own_sample"] = jax.random.bernoulli(
                jax.random.fold_in(key, 6), options.scheduled_sampling, (clips, 1, 1, 1, 1)
            )
        return sampled

    def compute(self, model: AnimateAnyone, batch: Batch, randomness: Randomness) -> LossAndMetrics:
        options, t, (clips, frames) = self.options, randomness["t"], batch.poses.shape[:2]
        reference, x0, clip = self._encode(model, batch, randomness["posterior"])
        per_frame = jnp.broadcast_to(t, (clips, frames))
        warped = self._warped(model, batch) if self.appearance else WarpedReference()
        denoise = self._denoiser(model, batch, reference, clip, warped, randomness["keep_condition"])

        noise = randomness["noise"]
        if options.scheduled_sampling:
            noise = self._with_own_error(denoise, x0, noise, t, per_frame, randomness["use_own_sample"])
        x_t = jnp.asarray(self.schedule.add_noise(x0, noise, per_frame))
        prediction = denoise(x_t, t)
        total, metrics = self._denoising(prediction, x0, noise, per_frame, batch.masks, randomness)
        predicted_x0 = jnp.asarray(self.schedule.to_x0_epsilon(prediction.astype(jnp.float32), x_t, per_frame)[0])
        if self.temporal and options.flicker_weight:
            assert batch.frames is not None
            metrics["flicker"] = flicker(predicted_x0, batch.frames).mean()
            total += options.flicker_weight * metrics["flicker"]
        if options.perceptual_weight or options.pixels_weight:
            truth, decoded = self._decoded_crops(model, predicted_x0, batch, randomness, warped)
            if options.perceptual_weight:
                assert self.distance is not None
                metrics["lpips"] = self.distance(truth, decoded).mean()
                total += options.perceptual_weight * metrics["lpips"]
            if options.pixels_weight:
                metrics["l1"] = jnp.abs(truth - decoded).mean()
                total += options.pixels_weight * metrics["l1"]
        return total, metrics

    def _encode(
        self, model: AnimateAnyone, batch: Batch, noise: Float[Array, "b _ y x c"]
    ) -> tuple[Float[Array, "b y x c"], Float[Array, "b f y x c"], Array]:
        """Latents of reference and frames, and the reference's CLIP embedding or what CLIP makes it of."""
        # Separately, so that the frames can be divided over devices.
        reference_noise, noise = noise[:, :1], noise[:, 1:]
        if batch.moments is not None:
            assert batch.reference_moments is not None and batch.clip_embedding is not None
            reference = from_moments(model.vae, batch.reference_moments[:, None], reference_noise)
            return reference[:, 0], from_moments(model.vae, shard_frames(batch.moments), noise), batch.clip_embedding

        def encoded(images: Array, noise: Array) -> Array:
            return jax.lax.stop_gradient(encode(model.vae, to_signed(images).astype(self.dtype), noise))

        assert batch.reference is not None and batch.frames is not None and batch.clip_pixels is not None
        reference = encoded(batch.reference[:, None], reference_noise)
        return reference[:, 0], encoded(shard_frames(batch.frames), noise), batch.clip_pixels

    def _denoiser(
        self,
        model: AnimateAnyone,
        batch: Batch,
        reference: Float[Array, "b y x c"],
        clip: Array,
        warped: WarpedReference,
        keep: Bool[Array, " b"] | None = None,
    ) -> Denoise:
        """`model.denoise` with the batch's conditioning; of pairs (`models.guidance_pairs`), the first rows are without
        the character."""
        reference_pose, poses = (to_unit(images).astype(self.dtype) for images in (batch.reference_pose, batch.poses))
        conditioning = model.precompute_conditioning(
            reference.astype(self.dtype), clip.astype(self.dtype), reference_pose, keep
        )
        pose = model.pose_features(shard_frames(poses), *warped.latents)

        def denoise(x: Array, t: Array) -> Array:
            poses = pair(pose, pose) if is_paired(x, pose) else pose
            return model.denoise(x.astype(self.dtype), t.astype(jnp.float32), conditioning, poses, self.temporal)

        return denoise

    def _warped(self, model: AnimateAnyone, batch: Batch) -> WarpedReference:
        assert batch.warp is not None and batch.background is not None and batch.warp_masks is not None
        images = shard_frames(to_signed(batch.warp)), to_signed(batch.background)[:, None]
        masks = shard_frames(to_unit(batch.warp_masks))
        latents = (jax.lax.stop_gradient(latents_of(model.vae, x.astype(self.dtype))) for x in images)
        return WarpedReference((*images, masks), (*latents, masks.astype(self.dtype)))

    def _with_own_error(
        self, denoise: Denoise, x0: Array, noise: Array, t: Array, per_frame: Array, own: Array
    ) -> Array:
        """Scheduled sampling: `noise` such that x_t holds, where `own`, what the model makes of pure noise."""
        at_last = jnp.full_like(per_frame, self.last)
        x_last = jnp.asarray(self.schedule.add_noise(x0, noise, at_last))
        sample = denoise(x_last, jnp.full_like(t, self.last)).astype(jnp.float32)
        sample = jax.lax.stop_gradient(self.schedule.to_x0_epsilon(sample, x_last, at_last)[0])
        # Its error counts as noise: then x_t holds the sample in place of x0, and the target is still x0's.
        ratio = jnp.sqrt(self.schedule.snr(per_frame))[..., None, None, None]
        return noise + jnp.where(own, ratio * (sample - x0), 0)

    def _denoising(
        self,
        prediction: Array,
        x0: Array,
        noise: Array,
        per_frame: Array,
        masks: UInt8[Array, "b f h w"],
        randomness: Randomness,
    ) -> tuple[Array, Metrics]:
        """The weighted mean squared error, and the plain one by quarters of the noise levels."""
        options = self.options
        target = jnp.asarray(self.schedule.target(x0, noise, per_frame))
        # An own sample says no more about x0 than pure noise did, so it weighs as much.
        own = randomness["use_own_sample"][..., 0, 0, 0] if options.scheduled_sampling else None
        effective_t = per_frame if own is None else jnp.where(own, self.last, per_frame)
        weight = loss_weight(self.schedule, effective_t.reshape(-1), options.weighting, options.gamma)
        person = self._person_weight(masks) if options.person_weight else None
        error = weighted_mse(merge_frames(prediction), merge_frames(target), jnp.ones_like(weight), person)
        quarter = per_frame.reshape(-1) * 4 // self.preset.schedule.train_steps
        # NaN where no sample of the batch falls into that quarter of the noise levels.
        inside = quarter == jnp.arange(4)[:, None]
        by_quarter = sum_over_shards(jnp.sum(error * inside, 1)) / sum_over_shards(jnp.sum(inside, 1))
        by_noise = {f"mse_q{q}": by_quarter[q] for q in range(4)}
        return jnp.mean(weight * error), {"mse": error.mean(), **by_noise}

    def _person_weight(self, masks: UInt8[Array, "b f h w"]) -> Float[Array, "bf y x 1"]:
        clips, frames, height, width = masks.shape
        step = self.downscale
        masks = masks.astype(jnp.float32) / 255
        inside = masks.reshape(clips, frames, height // step, step, width // step, step).mean((3, 5))[..., None]
        return merge_frames(1 + self.options.person_weight * inside)

    def _decoded_crops(
        self,
        model: AnimateAnyone,
        predicted_x0: Array,
        batch: Batch,
        randomness: Randomness,
        warped: WarpedReference,
    ) -> tuple[Float[Array, "n s s 3"], Float[Array, "n s s 3"]]:
        """The same random squares of the true frames and of what the prediction decodes to."""
        chosen, size = randomness["decoded_frames"][:, : self.options.perceptual_frames], self.options.perceptual_crop

        def crop(x: Array, step: int) -> Array:
            """`step` is 1 for latents, and their size in pixels for pixels."""

            def crop_clip(x: Array, chosen: Array, key: Array) -> Array:
                return random_crop(x[chosen], size * step // self.downscale, step, key, "--loss.perceptual-crop")

            return merge_frames(jax.vmap(crop_clip)(x, chosen, randomness["crop_keys"]))

        assert batch.frames is not None
        truth = crop(to_signed(batch.frames), self.downscale)
        decoded = model.vae.to_images(crop(predicted_x0, 1).astype(self.dtype))
        if self.appearance:
            shape = batch.poses.shape[:2]
            parts = (jnp.broadcast_to(x, (*shape, *x.shape[2:])) for x in warped.images)
            decoded = model.appearance_blend(decoded, *(crop(x, self.downscale).astype(self.dtype) for x in parts))
        return truth, decoded.astype(jnp.float32)


class DistillationLoss(DiffusionLoss):
    """Distillation of guided sampling (Meng et al. 2023; Salimans & Ho 2022, in one round): an unguided step of the
    student is drawn to where several guided DDIM steps of the teacher lead from the same x_t.

    The student is trained at the timesteps that it samples at. The scale of guidance is fixed. Because every target is
    the teacher's, the student cannot agree with itself on an image that says nothing.

    Raises:
        UserError: as `DiffusionLoss`; options of `config.loss` that have no meaning here; or an impossible step.
    """

    has_teacher = True
    SHARED_OPTIONS = ("noise_offset", "shared_noise", "timestep_shift")  # of `config.loss`
    HUBER = 1e-3  # below such a difference the loss is quadratic, above linear

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        teacher, steps = starting_preset(config).sampling, config.distill.teacher_steps
        self.guidance = teacher.guidance if config.distill.guidance is None else config.distill.guidance
        self.rescale, self.length = teacher.guidance_rescale, (self.last + 1) // self.preset.sampling.steps
        usual = DiffusionLossConfig(condition_dropout=self.options.condition_dropout)
        for name, value in vars(self.options).items():
            if name not in self.SHARED_OPTIONS and value != getattr(usual, name):
                raise UserError(f"--loss.{name.replace('_', '-')} {value}: is for stages 1 and 2, not for distillation")
        if steps < 1 or self.length % steps:
            raise UserError(f"--distill.teacher-steps {steps}: must divide the {self.length} timesteps of a step")
        self.teacher_steps = steps

    def sample_randomness(self, batch: Batch, key: Key[Array, ""]) -> Randomness:
        randomness = super().sample_randomness(batch, key)
        ends = (randomness["t"] // self.length + 1) * self.length - 1
        return randomness | {"t": jnp.minimum(ends, self.last)}

    def compute(
        self, model: tuple[AnimateAnyone, AnimateAnyone], batch: Batch, randomness: Randomness
    ) -> LossAndMetrics:
        student, teacher = model
        t, noise, shape = randomness["t"], randomness["noise"], batch.poses.shape[:2]
        reference, x0, clip = self._encode(teacher, batch, randomness["posterior"])
        warped = self._warped(teacher, batch) if self.appearance else WarpedReference()
        inputs = batch, reference, clip, warped
        x_t = jnp.asarray(self.schedule.add_noise(x0, noise, jnp.broadcast_to(t, shape)))
        prediction = self._denoiser(student, *inputs)(x_t, t)
        made = self.schedule.to_x0_epsilon(prediction.astype(jnp.float32), x_t, jnp.broadcast_to(t, shape))[0]
        error = made - jax.lax.stop_gradient(self._target(self._denoiser(teacher, *inputs), x_t, t))
        loss = jnp.mean(jnp.sqrt(jnp.square(error) + self.HUBER**2) - self.HUBER)
        return loss, {"mse": jnp.mean(jnp.square(error))}

    def _target(self, denoise: Denoise, x_t: Array, t: Array) -> Array:
        """The x0 with which one DDIM step leads as far as the teacher's steps (Salimans & Ho 2022, appendix G)."""
        stride = self.length // self.teacher_steps

        def step(x: Array, number: Array) -> tuple[Array, None]:
            time = t - stride * number
            x0, noise = self._guided(denoise, x, time)
            signal, sigma = self._signal_and_noise(time - stride)
            return signal * x0 + sigma * noise, None

        end, _ = jax.lax.scan(step, x_t, jnp.arange(self.teacher_steps))
        signal, sigma = self._signal_and_noise(t)
        signal_at_end, sigma_at_end = self._signal_and_noise(t - self.length)
        ratio = sigma_at_end / sigma
        return (end - ratio * x_t) / (signal_at_end - ratio * signal)

    def _guided(self, denoise: Denoise, x: Array, t: Array) -> tuple[Array, Array]:
        """x0 and noise as the teacher's sampler has them."""
        if self.guidance > 1:
            halves = unpair(denoise(pair(x, x), pair(t, t)).astype(jnp.float32))
            prediction = apply_guidance(*halves, self.guidance, self.rescale)
        else:
            prediction = denoise(x, t).astype(jnp.float32)
        x0, noise = self.schedule.to_x0_epsilon(jnp.asarray(prediction), x, jnp.broadcast_to(t, x.shape[:2]))
        return jnp.asarray(x0), jnp.asarray(noise)

    def _signal_and_noise(self, t: Int32[Array, "b _"]) -> tuple[Array, Array]:
        """As the schedule's; before timestep 0 all signal."""
        alpha_bar = jnp.where(t < 0, 1.0, jnp.asarray(self.schedule.alphas_cumprod)[t])[..., None, None, None]
        return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def merge_frames(x: Float[Array, " b f *rest"]) -> Float[Array, " bf *rest"]:
    return x.reshape(-1, *x.shape[2:])


def encode(
    vae: AutoencoderKL, pictures: Float[Array, "b f h w 3"], noise: Float[Array, "b f y x c"]
) -> Float[Array, "b f y x c"]:
    """Scaled latents drawn from the posterior, as the PyTorch implementations train, in float32; images in [-1, 1]."""
    moments = jnp.concatenate(vae.encode(merge_frames(pictures)), -1)
    return from_moments(vae, moments.reshape(*noise.shape[:-1], -1), noise)


def from_moments(
    vae: AutoencoderKL, moments: Float[Array, "b f y x m"], noise: Float[Array, "b f y x c"]
) -> Float[Array, "b f y x c"]:
    """Scaled latents drawn from a posterior of that mean and log variance, in float32."""
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, -1)
    return (mean + jnp.exp(0.5 * log_variance) * noise) * vae.config.scaling_factor


def latents_of(vae: AutoencoderKL, pictures: Float[Array, "b f h w 3"]) -> Float[Array, "b f y x c"]:
    """Scaled latents, the mean of the posterior; images in [-1, 1]."""
    latents = vae.to_latents(merge_frames(pictures))
    return latents.reshape(*pictures.shape[:2], *latents.shape[1:])


class VAELoss(Loss):
    """Reconstruction of crops of the frames."""

    def __init__(self, config: TrainConfig, perceptual: PerceptualDistance):
        self.options, self.distance = config.vae_loss, perceptual
        self.dtype = jnp.dtype(config.compute_dtype)

    def sample_randomness(self, batch: Batch, key: Key[Array, ""]) -> Randomness:
        return {"keys": jax.random.split(key, (len(batch.poses), 2))}

    def compute(self, model: AnimateAnyone, batch: Batch, randomness: Randomness) -> LossAndMetrics:
        options, keys, frames = self.options, randomness["keys"], batch.frames
        assert frames is not None

        def crop(frames: Array, key: Key[Array, ""]) -> Array:
            return random_crop(frames, options.crop, model.vae.config.downscale, key)

        images = merge_frames(jax.vmap(crop)(to_signed(frames), keys[:, 0]))
        mean, log_variance = (x.astype(jnp.float32) for x in model.vae.encode(images.astype(self.dtype)))
        shape = (frames.shape[1], *mean.shape[1:])
        noise = merge_frames(jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1]))
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        result = model.vae.decode(latents.astype(self.dtype)).astype(jnp.float32)
        difference = result - images
        first = slice(0, options.perceptual_crops)
        parts: Metrics = {
            "l1": jnp.abs(difference).mean(),
            "mse": jnp.square(difference).mean(),
            "lpips": self.distance(images[first], result[first]).mean(),
            "kl": 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1).mean(),
        }
        total = parts["l1"] + options.mse_weight * parts["mse"]
        total = total + options.perceptual_weight * parts["lpips"] + options.kl_weight * parts["kl"]
        psnr = -10 * jnp.log10(parts["mse"] / 4)
        return total, {**parts, "psnr": psnr, "latent_std": mean.std()}


def random_crop(
    images: Float[Array, "b h w c"], size: int, step: int, key: Key[Array, ""], flag: str = "--vae-loss.crop"
) -> Float[Array, "b s s c"]:
    """One random square of every image, its corner on the VAE's grid.

    Raises:
        UserError: the square is not on the grid or larger than the images.
    """
    if size % step or not 0 < size <= min(images.shape[1:3]):
        raise UserError(f"{flag} {size}: must be a multiple of {step}, at most {min(images.shape[1:3])}")
    counts = [(side - size) // step + 1 for side in images.shape[1:3]]
    keys = jax.random.split(key)
    y, x = (jax.random.randint(k, images.shape[:1], 0, n) * step for k, n in zip(keys, counts, strict=True))

    def crop(image: Array, y: Array, x: Array) -> Array:
        return jax.lax.dynamic_slice(image, (y, x, 0), (size, size, image.shape[-1]))

    return jax.vmap(crop)(images, y, x)
