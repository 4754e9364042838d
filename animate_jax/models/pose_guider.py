"""The Pose Guider: features of pose images, added after the UNet's first convolution."""

import itertools

from flax import nnx
from jaxtyping import Array, Float

from animate_jax.config import PoseGuiderConfig


class PoseGuider(nnx.Module):
    """ControlNet's conditioning stack, as in the PyTorch implementations. SiLU follows every convolution but the last,
    which is zero at initialization; the total stride is 2 ** (levels - 1)."""

    def __init__(self, config: PoseGuiderConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels
        self.conv_in = nnx.Conv(3, widths[0], (3, 3), padding=1, rngs=rngs)
        blocks = []
        for narrow, wide in itertools.pairwise(widths):
            blocks.append(nnx.Conv(narrow, narrow, (3, 3), padding=1, rngs=rngs))
            blocks.append(nnx.Conv(narrow, wide, (3, 3), strides=2, padding=1, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.conv_out = nnx.Conv(
            widths[-1],
            config.conditioning_channels,
            (3, 3),
            padding=1,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, pose: Float[Array, "*b H W 3"]) -> Float[Array, "*b h w c"]:
        """Pose images in [0, 1] -> features at latent size."""
        x = nnx.silu(self.conv_in(pose))
        for conv in self.blocks:
            x = nnx.silu(conv(x))
        return self.conv_out(x)
