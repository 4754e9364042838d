"""ReferenceNet: the denoising UNet's twin that reads the reference picture (paper, section 3.2)."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from animate_jax.config import UNetConfig
from animate_jax.models.unet import UNet

# jit drops what follows the last lent feature, so the tail of the twin costs nothing.


class ReferenceNet(UNet):
    """No temporal layers and no head; its features are a value, not a side effect."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        lender = dataclasses.replace(config, reference="attention")
        super().__init__(lender, motion=False, head=False, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"],
        token: Float[Array, "b d"],
        pose: Float[Array, "b h w e"] | None = None,
    ) -> dict[str, Float[Array, "b _ _"]]:
        """Scaled latents of the reference picture and its CLIP token -> tokens lent by each spatial transformer.

        The peers (and the paper) run it at timestep 0, on clean latents, once per video.
        """
        pose = None if pose is None else pose[:, None]
        _, lent, _ = super().__call__(latents[:, None], timesteps[:, None], self.condition(token), pose)
        return {path: tokens[:, 0] for path, tokens in lent.items()}
