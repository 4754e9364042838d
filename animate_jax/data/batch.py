"""What a training step is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float, Float32, UInt8

from animate_jax.config import TrainConfig
from animate_jax.presets import preset_of


class Batch(NamedTuple):
    """B clips of one person each: a reference image, and F target frames with their poses.

    NumPy arrays with this process's rows as the loader makes them, global arrays after `to_devices`. Images are RGB in
    0..255; what a run does not need is None.
    """

    reference_pose: UInt8[Array, "b h w 3"]  # drawn, as `poses`
    poses: UInt8[Array, "b f h w 3"]
    masks: UInt8[Array, "b f h w"]  # how much of each pixel the person covers

    # Of images:
    reference: UInt8[Array, "b h w 3"] | None = None
    frames: UInt8[Array, "b f h w 3"] | None = None
    clip_pixels: Float32[Array, "b s s 3"] | None = None  # the reference, normalized for CLIP

    # Of encoded frames (data/latents.py), in place of these: the posterior's mean and log variance, CLIP's embedding.
    reference_moments: Float[Array, "b y x m"] | None = None
    moments: Float[Array, "b f y x m"] | None = None
    clip_embedding: Float[Array, "b d"] | None = None

    # For models with `appearance` (pose/warp.py): the reference without the person, the person warped into the poses,
    # and the masks of both.
    background: UInt8[Array, "b h w 3"] | None = None
    warp: UInt8[Array, "b f h w 3"] | None = None
    warp_masks: UInt8[Array, "b f h w 2"] | None = None

    @classmethod
    def abstract(cls, config: TrainConfig, sharding: Sharding | None = None, encoded: bool = False) -> Batch:
        """Shapes and dtypes (`jax.ShapeDtypeStruct`) of the batches of all processes together.

        Args:
            encoded: of frames that were encoded once, in float16.
        """
        preset, frames = preset_of(config), config.data.frames
        image = (preset.frames.height, preset.frames.width)

        def array(*shape: int, dtype: jax.typing.DTypeLike = jnp.uint8) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((config.data.batch, *shape), dtype, sharding=sharding)

        fields: dict[str, Any] = {
            "reference_pose": array(*image, 3),
            "poses": array(frames, *image, 3),
            "masks": array(frames, *image),
        }
        if encoded:
            scale, channels = preset.model.vae.downscale, preset.model.vae.latent_channels
            moments = (image[0] // scale, image[1] // scale, 2 * channels)
            fields["reference_moments"] = array(*moments, dtype=jnp.float16)
            fields["moments"] = array(frames, *moments, dtype=jnp.float16)
            fields["clip_embedding"] = array(preset.model.image_encoder.projection_dim, dtype=jnp.float16)
        else:
            side = preset.model.image_encoder.image_size
            fields["reference"], fields["frames"] = array(*image, 3), array(frames, *image, 3)
            fields["clip_pixels"] = array(side, side, 3, dtype=jnp.float32)
        if preset.model.unet.appearance != "none":
            fields["background"], fields["warp"] = array(*image, 3), array(frames, *image, 3)
            fields["warp_masks"] = array(frames, *image, 2)
        return cls(**fields)
