"""Previews while training: fixed held-out clips are animated and compared with the true frames."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import UInt8

from animate_jax.config import MeshConfig, TrainConfig
from animate_jax.data.samples import RecordedSamples, SkipDamaged, open_source
from animate_jax.errors import UserError
from animate_jax.evaluation.image_quality import person_box, psnr, ssim
from animate_jax.models.params import Params
from animate_jax.parallel.mesh import make_mesh
from animate_jax.perceptual import lpips
from animate_jax.pose.draw import draw
from animate_jax.pose.warp import AnyWarpedImages, WarpedImages, warp
from animate_jax.presets import preset_of
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.images import write_image
from animate_jax.video.write import write_video

REFERENCE_GAP = 4  # frames between the reference and the first frame to make, in rendered clips


class PreviewClip(NamedTuple):
    """A reference frame, followed by the frames to make."""

    frames: UInt8[np.ndarray, "_ h w 3"]
    poses: UInt8[np.ndarray, "_ h w 3"]
    mask: UInt8[np.ndarray, "_ h w"]  # of the frames to make: the person
    warped: AnyWarpedImages | None = None  # into the poses of the frames to make


def rendered_clips(config: TrainConfig) -> list[PreviewClip]:
    options, frames = config.preview, preset_of(config).frames
    source = open_source(dataclasses.replace(config, data=dataclasses.replace(config.data, split=options.split)))
    picked = [0, *range(REFERENCE_GAP, REFERENCE_GAP + options.frames)]
    clips = [source.clip(index, REFERENCE_GAP + options.frames, picked) for index in range(options.clips)]
    size = frames.height, frames.width
    return [
        PreviewClip(
            clip.frames,
            draw(clip.keypoints, *size, frames.pose_style),
            clip.mask[1:],
            warp(clip.frames[0], clip.mask[0], clip.keypoints[0], clip.keypoints[1:]),
        )
        for clip in clips
    ]


def recorded_clips(config: TrainConfig) -> list[PreviewClip]:
    """The first clips of a split that is not trained on, if the data set has one."""
    options, data, root = config.preview, config.data, config.data.root
    if root is None:
        return []
    from animate_jax.data.records import RecordedClips  # protobuf and array_record; only runs that read clips

    data = dataclasses.replace(data, frames=options.frames, consecutive=True, flip=0.0, num_workers=0)
    for split in dict.fromkeys((options.split, "validation", "test")):
        if split == data.split:
            continue
        try:
            clips = RecordedClips(root, split)
        except UserError:
            continue
        sample = SkipDamaged(clips, RecordedSamples(dataclasses.replace(config, data=data)), len(clips) // 2)
        samples = [sample(i, i) for i in range(min(options.clips, len(clips)))]
        return [
            PreviewClip(
                prepend(s["reference"], s["frames"]),
                prepend(s["reference_pose"], s["poses"]),
                s["masks"],
                WarpedImages(s["background"], s["warp"], s["warp_masks"]) if "warp" in s else None,
            )
            for s in samples
        ]
    return []


def prepend(image: UInt8[np.ndarray, "h w 3"], images: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "_ h w 3"]:
    return np.concatenate([image[None], images])


class Preview:
    """`preview(params, step)` writes `<run>/previews/<step>.mp4` (a row per clip: reference, pose, result, truth) and
    `.png`, and returns PSNR and SSIM, with LPIPS where its weights are installed, as `preview/psnr`, ...

    The clips are recorded ones if `config.data.root` has a split of that name, "validation" or "test", else rendered.
    Samples with the preset's own settings, a fixed seed and the dtype of the training's passes, so that only the
    weights differ between previews. In training of an autoencoder, the result is its reconstruction of the true frames.
    The devices of process 0 divide the frames, the other processes wait.

    Args:
        folder: the run's folder on this machine; default: `config.output`.

    Raises:
        UserError: the data set has no such split.
    """

    def __init__(self, config: TrainConfig, folder: str | pathlib.Path | None = None):
        self._directory = pathlib.Path(folder or config.output) / "previews"
        preset = preset_of(config)
        self._preset, self._rebuild, self._dtype = preset, config.stage == "vae", jnp.dtype(config.compute_dtype)
        shared = math.gcd(jax.local_device_count(), min(config.preview.frames, preset.sampling.window))
        self._mesh = make_mesh(MeshConfig(frames=shared), jax.local_devices())
        self._pipeline: Pipeline | None = None  # kept with its compiled functions
        if jax.process_index() > 0:
            return
        self._clips = recorded_clips(config) or rendered_clips(config)
        try:
            self._lpips = lpips.load(config.lpips_weights)
        except UserError:
            self._lpips = None

    def __call__(self, params: Params, step: int) -> dict[str, float]:
        params = whole_copies(params, self._dtype, self._mesh)
        if jax.process_index() > 0:
            return {}
        with jax.set_mesh(self._mesh):
            self._pipeline = self._pipeline or Pipeline(params, self._preset, self._mesh)
            self._pipeline.params = params
            results = np.stack([self._result(self._pipeline, clip) for clip in self._clips])
            self._pipeline.params = {}
            self._write(step, results)
            clips = [scores(result, clip, self._lpips) for result, clip in zip(results, self._clips, strict=True)]
        return {f"preview/{name}": float(np.mean([clip[name] for clip in clips])) for name in clips[0]}

    def _result(self, pipeline: Pipeline, clip: PreviewClip) -> UInt8[np.ndarray, "_ h w 3"]:
        if self._rebuild:
            return pipeline.decode(pipeline.encode(clip.frames[1:]))
        options = pipeline.animation_config()
        conditioning = pipeline.precompute_conditioning(clip.frames[0], clip.poses[0], options)
        latents = pipeline.sample(conditioning, clip.poses[1:], options, 0, progress=False, warped=clip.warped)
        return pipeline.decode(latents, clip.warped, options.deflicker)

    def _write(self, step: int, results: UInt8[np.ndarray, "clips frames h w 3"]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        rows = []
        for clip, result in zip(self._clips, results, strict=True):
            still = np.broadcast_to(clip.frames[0], result.shape)
            rows.append(np.concatenate([still, clip.poses[1:], result, clip.frames[1:]], axis=2))
        write_video(self._directory / f"{step:07d}.mp4", np.concatenate(rows, axis=1), self._preset.frames.fps or 10.0)
        shown = (0, results.shape[1] - 1)
        sheet = [
            [
                clip.frames[0],
                *(each for f in shown for each in (clip.poses[1 + f], result[f], clip.frames[1 + f])),
            ]
            for clip, result in zip(self._clips, results, strict=True)
        ]
        titles = ["reference", *["pose", "result", "truth"] * len(shown)]
        write_image(self._directory / f"{step:07d}.png", contact_sheet(sheet, titles))


def whole_copies(params: Params, dtype: DTypeLike, mesh: Mesh) -> Params:
    """Parameters that are divided over the run's mesh -> whole copies in `dtype` on every device of `mesh`, which has
    devices of this process only. Every process must call it."""
    place = next(iter(params.values())).sharding
    everywhere = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None

    def here(array: jax.Array) -> jax.Array:
        copies = {shard.device: shard.data for shard in array.addressable_shards}
        copies = [copies[device] for device in mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(array.shape, NamedSharding(mesh, PartitionSpec()), copies)

    return {path: here(array) for path, array in cast_and_replicate(dtype, everywhere)(params).items()}


@functools.lru_cache
def cast_and_replicate(dtype: DTypeLike, everywhere: NamedSharding | None) -> Callable[[Params], Params]:
    """A jitted cast, cached so that it is compiled once."""
    return jax.jit(lambda tree: {path: array.astype(dtype) for path, array in tree.items()}, out_shardings=everywhere)


def scores(
    result: UInt8[np.ndarray, "frames h w 3"], clip: PreviewClip, lpips_params: lpips.Params | None
) -> dict[str, np.ndarray]:
    """Every frame's metrics; `box_psnr` is that of the person's box."""
    pairs = zip(result / np.float32(255), clip.frames[1:] / np.float32(255), person_box(clip.mask), strict=True)
    frames = [frame_scores(*pair, lpips_params) for pair in pairs]
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


@jax.jit
def frame_scores(
    image: jax.Array, truth: jax.Array, box: jax.Array, lpips_params: lpips.Params | None
) -> dict[str, jax.Array]:
    found = {"psnr": psnr(image, truth), "ssim": ssim(image, truth), "box_psnr": psnr(image, truth, box)}
    if lpips_params is not None:
        found["lpips"] = lpips.lpips(lpips_params, image[None] * 2 - 1, truth[None] * 2 - 1)[0]
    return found
