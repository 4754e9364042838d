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
        centered = wide - group_mean(wide.mean(self.axes, keepdims=True))
        variance = group_mean(jnp.square(centered).mean(self.axes, keepdims=True))
        normed = centered * (jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]) + self.bias[...]
        return normed.astype(x.dtype)


class Conv1x1(nnx.Conv):
    """A 1x1 convolution computed as a matrix product, which is faster on every backend."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        super().__init__(channels_in, channels_out, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "*b ci"]) -> Float[Array, "*b co"]:
        assert self.bias is not None
        return x @ self.kernel[0, 0].astype(x.dtype) + self.bias[...].astype(x.dtype)


class ResnetBlock2D(nnx.Module):
    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        time_channels: int,
        groups: int,
        *,
        over_frames: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(channels_in, groups, over_frames=over_frames)
        self.conv1 = nnx.Conv(channels_in, channels_out, (3, 3), padding=1, rngs=rngs)
        self.time_emb_proj = nnx.Linear(time_channels, channels_out, rngs=rngs)
        self.norm2 = GroupNorm(channels_out, groups, over_frames=over_frames)
        self.conv2 = nnx.Conv(channels_out, channels_out, (3, 3), padding=1, rngs=rngs)
        if channels_in != channels_out:
            self.conv_shortcut = Conv1x1(channels_in, channels_out, rngs=rngs)
        self.has_shortcut = channels_in != channels_out

    def __call__(self, x: Float[Array, "b f h w ci"], time: Float[Array, " b #f t"]) -> Float[Array, "b f h w co"]:
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
    """Nearest neighbor to `size` with PyTorch's rule floor(i * in / out), then a convolution.

    `size` is that of the skip connection, so that odd sizes are restored (98 -> 49 -> 25 -> 49).
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b f h w c"], size: tuple[int, int]) -> Float[Array, "b f h2 w2 c"]:
        if size == (2 * x.shape[2], 2 * x.shape[3]):
            return conv_upsampled_2x(x, self.conv)
        for axis, target in ((2, size[0]), (3, size[1])):
            x = jnp.take(x, jnp.arange(target) * x.shape[axis] // target, axis)
        return self.conv(x)


def conv_upsampled_2x(x: Float[Array, "*b h w ci"], conv: nnx.Conv) -> Float[Array, "*b 2*h 2*w co"]:
    """A padded 3x3 convolution of `x` upsampled 2x by nearest neighbor, without the upsampled array.

    Each of the four phases of the output is a 2x2 convolution of `x`, whose weights are sums of the kernel's: 16
    products instead of 36.
    """
    kernel, lead = conv.kernel[...], x.shape[:-3]
    x = x.reshape(-1, *x.shape[-3:])

    def phase_kernels(kernel, axis):  # of the even and of the odd output positions
        first, middle, last = jnp.split(kernel, 3, axis)
        return [jnp.concatenate(taps, axis) for taps in ((first, middle + last), (first + middle, last))]

    def phase_conv(kernel, i, j):
        padding, layout = ((1 - i, i), (1 - j, j)), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), padding, dimension_numbers=layout)

    rows = [
        jnp.stack([phase_conv(taps, i, j) for j, taps in enumerate(phase_kernels(row_taps, 1))], 3)
        for i, row_taps in enumerate(phase_kernels(kernel, 0))
    ]
    out = jnp.stack(rows, 2)  # [B, h, 2, w, 2, C]
    out = out.reshape(*lead, 2 * x.shape[1], 2 * x.shape[2], -1)
    assert conv.bias is not None
    return out + conv.bias[...].astype(x.dtype)
