"""The device side of sampling: a model's parameters and its compiled functions.

One evaluation passes through five layers, each with its own name: a sampler asks `predict(x, t)` of the whole video
(`diffusion.samplers`), `diffusion.windowed` asks `predict_windows(x, t, frames)` of a few windows, `Denoiser.sample`
gives these their poses, `Denoiser.build_unet` keeps deep features between steps, and `_run_unet` is the compiled
`AnimateAnyone.denoise`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from tqdm import tqdm

from animate_jax.config import AnimationConfig, Preset
from animate_jax.diffusion.noise import initial_noise
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.diffusion.windowed import Latents, num_function_evaluations, sample_windowed
from animate_jax.images import Image, Images, to_signed, to_uint8, to_unit
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.kernels.int8 import quantize_int8
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.models.sharding import BATCH_AXES
from animate_jax.models.unet import Conditioning
from animate_jax.parallel.mesh import AXES
from animate_jax.pose.warp import LazyWarpedImages
from animate_jax.sampling.inputs import Poses
from animate_jax.video.clip_image import clip_pixels

DECODE_BATCH = 8  # frames decoded at once
# Pose and deep features of so many windows stay on the device. Of longer videos the former are made when needed, the
# latter wait in host memory.
CACHED_WINDOWS = 4
ANCESTRAL_NOISE = 1  # folded into a video's key for the noise that "euler_ancestral" adds

# callback(done, preview), after every evaluation: the share of the work done, and a function that decodes what the
# model makes of a frame so far. What it raises ends the work.
StepCallback = Callable[[float, Callable[[], Image]], None]


class Denoiser:
    """A model on its devices: encodes, conditions, denoises and decodes.

    Attributes:
        preset: every numerical choice; `preset.animation` holds the defaults of sampling.
        params: the model's parameters, see `animate_jax.models.params`; in bfloat16 everything is computed in it.
        mesh: devices that share the work (`parallel.mesh`): windows over `data` and `fsdp`, the frames of each over
            `frames`, weights over `fsdp`.
    """

    def __init__(self, params: Params, preset: Preset, mesh: Mesh | None = None):
        self.params, self.preset, self.mesh = params, preset, mesh
        self.dtype = next(iter(params.values())).dtype
        self.num_shards = (
            mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
        )  # windows, one for each group of devices
        self.schedule = make_schedule(preset.schedule)
        self.copies = preset.model.unet.appearance != "none"  # sees the warped reference
        graphdef, _ = abstract_model(preset.model)

        def compiled(function: Callable) -> Callable:
            # Parameters are arguments: constants would be compiled in, and other weights compile nothing anew.
            def run(params, *inputs, int8=False):
                model = merge_model(graphdef, params)
                if int8:
                    model.denoising_unet = quantize_int8(model.denoising_unet)
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext():
                    return function(model, *inputs)

            return jax.jit(run, static_argnames="int8")

        self._encode = compiled(lambda model, pictures: model.vae.to_latents(pictures))
        self._decode = compiled(lambda model, latents: to_uint8(model.vae.to_images(latents)))
        self._conditioning = compiled(lambda model, *inputs: model.precompute_conditioning(*inputs))
        self._blend = compiled(
            lambda model, latents, *warped: to_uint8(model.appearance_blend(model.vae.to_images(latents), *warped))
        )
        self._pose_features = compiled(lambda model, *inputs: model.pose_features(*inputs))
        self._run_unet = compiled(lambda model, *inputs: model.denoise(*inputs))
        self._run_unet_cached = compiled(lambda model, *inputs: model.denoise_cached(*inputs))

    def precompute_conditioning(self, picture: Image, reference_pose: Image, options: AnimationConfig) -> Conditioning:
        """What the model keeps of the character, once per video: keys, values and CLIP's share per block.

        Args:
            picture: uint8 RGB [height, width, 3] of the result's size, from `inputs.crop_reference`.
            reference_pose: the drawn skeleton of the picture's person, of the same size; read by models that show it to
                ReferenceNet, as the bundled one.
        """
        clip = clip_pixels(picture, self.preset.model.image_encoder.image_size, options.clip_resize)
        inputs = self.encode(picture[None])[:, 0], jnp.asarray(clip)[None], to_unit(reference_pose[None])
        return self._conditioning(self.params, *cast_floating(inputs, self.dtype))

    def sample(
        self,
        conditioning: Conditioning,
        poses: Poses | list[Poses],
        options: AnimationConfig,
        seed: int = 0,
        progress: bool = True,
        callback: StepCallback | None = None,
        warped: LazyWarpedImages | list[LazyWarpedImages | None] | None = None,
    ) -> Latents:
        """Denoises the latents of whole videos, window by window; they lie in host memory.

        Args:
            conditioning: from `precompute_conditioning`; of several characters, joined along the first axis.
            poses: uint8 pictures [frames, height, width, 3] or `LazyPoseImages`; of several characters a list, one for
                each row of `conditioning`, all of one length.
            seed: noise depends on it and on a frame's number alone.
            warped: from `inputs.warp_reference`, one for each of `poses`; only models with `appearance` use it.

        Returns:
            float32 [rows, frames, height / d, width / d, channels] in the scale that `decode` takes; d is
            `VAEConfig.downscale`.
        """
        videos = poses if isinstance(poses, list) else [poses]
        references = warped if isinstance(warped, list) else [warped] * len(videos)
        if not self.copies:
            references = [None] * len(videos)
        behind = [reference and self.encode(reference.background[None])[0] for reference in references]
        scale, frames = self.preset.model.vae.downscale, len(videos[0])
        shape = options.height // scale, options.width // scale, self.preset.model.unet.in_channels
        key = jax.random.key(seed)
        keys = jnp.repeat(key[None], len(videos))  # a video's noise does not depend on the batch
        noise = initial_noise(keys, (len(videos), frames, *shape), options.shared_noise)
        together = self.num_shards // math.gcd(self.num_shards, len(videos))
        if self.mesh:
            conditioning = self.shard_batch(jax.tree.map(lambda each: jnp.repeat(each, together, 0), conditioning))

        @functools.lru_cache(CACHED_WINDOWS)
        def features(window: tuple[int, ...]) -> Array:
            which, rows = np.array(window), []
            for video, reference, background in zip(videos, references, behind, strict=True):
                row = [to_unit(video[which])[:, None]]
                if reference:
                    pictures, masks = reference[which]
                    latents = [self.encode(picture[None])[0] for picture in pictures]
                    row += [latents, [background] * len(which), to_unit(masks)[:, None]]
                rows.append(zip(*row, strict=True))
            guided = [
                self._pose_features(
                    self.params, *(cast_floating(jnp.stack(part), self.dtype) for part in zip(*frame, strict=True))
                )
                for frame in zip(*rows, strict=True)
            ]
            return jnp.concatenate(guided, 1)

        def predict(x: Latents, t: np.ndarray, window: np.ndarray) -> Array:
            pose, *more = [features(tuple(frames)) for frames in window.tolist()]
            if more:
                pose = jnp.stack([pose, *more], 1).reshape(-1, *pose.shape[1:])  # [videos * windows, frames, h, w, c]
            if is_paired(x, pose) and len(pose) > 1:  # a single row serves both halves of guidance as it is
                pose = pair(pose, pose)
            prediction = run_unet(*self.shard_batch((x, t)), window, self.shard_batch(pose))
            if callback:
                shown = prediction[-1:, :1], x[-1:, :1], t[-1:].astype(int)
                reference = references[-1] and references[-1].select(window[-1, :1])
                callback(next(done) / total, lambda: self.decode(self.schedule.to_x0_epsilon(*shown)[0], reference)[0])
            return prediction

        run_unet = self.build_unet(conditioning, options)
        total, done = num_function_evaluations(frames, self.schedule, options, together), itertools.count(1)
        with tqdm(total=total, desc="denoising", unit="step", dynamic_ncols=True, disable=not progress) as bar:
            added = jax.vmap(jax.random.fold_in, (0, None))(keys, ANCESTRAL_NOISE)
            return sample_windowed(predict, noise, self.schedule, options, bar.update, added, together)

    def build_unet(self, conditioning: Conditioning, options: AnimationConfig) -> Callable[..., Array]:
        """The denoising UNet as `run_unet(x, t, windows, pose)`, with the approximations that `options` asks for."""
        params = self.params
        int8 = {"int8": True} if options.dtype == "int8" else {}
        dtype = self.dtype if int8 or self.dtype != jnp.float32 else jnp.dtype(options.dtype)
        if dtype != self.dtype:
            params = {
                path: leaf.astype(dtype) if path.startswith("denoising_unet") else leaf for path, leaf in params.items()
            }
        conditioning = cast_floating(conditioning, dtype)
        # By window: deep features, and how often they were used; and the windows whose features stay on the device.
        deep: dict[tuple[int, ...], tuple[Array | np.ndarray | None, int]] = {}
        near: set[tuple[int, ...]] = set()

        def run_unet(x: Latents | Array, t: np.ndarray | Array, window: np.ndarray, pose: Array) -> Array:
            x, pose = cast_floating((x, pose), dtype)
            if options.deepcache_interval == 1:
                return self._run_unet(params, x, t, conditioning, pose, **int8).astype(jnp.float32)
            key = tuple(window.ravel().tolist())
            kept, used = deep.pop(key, (None, options.deepcache_interval))
            if (
                used < options.deepcache_interval
            ):  # of both halves, the conditional one comes last, where guidance has ended
                shared = self.shard_batch(jnp.asarray(unpair(kept)[1] if is_paired(kept, x) else kept))
                prediction, _ = self._run_unet_cached(params, x, t, conditioning, pose, shared, **int8)
            else:
                used = 0
                prediction, kept = self._run_unet_cached(params, x, t, conditioning, pose, **int8)
                if key in near or len(near) < CACHED_WINDOWS:
                    near.add(key)
                else:
                    kept = np.array(kept)  # a copy, also where host and device are one
            if used + 1 < options.deepcache_interval:
                deep[key] = kept, used + 1
            return prediction.astype(jnp.float32)

        return run_unet

    def encode(self, pictures: Images) -> Float[Array, "1 f h w c"]:
        """uint8 frames [f, height, width, 3] -> the autoencoder's scaled latents, `vae.downscale` pixels a position."""
        return self._encode(self.params, cast_floating(to_signed(pictures), self.dtype))[None]

    def decode(self, latents: Float[Array | np.ndarray, "1 f h w c"], warped: LazyWarpedImages | None = None) -> Images:
        """Latents of one video -> uint8 frames [f, height, width, 3]; `warped` as in `decode_chunks`."""
        return np.concatenate(list(self.decode_chunks(np.asarray(latents[0]), warped)))

    def decode_chunks(
        self, latents: Float[np.ndarray, "f h w c"], warped: LazyWarpedImages | None = None
    ) -> Iterator[Images]:
        """Latents -> uint8 frames, a few at a time; of models with `appearance`, blended with the warped reference of
        as many frames."""
        together = math.lcm(DECODE_BATCH, self.mesh.size if self.mesh else 1)
        for start in range(0, len(latents), together):
            chunk = latents[start : start + together]
            inputs = [chunk]
            if warped and self.copies:
                pictures, masks = warped[start : start + together]
                background = np.broadcast_to(warped.background, pictures.shape)
                inputs += [to_signed(pictures), to_signed(background), to_unit(masks)]
            padded = [np.concatenate([part, np.repeat(part[-1:], together - len(part), 0)]) for part in inputs]
            padded = self.shard_batch(cast_floating(padded, self.dtype), AXES)
            yield np.asarray((self._decode if len(inputs) == 1 else self._blend)(self.params, *padded))[: len(chunk)]

    def shard_batch(self, tree: Any, axes: tuple[str, ...] = BATCH_AXES) -> Any:
        """Divides the first axis of arrays over the devices."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(axes)))


def cast_floating(tree: Any, dtype: DTypeLike) -> Any:
    """Floating arrays as `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
