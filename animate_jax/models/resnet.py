"""The UNet's convolutional parts, named as in diffusers. Videos are [batch, frames, height, width, channels]."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class GroupNorm(nnx.Module):
    """GroupNorm of PyTorch: two-pass variance, statistics in fp32.

    Statistics are taken per frame, or over all frames of a clip when `over_frames` (AnimateDiff v1). Channels are
    reduced last, so that the long spatial sums run along contiguous channels.
    """

    def __init__(self, channels: int, groups: int, *, epsilon: float = 1e-5, over_frames: bool = False):
        if channels % groups:
            raise ValueError(f"{channels} channels do not split into {groups} groups")
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.epsilon = groups, epsilon
        self.axes = (-4, -3, -2) if over_frames else (-3, -2)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        def group_mean(per_channel):
            grouped = per_channel.reshape(*per_channel.shape[:-1], self.groups, -1)
            mean = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
            return mean.reshape(per_channel.shape)

        wide = x.astype(jnp.float32)
        centred = wide - group_mean(wide.mean(self.axes, keepdims=True))
        variance = group_mean(jnp.square(centred).mean(self.axes, keepdims=True))
        normed = centred * (jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]) + self.bias[...]
        return normed.astype(x.dtype)


class Conv1x1(nnx.Conv):
    """A 1x1 convolution run as the matrix product it is (a plain matmul beats a convolution call on every backend)."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        super().__init__(channels_in, channels_out, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "*b ci"]) -> Float[Array, "*b co"]:
        return x @ self.kernel[0, 0].astype(x.dtype) + self.bias[...].astype(x.dtype)


class ResnetBlock2D(nnx.Module):
    def __init__(self, channels_in: int, channels_out: int, time_channels: int, groups: int, *,
                 over_frames: bool = False, rngs: nnx.Rngs):  # fmt: skip
        self.norm1 = GroupNorm(channels_in, groups, over_frames=over_frames)
        self.conv1 = nnx.Conv(channels_in, channels_out, (3, 3), padding=1, rngs=rngs)
        self.time_emb_proj = nnx.Linear(time_channels, channels_out, rngs=rngs)
        self.norm2 = GroupNorm(channels_out, groups, over_frames=over_frames)
        self.conv2 = nnx.Conv(channels_out, channels_out, (3, 3), padding=1, rngs=rngs)
        if channels_in != channels_out:
            self.conv_shortcut = Conv1x1(channels_in, channels_out, rngs=rngs)
        self.has_shortcut = channels_in != channels_out

    def __call__(self, x: Float[Array, "b f h w ci"], time: Float[Array, "b #f t"]) -> Float[Array, "b f h w co"]:
        hidden = self.conv1(nnx.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(nnx.silu(time))[:, :, None, None]
        hidden = self.conv2(nnx.silu(self.norm2(hidden)))
        return hidden + (self.conv_shortcut(x) if self.has_shortcut else x)


class Downsample2D(nnx.Module):
    """Halves height and width, rounding up; PyTorch's symmetric padding (XLA's SAME would pad one side only)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Nearest neighbour to `size` with PyTorch's rule floor(i * in / out), then a convolution.

    The size is that of the skip connection it will meet, so odd sizes come back exactly (98 -> 49 -> 25 -> 49).
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b f h w c"], size: tuple[int, int]) -> Float[Array, "b f h2 w2 c"]:
        for axis, target in ((2, size[0]), (3, size[1])):
            source = x.shape[axis]
            if target == 2 * source:
                x = jnp.repeat(x, 2, axis)
            else:
                x = jnp.take(x, jnp.arange(target) * source // target, axis)
        return self.conv(x)
