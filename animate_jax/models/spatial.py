"""The spatial transformer, where the reference picture and the CLIP token enter."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.config import ReferenceUse
from animate_jax.models.attention import Attention, FeedForward, attend, attend_with_reference
from animate_jax.models.embeddings import image_positions
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.resnet import Conv1x1, GroupNorm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockConditioning:
    """What one spatial transformer needs of the character: constant over frames, steps and windows."""

    cross: Float[Array, "b c"]  # attention to the CLIP token
    reference_key: Float[Array, "b m c"] | None = None
    reference_value: Float[Array, "b m c"] | None = None
    added: Float[Array, "b m c"] | None = None  # instead of keys and values: added in place
    mask: Bool[Array, " b"] | None = None  # training: rows whose condition is kept; None keeps all


class BasicTransformerBlock(nnx.Module):
    def __init__(self, channels: int, heads: int, cross_channels: int, *, reference: ReferenceUse = "attention",
                 rngs: nnx.Rngs):  # fmt: skip
        self.reference = reference
        self.norm1 = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn1 = Attention(channels, channels, heads, rngs=rngs)
        # Attention to a single token needs neither norm2 nor queries and keys; they stay so that checkpoints
        # of the PyTorch peers go in and out whole.
        self.norm2 = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn2 = Attention(channels, cross_channels, heads, rngs=rngs)
        self.norm3 = nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)
        if reference == "addition":  # a fresh one changes nothing, as ControlNet's
            self.reference_proj = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def condition(self, token: Float[Array, "b d"], reference: Float[Array, "b m c"] | None,
                  mask: Bool[Array, " b"] | None) -> BlockConditioning:  # fmt: skip
        cross = self.attn2.attend_single_token(token if mask is None else jnp.where(mask[:, None], token, 0))
        if reference is None:
            return BlockConditioning(cross)
        if self.reference == "addition":
            added = self.reference_proj(reference)
            return BlockConditioning(cross, added=added if mask is None else jnp.where(mask[:, None, None], added, 0))
        return BlockConditioning(cross, self.attn1.to_k(reference), self.attn1.to_v(reference), mask=mask)

    def __call__(self, x: Float[Array, "r f n c"], condition: BlockConditioning
                 ) -> tuple[Float[Array, "r f n c"], Float[Array, "r f n c"]]:  # fmt: skip
        """Returns the hidden states and the normed input of self-attention: what ReferenceNet lends.

        Rows may be pairs of classifier-free guidance (`guidance_pairs`): the unconditional row sees no reference and a
        zero CLIP token, as in the PyTorch implementations.
        """
        normed = self.norm1(x)
        x = x + self.attend_to_reference(normed, condition)
        guided = is_paired(x, condition.cross)
        if condition.added is not None:
            added = condition.added[:, None]
            x = x + (pair(jnp.zeros_like(added), added) if guided else added)
        cross = condition.cross
        if guided:
            unconditional = jnp.broadcast_to(self.attn2.to_out[0].bias[...].astype(cross.dtype), cross.shape)
            cross = pair(unconditional, cross)
        x = x + cross[:, None, None]
        return x + self.ff(self.norm3(x)), normed

    def attend_to_reference(self, x: Float[Array, "r f n c"], condition: BlockConditioning) -> Float[Array, "r f n c"]:
        attn, key, value = self.attn1, condition.reference_key, condition.reference_value
        if key is None:
            return attn(x)
        qkv = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        if not is_paired(x, key):
            return attn.to_out[0](attend_with_reference(*qkv, key, value, attn.heads, condition.mask))
        unconditional, conditional = zip(*map(unpair, qkv), strict=True)
        mixed = attend_with_reference(*conditional, key, value, attn.heads, condition.mask)
        return attn.to_out[0](pair(attend(*unconditional, attn.heads), mixed))


class Transformer2DModel(nnx.Module):
    def __init__(self, channels: int, heads: int, cross_channels: int, groups: int, *,
                 position_embedding: bool = False, reference: ReferenceUse = "attention", rngs: nnx.Rngs):  # fmt: skip
        self.norm = GroupNorm(channels, groups, epsilon=1e-6)
        self.proj_in = Conv1x1(channels, channels, rngs=rngs)
        block = BasicTransformerBlock(channels, heads, cross_channels, reference=reference, rngs=rngs)
        self.transformer_blocks = nnx.List([block])
        self.proj_out = Conv1x1(channels, channels, rngs=rngs)
        self.position_embedding = position_embedding

    def __call__(self, x: Float[Array, "r f h w c"], condition: BlockConditioning
                 ) -> tuple[Float[Array, "r f h w c"], Float[Array, "r f n c"]]:  # fmt: skip
        rows, frames, height, width, channels = x.shape
        hidden = self.proj_in(self.norm(x))
        if self.position_embedding:
            hidden = hidden + jnp.asarray(image_positions(height, width, channels), hidden.dtype)
        hidden, lent = self.transformer_blocks[0](hidden.reshape(rows, frames, height * width, channels), condition)
        return x + self.proj_out(hidden.reshape(x.shape)), lent
