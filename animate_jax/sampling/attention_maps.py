"""Looks into the denoising UNet: what its blocks see, and where they look in the reference picture."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from animate_jax.images import Images, to_unit
from animate_jax.models.attention import scores, split_heads
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.models.unet import Conditioning
from animate_jax.sampling.inputs import Poses
from animate_jax.sampling.pipeline import Pipeline

Features = dict[str, Float[Array, "f n c"]]


def features(
    pipeline: Pipeline, frames: Images, poses: Poses, conditioning: Conditioning, t: int = 500, seed: int = 0
) -> Features:
    """What the self-attention of every spatial transformer is given while `frames` are denoised.

    Args:
        frames: a clip no longer than the model's windows: one it made, or any other; noised to timestep `t`.
        poses: its pose pictures.
        conditioning: of the character, from `Pipeline.precompute_conditioning`; nothing is guided.

    Returns:
        By the transformer's path, tokens [frames, positions row by row, channels].
    """
    clean = pipeline.encode(frames)
    noise = jax.random.normal(jax.random.key(seed), clean.shape)
    x = pipeline.schedule.add_noise(clean, noise, np.full((1, 1), t))
    graphdef, _ = abstract_model(pipeline.preset.model)
    lent = _features(graphdef, pipeline.params, x, jnp.full((1, 1), float(t)), conditioning, to_unit(poses[:])[None])
    return {path: tokens[0] for path, tokens in lent.items()}


@functools.partial(jax.jit, static_argnums=0)
def _features(graphdef: nnx.GraphDef, params: Params, x: Array, t: Array, conditioning: Conditioning, poses: Array):
    model = merge_model(graphdef, params)
    return model.denoising_unet(x, t, conditioning, model.pose_features(poses))[1]


def reference_attention(
    pipeline: Pipeline, found: Features, conditioning: Conditioning, path: str
) -> Float[Array, "f heads n m"]:
    """How much every position of every frame looks at every position of the reference picture.

    The probabilities of one position add up to its share for the reference; the rest goes to its own frame.

    Args:
        found: from `features`.
        path: of a spatial transformer, a key of `found`.
    """
    graphdef, _ = abstract_model(pipeline.preset.model)
    unet = merge_model(graphdef, pipeline.params).denoising_unet
    attention = unet.spatial_transformers()[path].transformer_blocks[0].attn1
    query, key = (split_heads(project(found[path]), attention.heads) for project in (attention.to_q, attention.to_k))
    reference = jnp.repeat(split_heads(conditioning[path].reference_key, attention.heads), len(query), 0)
    both = jnp.concatenate([scores(query, key), scores(query, reference)], -1)
    return jax.nn.softmax(both, -1)[..., key.shape[-2] :]
