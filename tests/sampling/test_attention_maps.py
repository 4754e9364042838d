"""What is shown of the inside is what the model computes."""

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.models.attention import merge_heads, split_heads
from animate_jax.models.params import abstract_model, merge_model
from animate_jax.sampling.attention_maps import block_features, reference_attention_maps
from animate_jax.sampling.pipeline import Pipeline

pytestmark = pytest.mark.compiles

PATH = "mid_block.attentions.0"


@pytest.fixture(scope="module")
def looked(micro_params, micro, compile_fast):
    pipeline = Pipeline(micro_params, micro)
    frames, poses = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 48, 3), np.uint8)
    conditioning = pipeline.precompute_conditioning(frames[0], poses[0], pipeline.animation_config())
    return pipeline, conditioning, block_features(pipeline, frames, poses, conditioning)


def test_features_of_every_transformer(looked):
    _, conditioning, found = looked
    assert set(found) == set(conditioning)
    assert found[PATH].shape == (3, 16 * 12, 8) and np.isfinite(found[PATH]).all()


def test_attention_to_the_reference_is_the_models(looked):
    """With the values it weighs, and what is left for the frame itself, it gives the layer's own output."""
    pipeline, conditioning, found = looked
    shares = reference_attention_maps(pipeline, found, conditioning, PATH)
    assert shares.shape == (3, 2, 16 * 12, 16 * 12)
    total = shares.sum(-1)
    assert (shares >= 0).all() and 0 < total.min() and total.max() < 1

    graphdef, _ = abstract_model(pipeline.preset.model)
    block = merge_model(graphdef, pipeline.params).denoising_unet.spatial_transformers()[PATH].transformer_blocks[0]
    tokens, condition = found[PATH], conditioning[PATH]
    q, k, v = (split_heads(part(tokens), 2) for part in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v))
    own = jnp.exp(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
    own = own / own.sum(-1, keepdims=True) * (1 - total)[..., None]
    mixed = own @ v + shares @ split_heads(condition.reference_value, 2)
    expected = block.attend_to_reference(tokens[None], condition)[0]
    np.testing.assert_allclose(block.attn1.to_out[0](merge_heads(mixed)), expected, rtol=1e-4, atol=1e-5)
