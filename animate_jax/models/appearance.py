"""The warped reference as a condition: seen beside the pose, copied from in latents and in pixels.

An extension of ours, not in the paper. `UNetConfig.appearance` switches it on; every layer starts so that weights
trained without it predict what they did.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

MASKS = 2  # the person's share of a pixel, and how sure the warp is
CLOSED = -3.0  # logit of the share that is copied from the warp before training


class AppearanceGuider(nnx.Module):
    """One convolution, zero at first, over latents of the warped reference and of the background, and their masks."""

    def __init__(self, latent_channels: int, downscale: int, conditioning_channels: int, *, rngs: nnx.Rngs):
        self.downscale = downscale
        channels = 2 * latent_channels + MASKS * downscale**2
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
    """How much of each pixel of the result is the warped reference's own, which no autoencoder has blurred."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 16):
        self.conv_in = nnx.Conv(9 + MASKS, channels, (5, 5), padding=2, rngs=rngs)
        self.conv_out = nnx.Conv(
            channels, 1, (5, 5), padding=2, kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.constant(CLOSED), rngs=rngs,
        )  # fmt: skip

    def __call__(
        self,
        images: Float[Array, "b H W 3"],
        warped: Float[Array, "b H W 3"],
        background: Float[Array, "b H W 3"],
        masks: Float[Array, "b H W 2"],
    ) -> Float[Array, "b H W 3"]:
        """Decoded pictures, and what the guider saw, pictures in [-1, 1] -> pictures."""
        seen = jnp.concatenate([images, warped, background, masks], -1)
        share = nnx.sigmoid(self.conv_out(nnx.silu(self.conv_in(seen))))
        return images + share * (warped - images)
