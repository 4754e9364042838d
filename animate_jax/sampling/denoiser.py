"""The device side of sampling: a model's parameters and its compiled functions.

One evaluation passes through five layers: a sampler calls `predict(x, t)` for the whole video (`diffusion.samplers`),
`diffusion.sampling_loop` calls `predict_windows(x, t, frames)` for a few windows, `Denoiser.sample` adds their poses,
`Denoiser.build_unet` caches deep features between steps, and `_run_unet` is the compiled `AnimateAnyone.denoise`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from animate_jax.config import AnimationConfig, Preset
from animate_jax.diffusion.noise import initial_noise
from animate_jax.diffusion.sampling_loop import Latents, num_function_evaluations, sample_windowed
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.images import Image, Images, to_signed, to_uint8, to_unit
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.kernels.int8 import quantize_int8
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.models.sharding import BATCH_AXES
from animate_jax.models.unet import Conditioning
from animate_jax.parallel.mesh import AXES
from animate_jax.pose.warp import AnyWarpedImages, LazyWarpedImages
from animate_jax.progress import Progress
from animate_jax.sampling.inputs import Poses
from animate_jax.video.clip_image import clip_pixels

DECODE_BATCH = 8  # frames decoded at once
# Windows whose pose and deep features stay on the device. In longer videos the former are computed again, and the
# latter are kept in host memory.
CACHED_WINDOWS = 4
LARGE = 200_000_000  # parameters from which compiling takes minutes
# Networks that work once per video, before denoising.
CONDITIONING_ONLY = ("reference_unet.", "reference_pose_guider.", "image_encoder.", "vae.encoder.", "vae.quant_conv.")
MAX_RESIDENT = 0.25  # of a device's memory: if all weights take more, those networks stay in host memory
ANCESTRAL_NOISE = 1  # folded into a video's key for the noise that "euler_ancestral" adds

# callback(done, preview), after every evaluation: the share of the work done, and a function that decodes the current
# prediction of a frame. An exception ends the work.
StepCallback = Callable[[float, Callable[[], Image]], None]

log = logging.getLogger(__name__)


class Denoiser:
    """A model on its devices: encodes, conditions, denoises and decodes.

    Attributes:
        preset: all numerical choices; `preset.animation` has the defaults of sampling.
        params: the model's parameters, see `animate_jax.models.params`; if in bfloat16, so is all computation. Those in
            host memory (NumPy arrays) are on the device only while a function that uses them runs, see `held_on_host`.
        mesh: devices that share the work (`parallel.mesh`): windows over `data` and `fsdp`, the frames of each over
            `frames`, weights over `fsdp`.
    """

    def __init__(self, params: Params, preset: Preset, mesh: Mesh | None = None):
        self.params, self.preset, self.mesh = params, preset, mesh
        self.dtype = next(iter(params.values())).dtype
        # Windows computed at once, one for each group of devices.
        self.num_shards = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
        self.schedule = make_schedule(preset.schedule)
        self.copies_reference = preset.model.unet.appearance != "none"
        graphdef, _ = abstract_model(preset.model)

        def compiled(function: Callable, name: str = "") -> Callable:
            # Parameters are arguments, so that they are no constants of the program and may change.
            def run(params, *inputs, int8=False):
                if name:  # this is run while it is traced, once per shape of inputs
                    large = sum(math.prod(leaf.shape) for leaf in params.values()) > LARGE
                    log.info("compiling %s: %s the first time, then kept", name, "minutes" if large else "about 20 s")
                model = merge_model(graphdef, params)
                if int8:
                    model.denoising_unet = quantize_int8(model.denoising_unet)
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext():
                    return function(model, *inputs)

            return jax.jit(run, static_argnames="int8")

        self._encode = compiled(lambda model, images: model.vae.to_latents(images))
        self._decode = compiled(lambda model, latents: to_uint8(model.vae.to_images(latents)))
        self._conditioning = compiled(lambda model, *inputs: model.precompute_conditioning(*inputs))
        self._blend = compiled(
            lambda model, latents, *warped: to_uint8(model.appearance_blend(model.vae.to_images(latents), *warped))
        )
        self._pose_features = compiled(lambda model, *inputs: model.pose_features(*inputs))
        self._run_unet = compiled(lambda model, *inputs: model.denoise(*inputs), "the denoising UNet")
        self._run_unet_cached = compiled(lambda model, *inputs: model.denoise_cached(*inputs), "the denoising UNet")

    def precompute_conditioning(self, image: Image, reference_pose: Image, options: AnimationConfig) -> Conditioning:
        """The UNet's conditioning on the character, once per video: keys, values and the CLIP residual of each block.

        Args:
            image: uint8 RGB [height, width, 3] of the result's size, from `inputs.crop_reference`.
            reference_pose: its pose image, of the same size; only models with a `reference_pose_guider`, such as the
                bundled one, use it.
        """
        clip = clip_pixels(image, self.preset.model.image_encoder.image_size, options.clip_resize)
        inputs = self.encode(image[None])[:, 0], jnp.asarray(clip)[None], to_unit(reference_pose[None])
        return self._conditioning(self.params, *cast_floating(inputs, self.dtype))

    def sample(
        self,
        conditioning: Conditioning,
        poses: Poses | list[Poses],
        options: AnimationConfig,
        seed: int = 0,
        progress: bool = True,
        callback: StepCallback | None = None,
        warped: AnyWarpedImages | list[LazyWarpedImages | None] | None = None,
    ) -> Latents:
        """Denoises the latents of whole videos, window by window; they lie in host memory.

        Args:
            conditioning: from `precompute_conditioning`; of several characters, concatenated along the first axis.
            poses: uint8 images [frames, height, width, 3] or `LazyPoseImages`; of several characters a list, one for
                each row of `conditioning`, all of one length.
            seed: the noise depends only on it and on a frame's index.
            warped: from `inputs.warp_reference`, one for each of `poses`; for models with `appearance`.

        Returns:
            float32 [rows, frames, height / d, width / d, channels] in the scale that `decode` takes; d is
            `VAEConfig.downscale`.
        """
        videos = poses if isinstance(poses, list) else [poses]
        references = warped if isinstance(warped, list) else [warped] * len(videos)
        if not self.copies_reference:
            references = [None] * len(videos)
        backgrounds = [reference and self.encode(reference.background[None])[0] for reference in references]
        scale, frames = self.preset.model.vae.downscale, len(videos[0])
        shape = options.height // scale, options.width // scale, self.preset.model.unet.in_channels
        key = jax.random.key(seed)
        keys = jnp.repeat(key[None], len(videos))  # a video's noise does not depend on the batch
        noise = initial_noise(keys, (len(videos), frames, *shape), options.shared_noise)
        windows_per_call = self.num_shards // math.gcd(self.num_shards, len(videos))
        if self.mesh:
            conditioning = self.shard_batch(jax.tree.map(lambda x: jnp.repeat(x, windows_per_call, 0), conditioning))

        @functools.lru_cache(CACHED_WINDOWS)
        def pose_features(window: tuple[int, ...]) -> Array:
            return self.pose_features(videos, references, backgrounds, np.array(window))

        def predict(x: Latents, t: np.ndarray, window: np.ndarray) -> Array:
            pose, *more = [pose_features(tuple(frames)) for frames in window.tolist()]
            if more:
                pose = jnp.stack([pose, *more], 1).reshape(-1, *pose.shape[1:])  # [videos * windows, frames, h, w, c]
            if is_paired(x, pose) and len(pose) > 1:  # a single row is broadcast
                pose = pair(pose, pose)
            prediction = run_unet(*self.shard_batch((x, t)), window, self.shard_batch(pose))
            if callback:
                shown = prediction[-1:, :1], x[-1:, :1], t[-1:].astype(int)
                reference = references[-1] and references[-1].select(window[-1, :1])
                callback(next(done) / total, lambda: self.decode(self.schedule.to_x0_epsilon(*shown)[0], reference)[0])
            return prediction

        run_unet = self.build_unet(conditioning, options)
        total, done = num_function_evaluations(frames, options, windows_per_call), itertools.count(1)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, ANCESTRAL_NOISE)
        with Progress("denoising", total, bar=progress) as bar:
            return sample_windowed(predict, noise, self.schedule, options, bar.begin, keys, windows_per_call)

    def pose_features(
        self,
        videos: list[Poses],
        warped: list[LazyWarpedImages | None],
        backgrounds: list[Array | None],
        frames: np.ndarray,
    ) -> Array:
        """What the denoising UNet sees of the motion in some frames of each video, frame by frame: the device holds
        the pictures of one. `backgrounds` are the encoded ones of `warped`."""
        rows = []
        for video, reference, background in zip(videos, warped, backgrounds, strict=True):
            row = [to_unit(video[frames])[:, None]]
            if reference:
                images, masks = reference[frames]
                latents = [self.encode(image[None])[0] for image in images]
                row += [latents, [background] * len(frames), to_unit(masks)[:, None]]
            rows.append(zip(*row, strict=True))
        by_frame = [
            self._pose_features(
                self.params, *(cast_floating(jnp.stack(part), self.dtype) for part in zip(*frame, strict=True))
            )
            for frame in zip(*rows, strict=True)
        ]
        return jnp.concatenate(by_frame, 1)

    def build_unet(self, conditioning: Conditioning, options: AnimationConfig) -> Callable[..., Array]:
        """The denoising UNet as `run_unet(x, t, windows, pose)`, with the approximations in `options`."""
        params = self.params
        int8 = {"int8": True} if options.dtype == "int8" else {}
        dtype = self.dtype if int8 or self.dtype != jnp.float32 else jnp.dtype(options.dtype)
        if dtype != self.dtype:
            params = {
                path: leaf.astype(dtype) if path.startswith("denoising_unet") else leaf for path, leaf in params.items()
            }
        conditioning = cast_floating(conditioning, dtype)
        # Window -> its deep features, and how often they were used.
        cache: dict[tuple[int, ...], tuple[Any, int]] = {}
        on_device: set[tuple[int, ...]] = set()  # windows whose features stay there

        def run_unet(x: Latents | Array, t: np.ndarray | Array, window: np.ndarray, pose: Array) -> Array:
            x, pose = cast_floating((x, pose), dtype)
            if options.deepcache_interval == 1:
                return self._run_unet(params, x, t, conditioning, pose, **int8).astype(jnp.float32)
            key = tuple(window.ravel().tolist())
            deep_features, used = cache.pop(key, (None, options.deepcache_interval))
            if used < options.deepcache_interval:
                if is_paired(deep_features, x):  # guidance has ended since
                    deep_features = unpair(deep_features)[1]
                features = self.shard_batch(jnp.asarray(deep_features))
                prediction, _ = self._run_unet_cached(params, x, t, conditioning, pose, features, **int8)
            else:
                used = 0
                prediction, deep_features = self._run_unet_cached(params, x, t, conditioning, pose, **int8)
                if key in on_device or len(on_device) < CACHED_WINDOWS:
                    on_device.add(key)
                else:
                    deep_features = np.array(deep_features)  # a copy, also on a CPU
            if used + 1 < options.deepcache_interval:
                cache[key] = deep_features, used + 1
            return prediction.astype(jnp.float32)

        return run_unet

    def encode(self, images: Images) -> Float[Array, "1 f h w c"]:
        """uint8 frames [f, height, width, 3] -> the autoencoder's scaled latents, `vae.downscale` pixels a position."""
        return self._encode(self.params, cast_floating(to_signed(images), self.dtype))[None]

    def decode(self, latents: Float[Array | np.ndarray, "1 f h w c"], warped: AnyWarpedImages | None = None) -> Images:
        """Latents of one video -> uint8 frames [f, height, width, 3]; `warped` as in `decode_chunks`."""
        return np.concatenate(list(self.decode_chunks(np.asarray(latents[0]), warped)))

    def decode_chunks(
        self, latents: Float[np.ndarray, "f h w c"], warped: AnyWarpedImages | None = None
    ) -> Iterator[Images]:
        """Latents -> uint8 frames, a few at a time; with `appearance`, blended with the warped reference of the same
        frames."""
        frames_per_call = math.lcm(DECODE_BATCH, self.mesh.size if self.mesh else 1)
        for start in range(0, len(latents), frames_per_call):
            chunk = latents[start : start + frames_per_call]
            inputs = [chunk]
            if warped and self.copies_reference:
                images, masks = warped[start : start + frames_per_call]
                background = np.broadcast_to(warped.background, images.shape)
                inputs += [to_signed(images), to_signed(background), to_unit(masks)]
            padded = [np.concatenate([part, np.repeat(part[-1:], frames_per_call - len(part), 0)]) for part in inputs]
            padded = self.shard_batch(cast_floating(padded, self.dtype), AXES)
            yield np.asarray((self._decode if len(inputs) == 1 else self._blend)(self.params, *padded))[: len(chunk)]

    def shard_batch(self, tree: Any, axes: tuple[str, ...] = BATCH_AXES) -> Any:
        """Shards the first axis of arrays over the devices."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(axes)))


def cast_floating(tree: Any, dtype: DTypeLike) -> Any:
    """Casts floating-point arrays to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def held_on_host(shapes: Params, dtype: DTypeLike, memory: int | float | None) -> set[str]:
    """The parameters that leave a device of so many bytes of memory (None: unknown) to the denoising UNet, the decoder
    and the activations. Sending them takes a fraction of a second per video, so where all fit easily all stay."""
    weights = sum(leaf.size for leaf in shapes.values()) * jnp.dtype(dtype).itemsize
    if memory is None or weights <= MAX_RESIDENT * memory:
        return set()
    return {path for path in shapes if path.startswith(CONDITIONING_ONLY)}


def device_memory() -> int | None:
    """Bytes that the first device has for this process; None of a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
