"""The spatial transformer, which attends to the reference image and to the CLIP token."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.config import ReferenceUse
from animate_jax.models.attention import Attention, FeedForward, attend, attend_with_reference
from animate_jax.models.conditioning import BlockConditioning
from animate_jax.models.embeddings import image_positions
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.resnet import Conv1x1, GroupNorm


class BasicTransformerBlock(nnx.Module):
    def __init__(
        self,
        channels: int,
        heads: int,
        cross_channels: int,
        *,
        reference: ReferenceUse = "attention",
        rngs: nnx.Rngs,
    ):
        self.reference = reference
        self.norm1 = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn1 = Attention(channels, channels, heads, rngs=rngs)
        # Attention to a single token needs neither norm2 nor queries and keys; they are kept so that PyTorch
        # checkpoints are imported and exported whole.
        self.norm2 = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn2 = Attention(channels, cross_channels, heads, rngs=rngs)
        self.norm3 = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)
        if reference == "addition":  # zero at initialization, as ControlNet's
            self.reference_proj = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def precompute_conditioning(
        self,
        token: Float[Array, "b d"],
        reference_features: Float[Array, "b m c"] | None,
        mask: Bool[Array, " b"] | None,
    ) -> BlockConditioning:
        """See `UNet.precompute_conditioning`."""
        clip_residual = self.attn2.attend_single_token(token if mask is None else jnp.where(mask[:, None], token, 0))
        if reference_features is None:
            return BlockConditioning(clip_residual)
        if self.reference == "addition":
            features = self.reference_proj(reference_features)
            features = features if mask is None else jnp.where(mask[:, None, None], features, 0)
            return BlockConditioning(clip_residual, additive_features=features)
        key, value = self.attn1.to_k(reference_features), self.attn1.to_v(reference_features)
        return BlockConditioning(clip_residual, key, value, mask=mask)

    def __call__(
        self, x: Float[Array, "r f n c"], conditioning: BlockConditioning
    ) -> tuple[Float[Array, "r f n c"], Float[Array, "r f n c"]]:
        """Returns the hidden states and the normed input of self-attention: in ReferenceNet, the reference features.

        Rows may be pairs of classifier-free guidance (`guidance_pairs`): the unconditional row has no reference and a
        zero CLIP token, as in the PyTorch implementations.
        """
        normed = self.norm1(x)
        x = x + self.attend_to_reference(normed, conditioning)
        guided = is_paired(x, conditioning.clip_residual)
        if conditioning.additive_features is not None:
            features = conditioning.additive_features[:, None]
            x = x + (pair(jnp.zeros_like(features), features) if guided else features)
        residual = conditioning.clip_residual
        if guided:
            bias = self.attn2.to_out[0].bias
            assert bias is not None
            unconditional = jnp.broadcast_to(bias[...].astype(residual.dtype), residual.shape)
            residual = pair(unconditional, residual)
        x = x + residual[:, None, None]
        return x + self.ff(self.norm3(x)), normed

    def attend_to_reference(
        self, x: Float[Array, "r f n c"], conditioning: BlockConditioning
    ) -> Float[Array, "r f n c"]:
        attn, key, value = self.attn1, conditioning.reference_key, conditioning.reference_value
        if key is None or value is None:
            return attn(x)
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        if not is_paired(x, key):
            return attn.to_out[0](attend_with_reference(q, k, v, key, value, attn.heads, conditioning.mask))
        (q_unconditional, q), (k_unconditional, k), (v_unconditional, v) = unpair(q), unpair(k), unpair(v)
        mixed = attend_with_reference(q, k, v, key, value, attn.heads, conditioning.mask)
        return attn.to_out[0](pair(attend(q_unconditional, k_unconditional, v_unconditional, attn.heads), mixed))


class Transformer2DModel(nnx.Module):
    def __init__(
        self,
        channels: int,
        heads: int,
        cross_channels: int,
        groups: int,
        *,
        position_embedding: bool = False,
        reference: ReferenceUse = "attention",
        rngs: nnx.Rngs,
    ):
        self.norm = GroupNorm(channels, groups, epsilon=1e-6)
        self.proj_in = Conv1x1(channels, channels, rngs=rngs)
        block = BasicTransformerBlock(channels, heads, cross_channels, reference=reference, rngs=rngs)
        self.transformer_blocks = nnx.List([block])
        self.proj_out = Conv1x1(channels, channels, rngs=rngs)
        self.position_embedding = position_embedding

    def __call__(
        self, x: Float[Array, "r f h w c"], conditioning: BlockConditioning
    ) -> tuple[Float[Array, "r f h w c"], Float[Array, "r f n c"]]:
        """See `BasicTransformerBlock`."""
        rows, frames, height, width, channels = x.shape
        hidden = self.proj_in(self.norm(x))
        if self.position_embedding:
            hidden = hidden + jnp.asarray(image_positions(height, width, channels), hidden.dtype)
        hidden = hidden.reshape(rows, frames, height * width, channels)
        hidden, attention_input = self.transformer_blocks[0](hidden, conditioning)
        return x + self.proj_out(hidden.reshape(x.shape)), attention_input
