"""Attention on NVIDIA GPUs: compiled for one that is not there as far as that goes, and its arithmetic by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from animate_jax.models import attention
from animate_jax.models.kernels import cudnn

pytestmark = pytest.mark.compiles

HEADS = 2


@pytest.fixture
def on_gpu(monkeypatch):
    """An A100 with cuDNN 9.10, as far as tracing looks."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda version: float(version) <= 8.0)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda version: False)


def shapes(tokens, width, dtype):
    own, lent = (2, 3, tokens, HEADS * width), (2, tokens, HEADS * width)
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in (own, own, own, lent, lent)]


@pytest.mark.parametrize("tokens, width, dtype, kernel", [
    (128, 40, jnp.bfloat16, True), (128, 80, jnp.float16, True),
    (128, 160, jnp.bfloat16, False),  # too wide for an A100
    (128, 40, jnp.float32, False), (24, 40, jnp.bfloat16, False),
])  # fmt: skip
def test_the_kernel_is_called_where_it_can_be(tokens, width, dtype, kernel, on_gpu):
    def both(q, k, v, rk, rv):
        mask = jnp.array([True, False])
        return attention.attend(q, k, v, HEADS) + attention.attend_with_reference(q, k, v, rk, rv, HEADS, mask)

    text = jax.jit(both).trace(*shapes(tokens, width, dtype)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__cudnn$fmhaSoftmax") == (2 if kernel else 0)


@pytest.mark.parametrize("mask", [None, [True, False]])
def test_it_computes_the_same(mask, monkeypatch):
    by_xla = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, implementation, **more: by_xla(*x, **more))
    random = np.random.default_rng(0)
    q, k, v, rk, rv = (jnp.asarray(random.normal(size=x.shape), x.dtype) for x in shapes(6, 4, jnp.float32))
    mask = mask and jnp.array(mask)
    got, want = (
        cudnn.attend(q, k, v, HEADS, (rk, rv), mask),
        attention.attend_with_reference(q, k, v, rk, rv, HEADS, mask),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cudnn.attend(q, k, v, HEADS), attention.attend(q, k, v, HEADS), rtol=1e-5, atol=1e-6)
