"""The one place where attention is computed, and the layers around it, named as in diffusers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from animate_jax.models import splash


def attend(query: Float[Array, "*b n c"], key: Float[Array, "*b m c"], value: Float[Array, "*b m c"],
           heads: int) -> Float[Array, "*b n c"]:  # fmt: skip
    """Softmax attention with scale 1/sqrt(c / heads).

    Written as contiguous batched matrix products: XLA:CPU runs `einsum` over a strided head axis many times slower.
    On TPU long sequences take a kernel that holds no score matrix.
    """
    if splash.usable(query):
        return splash.attend(query, key, value, heads)
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    weights = jax.nn.softmax(scores(q, k), axis=-1).astype(v.dtype)
    return merge_heads(weights @ v)


def attend_with_reference(
    query: Float[Array, "b f n c"], key: Float[Array, "b f n c"], value: Float[Array, "b f n c"],
    reference_key: Float[Array, "b m c"], reference_value: Float[Array, "b m c"], heads: int,
    mask: Bool[Array, " b"] | None = None,
) -> Float[Array, "b f n c"]:  # fmt: skip
    """Each frame attends to itself and to the reference picture under one softmax (paper, section 3.2; the peers'
    keys [own | reference]). The reference's keys and values are shared by all frames and never copied per frame.

    Rows where `mask` is False do not see the reference.
    """
    if splash.usable(query):
        return splash.attend(query, key, value, heads, (reference_key, reference_value), mask)
    q, k, v = (split_heads(x, heads) for x in (query, key, value))  # [B, F, heads, N, D]
    rk, rv = (split_heads(x, heads) for x in (reference_key, reference_value))  # [B, heads, M, D]
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
    mixed = own.astype(v.dtype) @ v + unfold(reference.astype(rv.dtype) @ rv)
    return merge_heads(mixed / total.astype(v.dtype)).reshape(*query.shape[:-1], heads * width)


def scores(q: Float[Array, "*b n d"], k: Float[Array, "*b m d"]) -> Float[Array, "*b n m"]:
    return (q @ k.swapaxes(-1, -2)).astype(jnp.float32) * (q.shape[-1] ** -0.5)


def split_heads(x: Float[Array, "*b n c"], heads: int) -> Float[Array, "*b h n d"]:
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge_heads(x: Float[Array, "*b h n d"]) -> Float[Array, "*b n c"]:
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


class Attention(nnx.Module):
    """Query, key, value and output projections; the products themselves are `attend`'s."""

    def __init__(self, channels: int, context_channels: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_q = nnx.Linear(channels, channels, use_bias=False, rngs=rngs)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=False, rngs=rngs)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=False, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """Self-attention over the second to last axis."""
        return self.to_out[0](attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))

    def of_one_token(self, token: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Cross-attention to a single token: its softmax is 1, so the answer is the same for every query. Exact."""
        return self.to_out[0](self.to_v(token))


class GEGLU(nnx.Module):
    def __init__(self, channels: int, inner: int, *, rngs: nnx.Rngs):
        self.proj = nnx.Linear(channels, 2 * inner, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        hidden, gate = jnp.split(self.proj(x), 2, axis=-1)
        return hidden * jax.nn.gelu(gate, approximate=False)


class Dropout(nnx.Module):
    """Keeps diffusers' numbering (`net.1`); Stable Diffusion's rate is 0."""

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return x


class FeedForward(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.net = nnx.List([
            GEGLU(channels, 4 * channels, rngs=rngs), Dropout(), nnx.Linear(4 * channels, channels, rngs=rngs),
        ])  # fmt: skip

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        for layer in self.net:
            x = layer(x)
        return x
