"""Ways of computing the same attention: heads in turn, and over frames as on TPUs, against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.models import attention, splash

HEADS = 2


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


def heads_in_turn(monkeypatch):
    monkeypatch.setattr(attention, "MANY", 0)
    monkeypatch.setattr(attention, "LARGE", 0)


def test_heads_in_turn(monkeypatch):
    inputs = arrays(*[(2, 6, 8)] * 3)
    assert not attention.many(inputs[0], inputs[1])
    assert_same(lambda *x: attention.attend(*x, HEADS), inputs, monkeypatch, heads_in_turn)


@pytest.mark.parametrize("mask", [None, [True, False]])
def test_heads_in_turn_with_reference(mask, monkeypatch):
    inputs = arrays((2, 3, 6, 8), (2, 3, 6, 8), (2, 3, 6, 8), (2, 5, 8), (2, 5, 8))
    mask = None if mask is None else jnp.array(mask)
    assert_same(lambda *x: attention.attend_with_reference(*x, HEADS, mask), inputs, monkeypatch, heads_in_turn)


def test_only_large_heads_take_turns():
    """Many small ones, as in temporal layers, are one batched product."""
    small, large = jnp.zeros((9000, 8, 16, 2)), jnp.zeros((1, 9, 1000, 2))
    assert not attention.many(small, small)
    assert attention.many(large, large) and not attention.many(large[:, :8], large[:, :8])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not attention.many(large, large)


def test_over_frames_as_on_tpu(monkeypatch):
    inputs = arrays(*[(2, 4, 6, 8)] * 3)
    assert_same(
        lambda *x: attention.attend_over_frames(*x, HEADS), inputs, monkeypatch,
        lambda patch: patch.setattr(splash, "on_tpu", lambda: True),
    )  # fmt: skip
