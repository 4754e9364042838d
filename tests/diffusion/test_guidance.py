import jax.numpy as jnp
import numpy as np

from animate_jax.diffusion.guidance import guide


def test_guidance_extrapolates_from_unconditional_to_conditional():
    unconditional, conditional = jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])
    np.testing.assert_array_equal(guide(unconditional, conditional, 0.0), unconditional)
    np.testing.assert_array_equal(guide(unconditional, conditional, 1.0), conditional)
    np.testing.assert_array_equal(guide(unconditional, conditional, 3.5), [4.5, -5.0])
