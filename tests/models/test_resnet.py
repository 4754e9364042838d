"""The cheap convolution of a doubled picture is the expensive one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from animate_jax.models.resnet import Upsample2D

pytestmark = pytest.mark.compiles


def test_convolution_of_a_doubled_picture():
    upsample = Upsample2D(3, rngs=nnx.Rngs(0))
    upsample.conv.bias[...] = jnp.array([1.0, -2.0, 3.0])
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4, 3))
    expected = upsample.conv(x.repeat(2, 2).repeat(2, 3))
    np.testing.assert_allclose(upsample(x, (10, 8)), expected, rtol=1e-5, atol=1e-5)
