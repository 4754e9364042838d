"""Ways of computing the same attention: heads in chunks, and over frames as on TPUs, against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from animate_jax.config import ImageEncoderConfig, VAEConfig
from animate_jax.models import attention, image_encoder, vae
from animate_jax.models.kernels import splash

pytestmark = pytest.mark.compiles

HEADS, WIDTH = 2, 320


def arrays(*shapes):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def value_and_grads(function, *inputs):
    return jax.jit(jax.value_and_grad(lambda *x: (function(*x) ** 3).sum(), argnums=tuple(range(len(inputs)))))(*inputs)


def assert_same(function, inputs, monkeypatch, change):
    value, grads = value_and_grads(function, *inputs)
    plain = function(*inputs)
    change(monkeypatch)
    np.testing.assert_allclose(function(*inputs), plain, rtol=1e-5, atol=1e-6)
    other, others = value_and_grads(lambda *x: function(*x), *inputs)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for got, want in zip(others, grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


def chunked_heads(monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", 0)
    monkeypatch.setattr(attention, "MIN_HEAD_SCORES", 0)


def test_heads_in_chunks(monkeypatch):
    inputs = arrays(*[(2, 6, 8)] * 3)
    assert not attention.needs_chunking(inputs[0], inputs[1])
    assert_same(lambda *x: attention.attend(*x, HEADS), inputs, monkeypatch, chunked_heads)


@pytest.mark.parametrize("mask", [None, [True, False]])
def test_heads_in_chunks_with_reference(mask, monkeypatch):
    inputs = arrays((2, 3, 6, 8), (2, 3, 6, 8), (2, 3, 6, 8), (2, 5, 8), (2, 5, 8))
    mask = None if mask is None else jnp.array(mask)
    assert_same(lambda *x: attention.attend_with_reference(*x, HEADS, mask), inputs, monkeypatch, chunked_heads)


def test_only_large_heads_are_chunked():
    """Many small ones, as in temporal layers, are one batched product."""
    small, large = jnp.zeros((9000, 8, 16, 2)), jnp.zeros((1, 9, 1000, 2))
    assert not attention.needs_chunking(small, small)
    assert attention.needs_chunking(large, large) and not attention.needs_chunking(large[:, :8], large[:, :8])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not attention.needs_chunking(large, large)


def test_over_frames_as_on_tpu(monkeypatch):
    inputs = arrays(*[(2, 4, 6, 8)] * 3)
    assert_same(
        lambda *x: attention.attend_temporal(*x, HEADS),
        inputs,
        monkeypatch,
        lambda patch: patch.setattr(splash, "on_tpu", lambda: True),
    )


def exact(query, key, value, heads):
    """In float64, from [..., tokens, channels]."""

    def split(x):
        x = np.asarray(x.astype(jnp.float32), np.float64)
        return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)

    q, k, v = map(split, (query, key, value))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    return mixed.swapaxes(-2, -3).reshape(query.shape), logits.std()


def of_module(module, *names):
    """The attention inside a module, without its norm and projections, which are called `names`."""
    query_of, key_of, value_of, output_of = names

    def attended(query, key, value):
        seen = []
        for name, array in {query_of: query, key_of: key, value_of: value}.items():
            object.__setattr__(module, name, lambda _, array=array: array)
        object.__setattr__(module, "group_norm", lambda x: x)

        def project(x):
            return seen.append(x) or x

        object.__setattr__(module, output_of, [project] if output_of == "to_out" else project)
        module(query[:, :, None] if output_of == "to_out" else query)
        return seen[0]

    return attended


def in_vae(*inputs):
    module = nnx.eval_shape(lambda: vae.Attention(WIDTH, VAEConfig(), rngs=nnx.Rngs(0)))
    return of_module(module, "to_q", "to_k", "to_v", "to_out")(*inputs)


def in_clip(*inputs):
    config = ImageEncoderConfig(hidden_size=WIDTH, num_attention_heads=HEADS)
    module = nnx.eval_shape(lambda: image_encoder.SelfAttention(config, rngs=nnx.Rngs(0)))
    return of_module(module, "q_proj", "k_proj", "v_proj", "out_proj")(*inputs)


def with_reference(query, key, value):
    """Half of the keys are the reference's."""
    half = key.shape[-2] // 2
    own, lent = (key[:, None, :half], value[:, None, :half]), (key[:, half:], value[:, half:])
    frames = query.reshape(query.shape[0], 2, -1, query.shape[-1])
    own = [jnp.repeat(x, 2, 1) for x in own]
    return attention.attend_with_reference(frames, *own, *lent, HEADS).reshape(query.shape)


def over_frames(query, key, value):
    return attention.attend_temporal(*(x[:, :, None] for x in (query, key, value)), HEADS)[:, :, 0]


def chunked(function):
    def in_chunks(*inputs):
        with pytest.MonkeyPatch.context() as patch:
            chunked_heads(patch)
            return function(*inputs)

    return in_chunks


def as_on_tpu(*inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "on_tpu", lambda: True)
        return over_frames(*inputs)


def attend(*inputs):
    return attention.attend(*inputs, HEADS)


@pytest.mark.parametrize("spread", [1, 4, 17])
@pytest.mark.parametrize(
    "function",
    [attend, chunked(attend), with_reference, chunked(with_reference), over_frames, as_on_tpu, in_vae, in_clip],
    ids=["plain", "in chunks", "reference", "reference in chunks", "frames", "frames on TPU", "VAE", "CLIP"],
)
def test_logits_are_not_rounded_to_bfloat16(function, spread):
    """Rounded before the softmax they give relative errors of .005, .012 and .021."""
    wide, value = arrays((2, 2, 64, WIDTH), (2, 64, WIDTH))
    query, key, value = (x.astype(jnp.bfloat16) for x in (*wide * spread**0.5, value))
    want, found = exact(query, key, value, 1 if function is in_vae else HEADS)
    assert found == pytest.approx(spread, rel=0.1)
    got = np.asarray(function(query, key, value).astype(jnp.float32))
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < 0.003
