"""Fixed sinusoids: timesteps, frame positions, image positions."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def timestep_embedding(timesteps: Float[Array, "*b"], channels: int) -> Float[Array, "*b c"]:
    """[cos | sin] of t * 10000^(-i / half): diffusers' Timesteps with flip_sin_to_cos=True and freq_shift=0."""
    frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(channels // 2, dtype=jnp.float32) / (channels // 2))
    angles = timesteps.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def frame_positions(frames: int, channels: int) -> Float[np.ndarray, "f c"]:
    """AnimateDiff's `pos_encoder.pe`: sine on even, cosine on odd channels; the index is the position in the window."""
    angles = np.arange(frames, dtype=np.float32)[:, None] * np.exp(
        np.arange(0, channels, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / channels)
    )
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(frames, channels)


def image_positions(height: int, width: int, channels: int) -> Float[np.ndarray, "h w c"]:
    """A 2-D sinusoid, half the channels for each axis. Periods are 2 pi to 200 pi positions, as images of the small
    model are a few dozen positions wide."""
    quarter = channels // 4
    frequencies = 100.0 ** (-np.arange(quarter) / quarter)
    axes = [np.arange(size)[:, None] * frequencies for size in (height, width)]
    rows, columns = (np.concatenate([np.sin(a), np.cos(a)], -1) for a in axes)
    shape = (height, width, 2 * quarter)
    both = [np.broadcast_to(rows[:, None], shape), np.broadcast_to(columns[None], shape)]
    return np.concatenate(both, -1).astype(np.float32)


class TimestepEmbedding(nnx.Module):
    def __init__(self, channels: int, time_channels: int, *, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(channels, time_channels, rngs=rngs)
        self.linear_2 = nnx.Linear(time_channels, time_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b t"]:
        return self.linear_2(nnx.silu(self.linear_1(x)))
