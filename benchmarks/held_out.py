"""What benchmarks of the bundled model denoise: rendered people and motions that training never saw."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from animate_jax.evaluation.clips import EvalClip, from_renderer
from animate_jax.models.conditioning import Conditioning
from animate_jax.pose.draw import LazyPoseImages, draw
from animate_jax.pose.warp import LazyWarpedImages
from animate_jax.sampling.pipeline import Pipeline


class HeldOut(NamedTuple):
    clips: list[EvalClip]
    poses: list[LazyPoseImages]  # that drive each
    conditioning: Conditioning  # with a row for each
    warped: list[LazyWarpedImages | None]  # the reference of each in its poses, for models that see it


def held_out(pipeline: Pipeline, videos: int, frames: int) -> HeldOut:
    """Clips of `test_both`."""
    options = pipeline.animation_config()
    size = options.height, options.width
    cases = list(from_renderer("test_both", videos, frames, 24, size, options.fps or 10.0))
    poses = [LazyPoseImages(case.keypoints[1:], *size, options.pose_style) for case in cases]
    conditions = [
        pipeline.precompute_conditioning(case.reference, draw(case.keypoints[0], *size, options.pose_style), options)
        for case in cases
    ]
    warped = [
        pipeline.warp(case.reference, case.keypoints[0], driven) for case, driven in zip(cases, poses, strict=True)
    ]
    return HeldOut(cases, poses, jax.tree.map(lambda *parts: jnp.concatenate(parts), *conditions), warped)
