"""Torch keys and layouts of parameter paths."""

import numpy as np
import pytest

from animate_jax.torch_weights import names


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("conv_in.kernel", "conv_in.weight"),
        ("conv_in.bias", "conv_in.bias"),
        ("down_blocks.0.resnets.1.norm1.scale", "down_blocks.0.resnets.1.norm1.weight"),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.kernel",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight",
        ),
        ("vision_model.embeddings.class_embedding", "vision_model.embeddings.class_embedding"),
        ("vision_model.embeddings.position_embedding.embedding", "vision_model.embeddings.position_embedding.weight"),
    ],
)
def test_key_is_the_path_with_torchs_last_word(path, key):
    assert names.torch_key(path) == key


def test_convolution_axes():
    ours = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)  # [H, W, in, out]
    theirs = names.to_torch_layout("conv.kernel", ours)
    assert theirs.shape == names.torch_shape("conv.kernel", ours.shape) == (7, 5, 2, 3)
    assert theirs[6, 4, 1, 2] == ours[1, 2, 4, 6]
    np.testing.assert_array_equal(names.from_torch_layout("conv.kernel", theirs), ours)


def test_linear_axes():
    ours = np.arange(6).reshape(2, 3)  # [in, out]
    theirs = names.to_torch_layout("proj.kernel", ours)
    np.testing.assert_array_equal(theirs, ours.T)
    np.testing.assert_array_equal(names.from_torch_layout("proj.kernel", theirs), ours)


@pytest.mark.parametrize("path", ["embeddings.position_embedding.embedding", "norm.scale", "norm.bias"])
def test_other_weights_keep_their_axes(path):
    array = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(names.to_torch_layout(path, array), array)
    np.testing.assert_array_equal(names.from_torch_layout(path, array), array)


def test_old_vae_attention_names():
    assert names.current_key("encoder.mid_block.attentions.0.query.weight") == (
        "encoder.mid_block.attentions.0.to_q.weight"
    )
    assert names.current_key("decoder.mid_block.attentions.0.proj_attn.bias") == (
        "decoder.mid_block.attentions.0.to_out.0.bias"
    )
    assert names.current_key("decoder.mid_block.attentions.0.to_q.bias") == "decoder.mid_block.attentions.0.to_q.bias"
