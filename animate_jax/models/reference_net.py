"""ReferenceNet: a second UNet that reads the reference image (paper, section 3.2)."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from animate_jax.config import UNetConfig
from animate_jax.models.unet import UNet


class ReferenceNet(UNet):
    """Without temporal layers and output convolution. jit removes the layers that follow the last feature."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        reference_config = dataclasses.replace(config, reference="attention")
        super().__init__(reference_config, motion=False, head=False, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"],
        token: Float[Array, "b d"],
        pose: Float[Array, "b h w e"] | None = None,
    ) -> dict[str, Float[Array, "b _ _"]]:
        """Scaled latents of the reference image and its CLIP token -> features by the path of a spatial transformer.

        The paper and the PyTorch implementations run it at timestep 0, on clean latents, once per video.
        """
        pose = None if pose is None else pose[:, None]
        conditioning = self.precompute_conditioning(token)
        _, features, _ = super().__call__(latents[:, None], timesteps[:, None], conditioning, pose)
        return {path: tokens[:, 0] for path, tokens in features.items()}
