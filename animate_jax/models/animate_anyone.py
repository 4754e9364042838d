"""The whole model: what is computed once per video (`condition`) and what is computed at every step (`denoise`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.config import ModelConfig
from animate_jax.models.appearance import AppearanceBlend, AppearanceGuider
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.image_encoder import CLIPVisionModelWithProjection
from animate_jax.models.pose_guider import PoseGuider
from animate_jax.models.reference_net import ReferenceNet
from animate_jax.models.sharding import frames_are_sharded
from animate_jax.models.unet import Conditioning, UNet
from animate_jax.models.vae import AutoencoderKL


class AnimateAnyone(nnx.Module):
    """Part names are the peers': `denoising_unet`, `reference_unet`, `pose_guider`, `image_encoder`, `vae`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.denoising_unet = UNet(config.unet, rngs=rngs)
        self.reference_unet = ReferenceNet(config.unet, rngs=rngs)
        self.pose_guider = PoseGuider(config.pose_guider, rngs=rngs)
        if config.reference_pose_guider:
            self.reference_pose_guider = PoseGuider(config.pose_guider, rngs=rngs)
        self.image_encoder = CLIPVisionModelWithProjection(config.image_encoder, rngs=rngs)
        self.vae = AutoencoderKL(config.vae, rngs=rngs)
        if config.unet.appearance == "warp":
            latent, channels = config.vae.latent_channels, config.pose_guider.conditioning_channels
            self.appearance_guider = AppearanceGuider(latent, config.vae.downscale, channels, rngs=rngs)
            self.appearance_blend = AppearanceBlend(rngs=rngs)

    def condition(
        self,
        reference_latents: Float[Array, "b h w c"],
        clip_pixels: Float[Array, "b s s 3"] | Float[Array, "b d"],
        reference_pose: Float[Array, "b H W 3"] | None = None,
        mask: Bool[Array, " b"] | None = None,
    ) -> Conditioning:
        """Everything the denoising UNet needs of the character, once per video.

        Args:
            reference_latents: scaled VAE latents of the reference picture.
            clip_pixels: the same picture, CLIP-normalised, or what `image_encoder` made of it.
            reference_pose: its own pose picture in [0, 1]; only models with a `reference_pose_guider` use it.
            mask: training's condition dropout, True keeps.
        """
        token = clip_pixels if clip_pixels.ndim == 2 else self.image_encoder(clip_pixels)
        pose = self.reference_pose_guider(reference_pose) if self.config.reference_pose_guider else None
        clean = jnp.zeros(reference_latents.shape[0], jnp.float32)
        reference = self.reference_unet(reference_latents, clean, token, pose)
        return self.denoising_unet.condition(token, reference, mask)

    def guide(
        self,
        poses: Float[Array, "*b H W 3"],
        warped: Float[Array, "*b h w c"] | None = None,
        background: Float[Array, "... h w c"] | None = None,
        masks: Float[Array, "*b H W 2"] | None = None,
    ) -> Float[Array, "*b h w d"]:
        """What the denoising UNet needs of each frame, the same at every step.

        Args:
            poses: pose pictures in [0, 1].
            warped, background, masks: only of models with `appearance`: scaled latents of the reference in those poses
                and of its background, and the masks of `pose.warp.LazyWarpedImages` in [0, 1].

        Raises:
            ValueError: a model with `appearance` is not given them.
        """
        features = self.pose_guider(poses)
        if self.config.unet.appearance == "none":
            return features
        if warped is None or background is None or masks is None:
            raise ValueError("this model sees the warped reference: give what Pipeline.warp makes")
        background = jnp.broadcast_to(background, warped.shape)
        features = features + self.appearance_guider(warped, background, masks)
        return jnp.concatenate([features, warped.astype(features.dtype)], -1)

    def denoise(
        self,
        x: Float[Array, "r f h w c"],
        timesteps: Float[Array, "r #f"],
        conditioning: Conditioning,
        pose: Float[Array, "#r #f h w d"],
        temporal: bool = True,
    ) -> Float[Array, "r f h w c"]:
        """The raw prediction (epsilon, v or x0, as trained). See `UNet.__call__`; `pose` comes from `guide`."""
        return self._evaluate(x, timesteps, conditioning, pose, temporal, None)[0]

    def denoise_cached(
        self,
        x: Float[Array, "r f h w c"],
        timesteps: Float[Array, "r #f"],
        conditioning: Conditioning,
        pose: Float[Array, "#r #f h w d"],
        deep: Float[Array, "r f _ _ _"] | None = None,
    ) -> tuple[Float[Array, "r f h w c"], Float[Array, "r f _ _ _"]]:
        """`denoise`, and the deep features that the next steps may use again (see `UNet.__call__`)."""
        return self._evaluate(x, timesteps, conditioning, pose, True, deep)

    def _evaluate(self, x, timesteps, conditioning, pose, temporal, deep):
        """Both halves of guidance together; one after the other where the frames of a row are divided over devices:
        convolutions merge rows and frames, and from two rows every device would need all frames."""
        row = jax.tree.leaves(conditioning)[0]
        if not (is_paired(x, row) and frames_are_sharded()):
            prediction, _, deep = self.denoising_unet(x, timesteps, conditioning, pose, temporal, deep)
            return prediction, deep
        nothing = jnp.zeros((len(row), self.config.unet.cross_attention_dim), x.dtype)
        conditionings = self.denoising_unet.condition(nothing), conditioning
        poses = unpair(pose) if is_paired(pose, row) else (pose, pose)
        deep_features = (None, None) if deep is None else unpair(deep)
        halves = []
        for x_, t, seen, pose_, deep_ in zip(
            unpair(x), unpair(timesteps), conditionings, poses, deep_features, strict=True
        ):
            prediction, _, deep = self.denoising_unet(x_, t, seen, pose_, temporal, deep_)
            halves.append((prediction, deep))
        return jax.tree.map(pair, *halves)
