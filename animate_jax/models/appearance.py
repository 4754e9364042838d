"""The warped reference as a condition beside the pose, from which latents and pixels may be copied.

An extension of ours, not in the paper. `UNetConfig.appearance` switches it on; at initialization its layers do not
change the predictions of weights trained without it.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

NUM_MASKS = 2  # the person's share of a pixel, and the confidence of the warp
INITIAL_LOGIT = -3.0  # of the share that is copied from the warp


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
    """Predicts the share of each output pixel that is copied from the warped reference, which no autoencoder has
    blurred."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 16):
        self.conv_in = nnx.Conv(9 + NUM_MASKS, channels, (5, 5), padding=2, rngs=rngs)
        zeros, bias = nnx.initializers.zeros, nnx.initializers.constant(INITIAL_LOGIT)
        self.conv_out = nnx.Conv(channels, 1, (5, 5), padding=2, kernel_init=zeros, bias_init=bias, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "b H W 3"],
        warped: Float[Array, "b H W 3"],
        background: Float[Array, "b H W 3"],
        masks: Float[Array, "b H W 2"],
    ) -> Float[Array, "b H W 3"]:
        """Decoded images, the warped reference and its background, all in [-1, 1], and masks in [0, 1] -> images."""
        inputs = jnp.concatenate([images, warped, background, masks], -1)
        share = nnx.sigmoid(self.conv_out(nnx.silu(self.conv_in(inputs))))
        return images + share * (warped - images)
