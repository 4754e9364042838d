"""AnimateDiff's temporal layer: every pixel attends over the frames of its window."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from animate_jax.models.attention import Attention, FeedForward
from animate_jax.models.embeddings import frame_positions
from animate_jax.models.resnet import GroupNorm
from animate_jax.models.sharding import shard_frames, shard_pixels


class TemporalTransformerBlock(nnx.Module):
    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs):
        self.attention_blocks = nnx.List([Attention(channels, channels, heads, rngs=rngs) for _ in range(2)])
        self.norms = nnx.List(
            [nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs) for _ in range(2)]
        )
        self.ff = FeedForward(channels, rngs=rngs)
        self.ff_norm = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n c"]:
        # As in AnimateDiff, added after the norm in each attention, so that the values contain it, too.
        positions = jnp.asarray(frame_positions(x.shape[1], x.shape[-1]), x.dtype)[:, None]
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention.attend_temporal(norm(x) + positions)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer3DModel(nnx.Module):
    def __init__(self, channels: int, heads: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, epsilon=1e-6)
        self.proj_in = nnx.Linear(channels, channels, rngs=rngs)
        self.transformer_blocks = nnx.List([TemporalTransformerBlock(channels, heads, rngs=rngs)])
        # Zero: the layer is the identity at initialization (AnimateDiff).
        self.proj_out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        hidden = shard_frames(rearrange(self.norm(x), "b f h w c -> b f (h w) c"))
        hidden = self.proj_out(self.transformer_blocks[0](self.proj_in(shard_pixels(hidden))))
        hidden = shard_frames(shard_pixels(hidden))
        return x + hidden.reshape(x.shape)


class MotionModule(nnx.Module):
    """Keeps AnimateDiff's key prefix `motion_modules.N.temporal_transformer`."""

    def __init__(self, channels: int, heads: int, groups: int, *, rngs: nnx.Rngs):
        self.temporal_transformer = TemporalTransformer3DModel(channels, heads, groups, rngs=rngs)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        return self.temporal_transformer(x)
