"""The device side of sampling: a model's parameters and its compiled functions.

One evaluation passes through five layers: a sampler calls `predict(x, t)` for the whole video (`diffusion.samplers`),
`diffusion.sampling_loop` calls `predict_windows(x, t, frames)` for a few windows, `Denoiser.sample` adds their poses,
`Denoiser.build_unet` caches deep features between steps, and `_run_unet` is the compiled `AnimateAnyone.denoise`.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt32

from animate_jax import kept
from animate_jax.config import AnimationConfig, Preset
from animate_jax.diffusion.noise import initial_noise
from animate_jax.diffusion.sampling_loop import Latents, num_function_evaluations, sample_windowed
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.images import Image, Images, to_signed, to_uint8, to_unit
from animate_jax.models.conditioning import Conditioning, register_for_export
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.shapes import Params
from animate_jax.models.sharding import BATCH_AXES
from animate_jax.parallel.mesh import AXES
from animate_jax.pose.warp import AnyWarpedImages, LazyWarpedImages
from animate_jax.progress import Progress
from animate_jax.sampling.deflicker import deflicker
from animate_jax.sampling.inputs import Poses
from animate_jax.video.clip_image import clip_pixels

DECODE_BATCH = 8  # frames decoded at once
# Windows whose pose and deep features stay on the device. In longer videos the former are computed again, and the
# latter are kept in host memory.
CACHED_WINDOWS = 4
UNETS = "the denoising UNet", "the denoising UNet with kept features"  # programs whose compiling is told
LARGE = 200_000_000  # parameters from which compiling takes minutes
# Networks that work once per video, before denoising.
CONDITIONING_ONLY = ("reference_unet.", "reference_pose_guider.", "image_encoder.", "vae.encoder.", "vae.quant_conv.")
MAX_RESIDENT = 0.25  # of a device's memory: if all weights take more, those networks stay in host memory
# The parameters that a program computes with begin with these.
ENCODER, DECODER = ("vae.encoder.", "vae.quant_conv."), ("vae.decoder.", "vae.post_quant_conv.")
BLEND, UNET = (*DECODER, "appearance_blend."), ("denoising_unet.",)
CONDITIONING = "reference_unet.", "denoising_unet.", "image_encoder.", "reference_pose_guider."
POSE = "pose_guider.", "appearance_guider."
ANCESTRAL_NOISE = 1  # folded into a video's key for the noise that "euler_ancestral" and "lcm" add

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

        def compiled(name: str, function: Callable) -> Callable:
            # Parameters are arguments, so that they are no constants of the program and may change.
            def run(params, *inputs, int8=False):
                @functools.cache
                def say_compiling():
                    large = sum(math.prod(leaf.shape) for leaf in params.values()) > LARGE
                    duration = "minutes" if large else "about 20 s"
                    log.info("compiling %s: %s, once for a size and number of frames", name, duration)

                if mesh:
                    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                        return trace(say_compiling, int8, params, *inputs)
                if not self._on_first_device():
                    return trace(say_compiling, int8, params, *inputs)
                register_for_export()
                whole = f"{name} of {preset.model}, int8: {int8}"
                return kept.call(functools.partial(trace, say_compiling, int8), whole, params, *inputs)

            def trace(say_compiling, int8, params, *inputs):
                if name in UNETS:  # not if an earlier process has traced it: then the compiled program is cached, too
                    say_compiling()
                from animate_jax.models.kernels.int8 import quantize_int8  # they load Flax
                from animate_jax.models.params import abstract_model, merge_model

                graphdef, shapes = abstract_model(preset.model)
                model = merge_model(graphdef, shapes | params)  # what it does not use remains a shape
                if int8:
                    model.denoising_unet = quantize_int8(model.denoising_unet)
                return function(model, *inputs)

            return jax.jit(run, static_argnames="int8")

        self._encode = compiled("encode", lambda model, images: model.vae.to_latents(images))
        self._decode = compiled("decode", lambda model, latents: to_uint8(model.vae.to_images(latents)))
        self._conditioning = compiled("conditioning", lambda model, *inputs: model.precompute_conditioning(*inputs))
        self._blend = compiled(
            "blend",
            lambda model, latents, *warped: to_uint8(model.appearance_blend(model.vae.to_images(latents), *warped)),
        )
        self._pose_features = compiled("pose features", lambda model, *inputs: model.pose_features(*inputs))
        self._run_unet = compiled(UNETS[0], lambda model, *inputs: model.denoise(*inputs))
        self._run_unet_cached = compiled(UNETS[1], lambda model, *inputs: model.denoise_cached(*inputs))

    def precompute_conditioning(self, image: Image, reference_pose: Image, options: AnimationConfig) -> Conditioning:
        """The UNet's conditioning on the character, once per video: keys, values and the CLIP residual of each block.

        Args:
            image: uint8 RGB [height, width, 3] of the result's size, from `inputs.crop_reference`.
            reference_pose: its pose image, of the same size; only models with a `reference_pose_guider`, such as the
                bundled one, use it.
        """
        clip = clip_pixels(image, self.preset.model.image_encoder.image_size, options.clip_resize)
        inputs = cast_floating((clip[None], to_unit(reference_pose[None])), self.dtype)
        return self._conditioning(self.parts(*CONDITIONING), self._latents(image[None]), *inputs)

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
        backgrounds = [self._latents(images.background[None]) if images else None for images in references]
        scale, frames = self.preset.model.vae.downscale, len(videos[0])
        shape = options.height // scale, options.width // scale, self.preset.model.unet.in_channels
        keys, later_keys = _video_keys(np.uint32(seed), len(videos))
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
        with Progress("denoising", total, bar=progress) as bar:
            return sample_windowed(predict, noise, self.schedule, options, bar.begin, later_keys, windows_per_call)

    def pose_features(
        self,
        videos: list[Poses],
        warped: Sequence[AnyWarpedImages | None],
        backgrounds: Sequence[Array | None],
        frames: np.ndarray,
    ) -> Array:
        """What the denoising UNet sees of the motion in some frames of each video, frame by frame: the device holds
        the pictures of one. `backgrounds` are the encoded ones of `warped`."""
        rows = []
        for video, reference, background in zip(videos, warped, backgrounds, strict=True):
            row = [to_unit(video[frames])[:, None]]
            if reference:
                images, masks = reference[frames]
                latents = [self._latents(image[None]) for image in images]
                row += [latents, [background] * len(frames), to_unit(masks)[:, None]]
            rows.append(zip(*row, strict=True))
        by_frame = [
            self._pose_features(
                self.parts(*POSE),
                *(cast_floating(jnp.stack(part), self.dtype) for part in zip(*frame, strict=True)),
            )
            for frame in zip(*rows, strict=True)
        ]
        return jnp.concatenate(by_frame, 1)

    def build_unet(self, conditioning: Conditioning, options: AnimationConfig) -> Callable[..., Array]:
        """The denoising UNet as `run_unet(x, t, windows, pose)`, with the approximations in `options`."""
        params = self.parts(*UNET)
        int8 = {"int8": True} if options.dtype == "int8" else {}
        dtype = self.dtype if int8 or self.dtype != jnp.float32 else jnp.dtype(options.dtype)
        if dtype != self.dtype:
            params = {path: leaf.astype(dtype) for path, leaf in params.items()}
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
        return self._latents(images)[None]

    def _latents(self, images: Images) -> Float[Array, "f h w c"]:
        params, pixels = self.parts(*ENCODER), cast_floating(to_signed(images), self.dtype)
        some = self._some_on_device()
        if some is not None and some.committed and all(isinstance(leaf, np.ndarray) for leaf in params.values()):
            pixels = jax.device_put(pixels, some.sharding)  # weights in host memory do not say which device is meant
        return self._encode(params, pixels)

    def decode(
        self,
        latents: Float[Array | np.ndarray, "1 f h w c"],
        warped: AnyWarpedImages | None = None,
        levels: float = 0.0,
    ) -> Images:
        """Latents of one video -> uint8 frames [f, height, width, 3]; `warped` as in `decode_chunks`, `levels` as in
        `deflicker`."""
        return np.concatenate(list(deflicker(self.decode_chunks(np.asarray(latents[0]), warped), levels)))

    def decode_chunks(
        self, latents: Float[np.ndarray, "f h w c"], warped: AnyWarpedImages | None = None
    ) -> Iterator[Images]:
        """Latents -> uint8 frames, a few at a time; with `appearance`, blended with the warped reference of the same
        frames."""
        frames_per_call = self._frames_per_call
        for start in range(0, len(latents), frames_per_call):
            chunk = latents[start : start + frames_per_call]
            inputs = [chunk]
            if warped and self.copies_reference:
                images, masks = warped[start : start + frames_per_call]
                background = np.broadcast_to(warped.background, images.shape)
                inputs += [to_signed(images), to_signed(background), to_unit(masks)]
            padded = [np.concatenate([part, np.repeat(part[-1:], frames_per_call - len(part), 0)]) for part in inputs]
            padded = self.shard_batch(cast_floating(padded, self.dtype), AXES)
            decode, parts = (self._decode, DECODER) if len(inputs) == 1 else (self._blend, BLEND)
            yield np.asarray(decode(self.parts(*parts), *padded))[: len(chunk)]

    @property
    def _frames_per_call(self) -> int:
        """Frames decoded at once."""
        return math.lcm(DECODE_BATCH, self.mesh.size if self.mesh else 1)

    def compile(self, options: AnimationConfig, frames: int) -> None:
        """Compiles, without running, what one character's video of so many frames will use; may run in a thread.

        For one device, the default dtype, and without features that are used again.
        """
        if self.mesh or options.dtype != "float32" or options.deepcache_interval > 1:
            return
        some = self._some_on_device()
        place = some.sharding if some is not None and some.committed else None  # of everything computed from them

        def shape(*sizes: int, dtype: DTypeLike = self.dtype) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype)

        def compiled(program: Any, parts: tuple[str, ...], *inputs: Any) -> Any:
            lowered = program.lower(self.parts(*parts), *inputs)
            lowered.compile()
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), lowered.out_info)

        height, width, side = options.height, options.width, self.preset.model.image_encoder.image_size
        window, batch = min(options.window, frames), self._frames_per_call
        image, many = shape(1, height, width, 3), shape(batch, height, width, 3)
        latents = compiled(self._encode, ENCODER, image)
        conditioning = compiled(self._conditioning, CONDITIONING, latents, shape(1, side, side, 3), image)
        pose = [shape(1, 1, height, width, 3)]
        if self.copies_reference:
            latent = jax.ShapeDtypeStruct((1, *latents.shape), latents.dtype, sharding=place)
            pose += [latent, latent, shape(1, 1, height, width, 2)]
        feature = compiled(self._pose_features, POSE, *pose)
        shown = jax.ShapeDtypeStruct((1, window, *feature.shape[2:]), feature.dtype, sharding=place)
        rows = 2 if options.guidance > 1 else 1
        x, t = shape(rows, window, *latents.shape[1:]), shape(rows, 1, dtype=jnp.float32)
        compiled(self._run_unet, UNET, x, t, conditioning, shown)
        decoded = shape(batch, *latents.shape[1:])
        if self.copies_reference:
            compiled(self._blend, BLEND, decoded, many, many, shape(batch, height, width, 2))
        else:
            compiled(self._decode, DECODER, decoded)

    def _on_first_device(self) -> bool:
        some = self._some_on_device()
        return some is not None and some.devices() == {jax.devices()[0]}

    def _some_on_device(self) -> jax.Array | None:
        return next((leaf for leaf in self.params.values() if isinstance(leaf, jax.Array)), None)

    def parts(self, *names: str) -> Params:
        """The parameters of these parts of the model: a program is given no others."""
        return {path: leaf for path, leaf in self.params.items() if path.startswith(names)}

    def shard_batch(self, tree: Any, axes: tuple[str, ...] = BATCH_AXES) -> Any:
        """Shards the first axis of arrays over the devices."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(axes)))


@functools.partial(jax.jit, static_argnums=1)
def _video_keys(seed: UInt32[Array, ""], videos: int) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """The keys of the first noise and of the noise added later; a video's do not depend on the batch."""
    keys = jnp.repeat(jax.random.key(seed)[None], videos)
    return keys, jax.vmap(jax.random.fold_in, (0, None))(keys, ANCESTRAL_NOISE)


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
