"""Random numbers for videos of any length, sampled a few frames at a time and kept in host memory."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key

CHUNK = 32  # frames sampled at once


def per_frame_normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float32[np.ndarray, "b f *rest"]:
    """Standard normal [B, F, ...]. A frame's values depend only on its video's key and its own index."""
    frames = np.arange(-(-shape[1] // CHUNK) * CHUNK).reshape(-1, CHUNK)
    return np.concatenate([np.asarray(_sample(keys, chunk, shape[2:])) for chunk in frames], axis=1)[:, : shape[1]]


@functools.partial(jax.jit, static_argnums=2)
def _sample(keys: Key[Array, " b"], frames: Int[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "b n *rest"]:
    def of_frame(key, frame):
        return jax.random.normal(jax.random.fold_in(key, frame), shape)

    return jax.vmap(jax.vmap(of_frame, (None, 0)), (0, None))(keys, frames)


def initial_noise(keys: Key[Array, " b"], shape: tuple[int, ...], shared: bool) -> Float32[np.ndarray, "b f *rest"]:
    """x_T, [B, F, h, w, C], one key per video; `shared` gives every frame of a video the same noise."""
    if shared:
        return np.repeat(per_frame_normal(keys, (shape[0], 1, *shape[2:])), shape[1], axis=1)
    return per_frame_normal(keys, shape)
