"""What the denoising UNet's blocks compute: features of frames, and attention to the reference image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from animate_jax.images import Images
from animate_jax.models.attention import scores, split_heads
from animate_jax.models.conditioning import Conditioning
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.pose.warp import LazyWarpedImages
from animate_jax.sampling.inputs import Poses
from animate_jax.sampling.pipeline import Pipeline

Features = dict[str, Float[Array, "f n c"]]


def block_features(
    pipeline: Pipeline,
    frames: Images,
    poses: Poses,
    conditioning: Conditioning,
    t: int = 500,
    seed: int = 0,
    warped: LazyWarpedImages | None = None,
) -> Features:
    """The input of every spatial transformer's self-attention while `frames` are denoised.

    Args:
        frames: any clip no longer than the model's windows; noise is added for timestep `t`.
        poses: its pose images.
        conditioning: of the character, from `Pipeline.precompute_conditioning`; without guidance.
        warped: the reference in these poses, from `Pipeline.warp`; for models with `appearance`.

    Returns:
        Path of a transformer -> tokens [frames, positions row by row, channels].
    """
    clean = pipeline.encode(frames)
    noise = jax.random.normal(jax.random.key(seed), clean.shape)
    x = pipeline.schedule.add_noise(clean, noise, np.full((1, 1), t))
    graphdef, _ = abstract_model(pipeline.preset.model)
    background = pipeline.encode(warped.background[None])[0] if warped else None
    pose = pipeline.pose_features([poses], [warped], [background], np.arange(len(frames)))
    features = _block_features(graphdef, pipeline.params, x, jnp.full((1, 1), float(t)), conditioning, pose)
    return {path: tokens[0] for path, tokens in features.items()}


@functools.partial(jax.jit, static_argnums=0)
def _block_features(
    graphdef: nnx.GraphDef, params: Params, x: Array, t: Array, conditioning: Conditioning, pose: Array
):
    return merge_model(graphdef, params).denoising_unet(x, t, conditioning, pose)[1]


def reference_attention_maps(
    pipeline: Pipeline, features: Features, conditioning: Conditioning, path: str
) -> Float[Array, "f heads n m"]:
    """Attention of every position of every frame to every position of the reference image.

    The weights of one position add up to the reference's share; the rest is attention to its own frame.

    Args:
        features: from `block_features`.
        path: of a spatial transformer, a key of `features`.
    """
    graphdef, _ = abstract_model(pipeline.preset.model)
    unet = merge_model(graphdef, pipeline.params).denoising_unet
    attention = unet.spatial_transformers()[path].transformer_blocks[0].attn1
    query, key = (split_heads(project(features[path]), attention.heads) for project in (attention.to_q, attention.to_k))
    reference_key = conditioning[path].reference_key
    if reference_key is None:
        raise ValueError(f"{path}: does not attend to the reference")
    reference = jnp.repeat(split_heads(reference_key, attention.heads), len(query), 0)
    both = jnp.concatenate([scores(query, key), scores(query, reference)], -1)
    return jax.nn.softmax(both, -1)[..., key.shape[-2] :]
