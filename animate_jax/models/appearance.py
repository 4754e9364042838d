"""The warped reference as a condition beside the pose, from which latents and pixels may be copied.

An extension of ours, not in the paper. `UNetConfig.appearance` switches it on; at initialization its layers do not
change the predictions of weights trained without it.
"""

from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

NUM_MASKS = 2  # the person's share of a pixel, and the confidence of the warp
INITIAL_LOGIT = -3.0  # of the share that is copied from the warp
PATCH = 2  # pixels along each side, which the last layers handle together


class AppearanceGuider(nnx.Module):
    """A zero-initialized convolution over the latents of the warped reference and the background, and their masks."""

    def __init__(self, latent_channels: int, downscale: int, conditioning_channels: int, *, rngs: nnx.Rngs):
        self.downscale = downscale
        channels = 2 * latent_channels + NUM_MASKS * downscale**2
        self.conv_in = nnx.Conv(
            channels, conditioning_channels, (3, 3), padding=1, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(
        self,
        warped: Float[Array, "*b h w c"],
        background: Float[Array, "*b h w c"],
        masks: Float[Array, "*b H W 2"],
    ) -> Float[Array, "*b h w d"]:
        """Scaled latents, and masks in [0, 1] -> features to add to the Pose Guider's."""
        p = self.downscale
        masks = rearrange(masks, "... (h p) (w q) m -> ... h w (p q m)", p=p, q=p)
        return self.conv_in(jnp.concatenate([warped, background, masks], -1))


class AppearanceBlend(nnx.Module):
    """Mends decoded images with the warped reference, which no autoencoder has blurred.

    A small U-Net over patches of 2x2 pixels predicts the share of each pixel to copy from the warped reference and a
    correction.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: tuple[int, ...] = (48, 96, 128)):
        def conv(before: int, after: int, stride: int = 1, **options: Any) -> nnx.Conv:
            return nnx.Conv(before, after, (3, 3), strides=stride, padding=1, rngs=rngs, **options)

        self.conv_in = conv(PATCH**2 * (9 + NUM_MASKS), channels[0])
        levels = list(pairwise(channels))
        self.down_blocks = nnx.List([conv(above, below, stride=2) for above, below in levels])
        self.mid_blocks = nnx.List([conv(channels[-1], channels[-1]) for _ in range(2)])
        self.up_blocks = nnx.List([conv(below + above, above) for above, below in reversed(levels)])
        self.conv_hidden = conv(channels[0], channels[0])
        self.conv_out = conv(channels[0], PATCH**2 * 4, kernel_init=nnx.initializers.zeros)

    def __call__(
        self,
        images: Float[Array, "b H W 3"],
        warped: Float[Array, "b H W 3"],
        background: Float[Array, "b H W 3"],
        masks: Float[Array, "b H W 2"],
    ) -> Float[Array, "b H W 3"]:
        """Decoded images, the warped reference and its background, all in [-1, 1], and masks in [0, 1] -> images."""
        x = jnp.concatenate([images, warped, background, masks], -1)
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=PATCH, q=PATCH)
        x = nnx.silu(self.conv_in(x))
        skips = []
        for down in self.down_blocks:
            skips.append(x)
            x = nnx.silu(down(x))
        for mid in self.mid_blocks:
            x = x + nnx.silu(mid(x))
        for up in self.up_blocks:
            skip = skips.pop()
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)[:, : skip.shape[1], : skip.shape[2]]
            x = nnx.silu(up(jnp.concatenate([x, skip], -1)))
        x = self.conv_out(x + nnx.silu(self.conv_hidden(x)))
        x = rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=PATCH, q=PATCH)
        share = nnx.sigmoid(x[..., :1] + INITIAL_LOGIT)
        return images + share * (warped - images) + x[..., 1:]
