"""The whole model: what is computed once per video (`precompute_conditioning`) and at every step (`denoise`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.config import ModelConfig
from animate_jax.models.appearance import AppearanceBlend, AppearanceGuider
from animate_jax.models.conditioning import Conditioning
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.image_encoder import CLIPVisionModelWithProjection
from animate_jax.models.pose_guider import PoseGuider
from animate_jax.models.reference_net import ReferenceNet
from animate_jax.models.sharding import frames_are_sharded
from animate_jax.models.unet import UNet
from animate_jax.models.vae import AutoencoderKL


class AnimateAnyone(nnx.Module):
    """Parts are named as in the PyTorch implementations."""

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

    def precompute_conditioning(
        self,
        reference_latents: Float[Array, "b h w c"],
        clip_pixels: Float[Array, "b s s 3"] | Float[Array, "b d"],
        reference_pose: Float[Array, "b H W 3"] | None = None,
        mask: Bool[Array, " b"] | None = None,
    ) -> Conditioning:
        """The denoising UNet's conditioning on the character, once per video.

        Args:
            reference_latents: scaled VAE latents of the reference image.
            clip_pixels: the same image, CLIP-normalized, or its embedding by `image_encoder`.
            reference_pose: its pose image in [0, 1]; only models with a `reference_pose_guider` use it.
            mask: training's condition dropout, True keeps.
        """
        token = clip_pixels if clip_pixels.ndim == 2 else self.image_encoder(clip_pixels)
        pose = None
        if self.config.reference_pose_guider:
            assert reference_pose is not None, "this model takes the reference's pose"
            pose = self.reference_pose_guider(reference_pose)
        timesteps = jnp.zeros(reference_latents.shape[0], jnp.float32)
        reference_features = self.reference_unet(reference_latents, timesteps, token, pose)
        return self.denoising_unet.precompute_conditioning(token, reference_features, mask)

    def pose_features(
        self,
        poses: Float[Array, "*b H W 3"],
        warped: Float[Array, "*b h w c"] | None = None,
        background: Float[Array, "... h w c"] | None = None,
        masks: Float[Array, "*b H W 2"] | None = None,
    ) -> Float[Array, "*b h w d"]:
        """The denoising UNet's input for each frame, the same at every step.

        Args:
            poses: pose images in [0, 1].
            warped, background, masks: for models with `appearance`: scaled latents of the reference warped into those
                poses and of its background, and the masks of `pose.warp.LazyWarpedImages` in [0, 1].

        Raises:
            ValueError: a model with `appearance` is not given them.
        """
        features = self.pose_guider(poses)
        if self.config.unet.appearance == "none":
            return features
        if warped is None or background is None or masks is None:
            raise ValueError("this model needs the warped reference: give the result of Pipeline.warp")
        background = jnp.broadcast_to(background, warped.shape)
        features = features + self.appearance_guider(warped, background, masks)
        return jnp.concatenate([features, warped.astype(features.dtype)], -1)

    def denoise(
        self,
        x: Float[Array, "r f h w c"],
        timesteps: Float[Array, " r #f"],
        conditioning: Conditioning,
        pose: Float[Array, "#r #f h w d"],
        temporal: bool = True,
    ) -> Float[Array, "r f h w c"]:
        """The raw prediction (epsilon, v or x0, as trained). See `UNet.__call__`; `pose` is from `pose_features`."""
        return self._evaluate(x, timesteps, conditioning, pose, temporal, None)[0]

    def denoise_cached(
        self,
        x: Float[Array, "r f h w c"],
        timesteps: Float[Array, " r #f"],
        conditioning: Conditioning,
        pose: Float[Array, "#r #f h w d"],
        deep_features: Float[Array, "r f _ _ _"] | None = None,
    ) -> tuple[Float[Array, "r f h w c"], Float[Array, "r f _ _ _"]]:
        """`denoise`, and the deep features for the next steps (see `UNet.__call__`)."""
        return self._evaluate(x, timesteps, conditioning, pose, True, deep_features)

    def _evaluate(self, x, timesteps, conditioning, pose, temporal, deep_features):
        """Both halves of guidance at once; one after the other where the frames of a row are sharded: convolutions
        merge rows and frames, and with two rows every device would need all frames."""
        row = jax.tree.leaves(conditioning)[0]
        if not (is_paired(x, row) and frames_are_sharded()):
            prediction, _, features = self.denoising_unet(x, timesteps, conditioning, pose, temporal, deep_features)
            return prediction, features
        zero_token = jnp.zeros((len(row), self.config.unet.cross_attention_dim), x.dtype)
        inputs = (
            unpair(x),
            unpair(timesteps),
            (self.denoising_unet.precompute_conditioning(zero_token), conditioning),
            unpair(pose) if is_paired(pose, row) else (pose, pose),
            (temporal, temporal),
            (None, None) if deep_features is None else unpair(deep_features),
        )
        halves = []
        for half in zip(*inputs, strict=True):
            prediction, _, features = self.denoising_unet(*half)
            halves.append((prediction, features))
        return jax.tree.map(pair, *halves)
