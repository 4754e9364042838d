"""The reference image as one token: transformers' CLIPVisionModelWithProjection, with its names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from animate_jax.config import ImageEncoderConfig
from animate_jax.models.attention import scores

Tokens = Float[Array, "batch tokens channels"]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def _layer_norm(channels: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class Embeddings(nnx.Module):
    """A class token and the image's patches, each with its learned position."""

    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        width, patch = config.hidden_size, (config.patch_size, config.patch_size)
        self.class_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.patch_embedding = nnx.Conv(
            3, width, kernel_size=patch, strides=patch, padding="VALID", use_bias=False, rngs=rngs
        )
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.position_embedding = nnx.Embed(tokens, width, rngs=rngs)

    def __call__(self, pixel_values: Float[Array, "batch size size 3"]) -> Tokens:
        patches = self.patch_embedding(pixel_values)  # [B, S/patch, S/patch, C]
        batch, _, _, width = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (batch, 1, width))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, width)], axis=1)
        return tokens + self.position_embedding.embedding[...].astype(patches.dtype)


class SelfAttention(nnx.Module):
    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        def heads(features: Tokens) -> Float[Array, "batch heads tokens head_width"]:
            return features.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        weights = jax.nn.softmax(scores(q, k)).astype(v.dtype)  # [B, heads, N, N]
        return self.out_proj(jnp.matmul(weights, v).swapaxes(1, 2).reshape(x.shape))


class MLP(nnx.Module):
    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        return self.fc2(quick_gelu(self.fc1(x)))


class EncoderLayer(nnx.Module):
    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = _layer_norm(config.hidden_size, rngs)
        self.self_attn = SelfAttention(config, rngs=rngs)
        self.layer_norm2 = _layer_norm(config.hidden_size, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: Tokens) -> Tokens:
        for layer in self.layers:
            x = layer(x)
        return x


class VisionTransformer(nnx.Module):
    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.pre_layrnorm = _layer_norm(config.hidden_size, rngs)  # transformers' spelling
        self.encoder = Encoder(config, rngs=rngs)
        self.post_layernorm = _layer_norm(config.hidden_size, rngs)

    def __call__(self, pixel_values: Float[Array, "batch size size 3"]) -> Float[Array, "batch channels"]:
        tokens = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))
        return self.post_layernorm(tokens[:, 0])


class CLIPVisionModelWithProjection(nnx.Module):
    """`ImageEncoderConfig()` is CLIP ViT-L/14; `ModelConfig.tiny().image_encoder` the small one."""

    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
        self.vision_model = VisionTransformer(config, rngs=rngs)
        self.visual_projection = nnx.Linear(config.hidden_size, config.projection_dim, use_bias=False, rngs=rngs)

    def __call__(self, pixel_values: Float[Array, "batch size size 3"]) -> Float[Array, "batch projection"]:
        """`image_embeds`, not normalized, of images prepared by `video.clip_image.clip_pixels`."""
        return self.visual_projection(self.vision_model(pixel_values))
