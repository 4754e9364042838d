"""Attention and the layers around it, named as in diffusers. All attention is computed here."""

import math
import os

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.models.kernels import cudnn, splash

# Above so many scores, heads that have at least so many each are computed a few at a time: XLA:CPU then works in the
# cache instead of fetching fresh pages from the system, three to four times as fast at Stable Diffusion's size.
MAX_SCORES, MIN_HEAD_SCORES = 2**23, 2**16


def attend(
    query: Float[Array, "*b n c"], key: Float[Array, "*b m c"], value: Float[Array, "*b m c"], heads: int
) -> Float[Array, "*b n c"]:
    """Softmax attention with scale 1/sqrt(c / heads).

    Written as contiguous batched matrix products: XLA:CPU runs `einsum` over a strided head axis many times slower.
    On TPU and GPU long sequences take a kernel that holds no score matrix.
    """
    if splash.is_supported(query):
        return splash.attend(query, key, value, heads)
    if cudnn.is_supported(query, heads):
        return cudnn.attend(query, key, value, heads)
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    if needs_chunking(q, k):
        return merge_heads(attend_chunked(q, k, v))
    weights = jax.nn.softmax(scores(q, k), axis=-1).astype(v.dtype)
    return merge_heads(weights @ v)


def attend_with_reference(
    query: Float[Array, "b f n c"],
    key: Float[Array, "b f n c"],
    value: Float[Array, "b f n c"],
    reference_key: Float[Array, "b m c"],
    reference_value: Float[Array, "b m c"],
    heads: int,
    mask: Bool[Array, " b"] | None = None,
) -> Float[Array, "b f n c"]:
    """Each frame attends to itself and to the reference image under one softmax (paper, section 3.2; the PyTorch
    implementations concatenate the keys [own | reference]). All frames share the reference's keys and values; only
    cuDNN needs a copy for each frame.

    Rows where `mask` is False do not attend to the reference.
    """
    if splash.is_supported(query):
        return splash.attend(query, key, value, heads, (reference_key, reference_value), mask)
    if cudnn.is_supported(query, heads):
        return cudnn.attend(query, key, value, heads, (reference_key, reference_value), mask)
    q, k, v = (split_heads(x, heads) for x in (query, key, value))  # [B, F, heads, N, D]
    rk, rv = (split_heads(x, heads) for x in (reference_key, reference_value))  # [B, heads, M, D]
    if needs_chunking(q, k, rk):
        return merge_heads(attend_chunked(q, k, v, (rk, rv), mask))
    frames, tokens, width = q.shape[1], q.shape[3], q.shape[4]

    def fold(x):  # all frames as one long query against the shared reference
        return x.swapaxes(1, 2).reshape(x.shape[0], heads, frames * tokens, -1)

    def unfold(x):
        return x.reshape(x.shape[0], heads, frames, tokens, -1).swapaxes(1, 2)

    own = scores(q, k)  # [B, F, heads, N, N]
    reference = scores(fold(q), rk)  # [B, heads, F*N, M]
    if mask is not None:
        reference = jnp.where(mask[:, None, None, None], reference, -jnp.inf)
    top = jnp.maximum(own.max(-1, keepdims=True), unfold(reference.max(-1, keepdims=True)))
    top = jax.lax.stop_gradient(top)
    own, reference = jnp.exp(own - top), jnp.exp(reference - fold(top))
    total = own.sum(-1, keepdims=True) + unfold(reference.sum(-1, keepdims=True))
    mixed = product(own.astype(v.dtype), v) + unfold(product(reference.astype(rv.dtype), rv))
    return merge_heads((mixed / total).astype(v.dtype)).reshape(*query.shape[:-1], heads * width)


def attend_temporal(
    query: Float[Array, "b f n c"], key: Float[Array, "b f n c"], value: Float[Array, "b f n c"], heads: int
) -> Float[Array, "b f n c"]:
    """Every pixel attends over the frames.

    On TPU the channels stay on the lanes, and a product with an indicator matrix sums over the channels of each head.
    Separate matrices of 40 channels by 24 frames would be padded to 128 by 32 and copied (docs/speed.md has the
    traffic).
    """
    if not splash.on_tpu():
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        return attend(query, key, value, heads).swapaxes(1, 2)
    width = query.shape[-1] // heads
    indicator = jnp.repeat(jnp.eye(heads, dtype=query.dtype), width, 0)  # [C, heads]
    wide = jnp.promote_types(query.dtype, jnp.float32)

    @jax.checkpoint  # otherwise the frames x frames products would be kept for the backward pass
    def attention(q: Array, k: Array, v: Array) -> Array:
        products = q[:, :, None].astype(wide) * k[:, None].astype(wide)
        # At its default precision a TPU would round the products to bfloat16.
        logits = jnp.matmul(products, indicator.astype(wide), precision="high") * width**-0.5  # [B, F, F, N, heads]
        weights = jax.nn.softmax(logits, 2).astype(v.dtype)
        return ((weights @ indicator.T) * v[:, None]).sum(2)

    return attention(query, key, value)


def needs_chunking(query: Float[Array, "*b n d"], *keys: Float[Array, "..."]) -> bool:
    """Whether one machine's cores should compute the heads in chunks instead of all scores at once.

    Not on several devices: each holds fewer scores, and chunks would move heads between devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if splash.on_tpu() or (not mesh.empty and mesh.size > 1):
        return False
    head_scores = query.shape[-2] * sum(key.shape[-2] for key in keys)
    return head_scores >= MIN_HEAD_SCORES and math.prod(query.shape[:-2]) * head_scores >= MAX_SCORES


def attend_chunked(
    q: Float[Array, "*b n d"],
    k: Float[Array, "*b n d"],
    v: Float[Array, "*b n d"],
    reference: tuple[Float[Array, "r h m d"], Float[Array, "r h m d"]] | None = None,
    mask: Bool[Array, " r"] | None = None,
) -> Float[Array, "*b n d"]:
    """Softmax attention, a few heads at a time.

    Args:
        q, k, v: with a reference, [r, frames, heads, n, d].
        reference: its keys and values, shared by the frames of a row.
        mask: rows where it is False do not attend to the reference.
    """
    count = math.prod(q.shape[:-2])
    flat_q, flat_k, flat_v = (x.reshape(count, *x.shape[-2:]) for x in (q, k, v))

    def attend_head(i: Array) -> Array:
        query, key, value = flat_q[i], flat_k[i], flat_v[i]
        if reference is not None:
            row, head = i // (q.shape[1] * q.shape[2]), i % q.shape[2]
            reference_key, reference_value = (x[row, head] for x in reference)
            key, value = jnp.concatenate([key, reference_key]), jnp.concatenate([value, reference_value])
        logits = scores(query, key)
        if mask is not None:
            own = jnp.arange(key.shape[0]) < k.shape[-2]
            logits = jnp.where(own | mask[row], logits, -jnp.inf)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        mixed = product(weights.astype(value.dtype), value) / weights.sum(-1, keepdims=True)
        return mixed.astype(value.dtype)

    batch_size = min(os.cpu_count() or 1, count)  # a head for each core
    return jax.lax.map(jax.checkpoint(attend_head), jnp.arange(count), batch_size=batch_size).reshape(q.shape)


def scores(q: Float[Array, "*b n d"], k: Float[Array, "*b m d"]) -> Float[Array, "*b n m"]:
    """In float32 for any input: rounding large scores to bfloat16 would change the weights by several percent."""
    return product(q, k.swapaxes(-1, -2)) * (q.shape[-1] ** -0.5)


def product(a: Float[Array, "*b n d"], b: Float[Array, "*c d m"]) -> Float[Array, "*e n m"]:
    """In float32, the dtype of the sum, not rounded to the inputs' dtype."""
    return jnp.matmul(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def split_heads(x: Float[Array, "*b n c"], heads: int) -> Float[Array, "*b h n d"]:
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge_heads(x: Float[Array, "*b h n d"]) -> Float[Array, "*b n c"]:
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


class Attention(nnx.Module):
    """Query, key, value and output projections around `attend`."""

    def __init__(self, channels: int, context_channels: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = nnx.Linear(channels, channels, use_bias=False, rngs=rngs)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=False, rngs=rngs)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """Self-attention over the second to last axis."""
        return self.to_out[0](attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))

    def attend_temporal(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n c"]:
        """Self-attention of every pixel over the frames."""
        return self.to_out[0](attend_temporal(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))

    def attend_single_token(self, token: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Cross-attention to a single token. Exact: its softmax is 1, so the result is the same for every query."""
        return self.to_out[0](self.to_v(token))


class GEGLU(nnx.Module):
    def __init__(self, channels: int, inner: int, *, rngs: nnx.Rngs):
        self.proj = nnx.Linear(channels, 2 * inner, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        hidden, gate = jnp.split(self.proj(x), 2, axis=-1)
        return hidden * jax.nn.gelu(gate, approximate=False)


class Dropout(nnx.Module):
    """Does nothing, as Stable Diffusion's rate is 0; it keeps diffusers' numbering (`net.1`)."""

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return x


class FeedForward(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        layers = GEGLU(channels, 4 * channels, rngs=rngs), Dropout(), nnx.Linear(4 * channels, channels, rngs=rngs)
        self.net = nnx.List(layers)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        for layer in self.net:
            x = layer(x)
        return x
