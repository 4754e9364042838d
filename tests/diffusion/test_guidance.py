import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.diffusion.guidance import apply_guidance


def test_guidance_extrapolates_from_unconditional_to_conditional():
    unconditional, conditional = jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 0.0]])
    np.testing.assert_array_equal(apply_guidance(unconditional, conditional, 0.0), unconditional)
    np.testing.assert_array_equal(apply_guidance(unconditional, conditional, 1.0), conditional)
    np.testing.assert_array_equal(apply_guidance(unconditional, conditional, 3.5), [[4.5, -5.0]])


@pytest.mark.compiles  # only loads PyTorch, but that takes as long
@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescaled_guidance_is_diffusers(rescale):
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    unconditional, conditional = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    guided = torch.from_numpy(unconditional + 3.5 * (conditional - unconditional))
    expected = rescale_noise_cfg(guided, torch.from_numpy(conditional), rescale).numpy()
    ours = apply_guidance(unconditional, conditional, 3.5, rescale)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
