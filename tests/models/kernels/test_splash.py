"""The TPU attention kernel, interpreted on the CPU, against the plain softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.models import attention
from animate_jax.models.kernels import splash

pytestmark = pytest.mark.compiles


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    make = functools.partial(splash.kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash.kernel, "make_splash_mha", make)


def arrays(*shapes):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def test_it_is_for_tpus_only():
    (query,) = arrays((1, 1, 128, 8))
    assert not splash.is_supported(query)


@pytest.mark.parametrize("mask", [None, [True, False]], ids=["all rows", "the first row only"])
def test_equals_reference_attention_and_its_gradients(mask):
    own, lent, heads = (2, 3, 128, 16), (2, 128, 16), 2
    inputs = arrays(own, own, own, lent, lent)
    mask = mask and jnp.array(mask)  # rows that see their reference

    def plain(q, k, v, rk, rv):
        return attention.attend_with_reference(q, k, v, rk, rv, heads, mask)

    def kernel(q, k, v, rk, rv):
        return splash.attend(q, k, v, heads, (rk, rv), mask)

    def value_and_grads(function):
        weights = arrays(own)[0]
        return jax.jit(jax.value_and_grad(lambda *x: (function(*x) * weights).sum(), argnums=tuple(range(5))))(*inputs)

    value, grads = value_and_grads(kernel)
    expected, expected_grads = value_and_grads(plain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


def test_equals_self_attention():
    query, key, value = arrays(*[(3, 128, 8)] * 3)
    got = jax.jit(lambda *x: splash.attend(*x, 1))(query, key, value)
    np.testing.assert_allclose(got, attention.attend(query, key, value, 1), rtol=1e-5, atol=1e-6)
