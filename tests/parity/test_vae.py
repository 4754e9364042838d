"""AutoencoderKL against diffusers', random weights, fp32."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from animate_jax.config import ModelConfig, VAEConfig
from animate_jax.models.params import merge_model, split_model
from animate_jax.models.vae import AutoencoderKL
from animate_jax.torch_weights.convert import from_torch, match_keys

pytestmark = pytest.mark.compiles


def torch_vae(config: VAEConfig) -> diffusers.AutoencoderKL:
    """diffusers' module with random weights; norms, which start as identities, are made random too."""
    torch.manual_seed(0)
    levels = len(config.block_out_channels)
    model = diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=config.scaling_factor,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def error(ours, theirs) -> float:
    """Largest difference relative to the largest value; theirs is NCHW."""
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(config: VAEConfig, height: int, width: int, tolerance: float) -> None:
    theirs = torch_vae(config)
    graphdef, abstract = split_model(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))))
    state_dict = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    params = jax.tree.map(jnp.asarray, from_torch(match_keys(state_dict, abstract)))
    images = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
        decoded = theirs.decode(posterior.mean).sample

    mean, log_variance = jax.jit(lambda p, x: merge_model(graphdef, p).encode(x))(params, images)
    assert error(mean, posterior.mean) < tolerance
    assert error(log_variance, posterior.logvar) < tolerance

    latents = posterior.mean.numpy().transpose(0, 2, 3, 1)
    assert error(jax.jit(lambda p, x: merge_model(graphdef, p).decode(x))(params, latents), decoded) < tolerance


@pytest.mark.parametrize("size", [(64, 48), (40, 24)], ids=["even", "odd"])
def test_tiny(size):
    config = dataclasses.replace(ModelConfig.tiny().vae, patch_shortcut=False)
    compare(config, *size, tolerance=1e-5)


def test_patch_shortcut_starts_as_an_orthonormal_projection():
    """Fresh, the small autoencoder is exactly its linear part: flat patches come back, and twice is once."""
    model = AutoencoderKL(ModelConfig.tiny().vae, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 16, 24, 3)), jnp.float32)
    once = model.decode(model.encode(images)[0])
    np.testing.assert_allclose(model.decode(model.encode(once)[0]), once, atol=1e-5)
    flat = jnp.broadcast_to(jnp.float32([0.3, -0.5, 0.9]), images.shape)
    np.testing.assert_allclose(model.decode(model.encode(flat)[0]), flat, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 48), (40, 56)], ids=["even", "odd"])
def test_sd15(size):
    compare(VAEConfig(), *size, tolerance=2e-5)  # the wide decoder's rounding reaches 7e-6


@pytest.fixture(scope="module")
def small() -> AutoencoderKL:
    config = VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.25)
    graphdef, abstract = split_model(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    return merge_model(graphdef, {k: jnp.asarray(random.normal(0, 0.1, x.shape), x.dtype) for k, x in abstract.items()})


def test_scaling_factor_applies_to_latents_only(small):
    images = np.random.default_rng(1).uniform(-1, 1, (1, 6, 10, 3)).astype(np.float32)

    @jax.jit
    def both_ways(images):
        mean, _ = small.encode(images)
        latents = small.to_latents(images)
        return mean, latents, small.decode(mean), small.to_images(latents)

    mean, latents, decoded, images_again = both_ways(images)
    np.testing.assert_allclose(latents, mean * 0.25, rtol=1e-6)
    np.testing.assert_allclose(images_again, decoded, rtol=1e-5, atol=1e-6)


def test_log_variance_is_clipped(small):
    graphdef, params = split_model(small)
    params["quant_conv.bias"] = jnp.array([0, 0, 0, 0, 1e3, 1e3, -1e3, -1e3], jnp.float32)
    _, log_variance = jax.jit(merge_model(graphdef, params).encode)(jnp.zeros((1, 4, 4, 3)))
    assert set(np.unique(log_variance)) == {-30.0, 20.0}


def test_sides_must_be_multiples_of_the_downscale(small):
    with pytest.raises(ValueError, match="11x6; both sides must be multiples of 2"):
        small.encode(jnp.zeros((1, 6, 11, 3)))


def test_bfloat16_stays_bfloat16(small):
    graphdef, params = split_model(small)
    model = merge_model(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    latents = jax.eval_shape(model.to_latents, jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.bfloat16))
    assert latents.dtype == jax.eval_shape(model.to_images, latents).dtype == jnp.bfloat16
