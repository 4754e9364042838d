"""What benchmarks of the bundled model denoise: rendered people and motions that training never saw."""

import jax
import jax.numpy as jnp

from animate_jax.evaluation.clips import EvalClip, from_renderer
from animate_jax.models.unet import Conditioning
from animate_jax.pose.draw import LazyPoseImages, draw
from animate_jax.sampling.pipeline import Pipeline


def held_out(pipeline: Pipeline, videos: int, frames: int) -> tuple[list[EvalClip], list[LazyPoseImages], Conditioning]:
    """Clips of `test_both`, what drives each, and the conditioning with a row for each."""
    options = pipeline.animation_config()
    size = options.height, options.width
    cases = list(from_renderer("test_both", videos, frames, 24, size, options.fps or 10.0))
    poses = [LazyPoseImages(case.keypoints[1:], *size, options.pose_style) for case in cases]
    conditions = [
        pipeline.precompute_conditioning(case.reference, draw(case.keypoints[0], *size, options.pose_style), options)
        for case in cases
    ]
    return cases, poses, jax.tree.map(lambda *parts: jnp.concatenate(parts), *conditions)
