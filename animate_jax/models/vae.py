"""The image autoencoder: diffusers' AutoencoderKL, Stable Diffusion's first stage, with its names.

Images are [B, H, W, 3] in [-1, 1]; callers fold frames into B. The diffusion model works on the latents of
`to_latents`, which are multiplied by `VAEConfig.scaling_factor`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from animate_jax.config import VAEConfig
from animate_jax.models.attention import scores
from animate_jax.models.resnet import conv_upsampled_2x

Features = Float[Array, "batch _ _ _"]  # [B, H, W, C]


def _group_norm(channels: int, config: VAEConfig, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=config.norm_num_groups, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


def _constant_init(value: np.ndarray) -> Callable[..., Array]:
    """A constant initializer."""
    return lambda key, shape, dtype, *_: jnp.asarray(value, dtype).reshape(shape)


def _conv(
    in_channels: int, out_channels: int, rngs: nnx.Rngs, size: int = 3, kernel: np.ndarray | None = None
) -> nnx.Conv:
    init: dict[str, Any] = {} if kernel is None else {"kernel_init": _constant_init(kernel)}
    return nnx.Conv(in_channels, out_channels, kernel_size=(size, size), padding=size // 2, rngs=rngs, **init)


def _zero_conv(in_channels: int, out_channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3x3 convolution that starts at zero."""
    return _conv(in_channels, out_channels, rngs, kernel=np.zeros((3, 3, in_channels, out_channels)))


def patch_basis(patch: int, count: int) -> tuple[Float[np.ndarray, "values count"], Float[np.ndarray, " count"]]:
    """The `count` lowest frequencies of the orthonormal 2-D DCT of a patch [patch, patch, 3] in luma and two chromas
    (as in JPEG): a linear autoencoder close to the best one, without training. The scales bring the amplitudes of
    natural images' frequencies closer together: low ones are reduced, high ones raised."""
    positions = np.arange(patch)
    cosines = np.cos(np.pi * (positions + 0.5) * positions[:, None] / patch) * np.sqrt(2 / patch)
    cosines[0] /= np.sqrt(2)  # [frequency, position]
    colors = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
    chroma_cost = 2.4  # a chroma's frequency counts as that many times luma's
    basis = [
        ((1 + u + v) * (chroma_cost if color else 1), color, u, v)
        for color, u, v in itertools.product(range(3), range(patch), range(patch))
    ]
    chosen = sorted(basis)[:count]
    columns = [np.multiply.outer(np.outer(cosines[u], cosines[v]), colors[c]).ravel() for _, c, u, v in chosen]
    scales = [0.5 * cost**0.5 for cost, *_ in chosen]
    return np.stack(columns, -1).astype(np.float32), np.array(scales, np.float32)


class ResnetBlock(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.norm1 = _group_norm(in_channels, config, rngs)
        self.conv1 = _conv(in_channels, out_channels, rngs)
        self.norm2 = _group_norm(out_channels, config, rngs)
        self.conv2 = _zero_conv(out_channels, out_channels, rngs)  # the identity at initialization
        self.conv_shortcut = _conv(in_channels, out_channels, rngs, size=1) if in_channels != out_channels else None

    def __call__(self, x: Features) -> Features:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Self-attention over all positions, with a single head as wide as the features."""

    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.group_norm = _group_norm(channels, config, rngs)
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(self, x: Features) -> Features:
        tokens = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [B, N, C]
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        weights = jax.nn.softmax(scores(q, k)).astype(v.dtype)  # [B, N, N]
        return x + self.to_out[0](jnp.matmul(weights, v)).reshape(x.shape)


class Downsample(nnx.Module):
    """Halves height and width. The padding is on the right and bottom only, unlike the UNet's."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, kernel_size=(3, 3), strides=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Features) -> Features:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width by nearest neighbor, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = _conv(channels, channels, rngs)

    def __call__(self, x: Features) -> Features:
        return conv_upsampled_2x(x, self.conv)


class DownBlock(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, last: bool, config: VAEConfig, *, rngs: nnx.Rngs):
        widths = [in_channels] + [out_channels] * config.layers_per_block
        self.resnets = nnx.List([ResnetBlock(a, b, config, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.downsamplers = nnx.List([] if last else [Downsample(out_channels, rngs=rngs)])

    def __call__(self, x: Features) -> Features:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, last: bool, config: VAEConfig, *, rngs: nnx.Rngs):
        widths = [in_channels] + [out_channels] * (config.layers_per_block + 1)
        self.resnets = nnx.List([ResnetBlock(a, b, config, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.upsamplers = nnx.List([] if last else [Upsample(out_channels, rngs=rngs)])

    def __call__(self, x: Features) -> Features:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nnx.Module):
    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResnetBlock(channels, channels, config, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List([Attention(channels, config, rngs=rngs)])

    def __call__(self, x: Features) -> Features:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels
        self.conv_in = _conv(config.in_channels, widths[0], rngs)
        self.down_blocks = nnx.List(
            [
                DownBlock(widths[max(i - 1, 0)], widths[i], i == len(widths) - 1, config, rngs=rngs)
                for i in range(len(widths))
            ]
        )
        self.mid_block = MidBlock(widths[-1], config, rngs=rngs)
        self.conv_norm_out = _group_norm(widths[-1], config, rngs)
        self.conv_out = _conv(widths[-1], 2 * config.latent_channels, rngs)

    def __call__(self, x: Features) -> Features:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class PatchEncoder(nnx.Module):
    """A patch's values -> mean and log variance of its latents, by a linear map that needs no training."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        basis, scales = patch_basis(config.downscale, config.latent_channels)
        kernel = np.concatenate([basis * scales, np.zeros_like(basis)], -1)
        bias = np.repeat(np.array([0, -6], np.float32), config.latent_channels)
        self.patch = config.downscale
        self.shortcut = nnx.Linear(
            *kernel.shape, kernel_init=_constant_init(kernel), bias_init=_constant_init(bias), rngs=rngs
        )

    def __call__(self, x: Features) -> Features:
        return self.shortcut(rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch))


class Decoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels[::-1]
        self.conv_in = _conv(config.latent_channels, widths[0], rngs)
        self.mid_block = MidBlock(widths[0], config, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpBlock(widths[max(i - 1, 0)], widths[i], i == len(widths) - 1, config, rngs=rngs)
                for i in range(len(widths))
            ]
        )
        self.conv_norm_out = _group_norm(widths[-1], config, rngs)
        conv_out = _zero_conv if config.patch_shortcut else _conv
        self.conv_out = conv_out(widths[-1], config.in_channels, rngs)
        self.patch = config.downscale
        self.shortcut = nnx.data(None)
        if config.patch_shortcut:
            basis, scales = patch_basis(self.patch, config.latent_channels)
            kernel = (basis / scales).T
            self.shortcut = nnx.Linear(*kernel.shape, kernel_init=_constant_init(kernel), rngs=rngs)

    def __call__(self, x: Features) -> Features:
        latents, x = x, self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(nnx.silu(self.conv_norm_out(x)))
        if self.shortcut is None:
            return x
        p = self.patch
        return x + rearrange(self.shortcut(latents), "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)


class AutoencoderKL(nnx.Module):
    """`VAEConfig()` is Stable Diffusion's autoencoder; `ModelConfig.tiny().vae` the small one."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = (PatchEncoder if config.patch_shortcut else Encoder)(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        moments = 2 * config.latent_channels
        identity = config.patch_shortcut  # the basis is already orthonormal
        self.quant_conv = _conv(moments, moments, rngs, 1, np.eye(moments) if identity else None)
        self.post_quant_conv = _conv(moments // 2, moments // 2, rngs, 1, np.eye(moments // 2) if identity else None)

    def encode(
        self, images: Float[Array, "batch height width 3"]
    ) -> tuple[Float[Array, "batch h w latent"], Float[Array, "batch h w latent"]]:
        """Mean and log variance (clipped to [-30, 20]) of the posterior over unscaled latents.

        Images are in [-1, 1]. Raises ValueError if a side is not a multiple of `config.downscale`.
        """
        height, width = images.shape[1:3]
        if height % self.config.downscale or width % self.config.downscale:
            raise ValueError(f"The image is {width}x{height}; both sides must be multiples of {self.config.downscale}.")
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Float[Array, "batch h w latent"]) -> Float[Array, "batch height width 3"]:
        """Images, about [-1, 1] but not clipped, from unscaled latents."""
        return self.decoder(self.post_quant_conv(latents))

    def to_latents(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch h w latent"]:
        """The diffusion model's latents: posterior mean times scaling factor. Images are in [-1, 1]."""
        return self.encode(images)[0] * self.config.scaling_factor

    def to_images(self, latents: Float[Array, "batch h w latent"]) -> Float[Array, "batch height width 3"]:
        """The inverse of `to_latents`: images, about [-1, 1] but not clipped."""
        return self.decode(latents / self.config.scaling_factor)
