"""State dicts in and out: bit for bit, complete, and with errors that name the weight."""

import dataclasses
import gzip
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from animate_jax.checkpoints.checkpoint import part_of
from animate_jax.config import ModelConfig, UNetConfig
from animate_jax.errors import UserError
from animate_jax.models.image_encoder import CLIPVisionModelWithProjection
from animate_jax.models.params import PresplitRngs, abstract_model, split_model
from animate_jax.models.unet import UNet
from animate_jax.torch_weights.convert import from_torch, match_keys, to_torch
from animate_jax.torch_weights.importing import match_part
from animate_jax.torch_weights.key_layouts import rename_keys

# Key -> shape of files at Stable Diffusion 1.5's size, and of the autoencoder and CLIP ViT-L/14.
SD15 = json.loads(gzip.decompress((pathlib.Path(__file__).parents[1] / "golden/keys/sd15.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def abstract() -> dict:
    """A small UNet with temporal layers."""
    config = UNetConfig(
        block_out_channels=(8, 16),
        attention_levels=(True, False),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=6,
        norm_num_groups=4,
        motion_norm_num_groups=4,
    )
    return split_model(nnx.eval_shape(lambda: UNet(config, rngs=PresplitRngs(jax.random.key(0)))))[1]


@pytest.fixture(scope="module")
def params(abstract) -> dict:
    random = np.random.default_rng(0)
    return {path: random.normal(size=leaf.shape).astype(leaf.dtype) for path, leaf in abstract.items()}


@pytest.fixture
def state_dict(params) -> dict:
    return to_torch(params)


@pytest.fixture(scope="module")
def sd15() -> dict:
    return abstract_model(ModelConfig.sd15())[1]


def without_memory(keys: dict) -> dict:
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}


def test_round_trip_is_exact(abstract, params, state_dict):
    back = from_torch(match_keys(state_dict, abstract))
    assert back.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)
    again = to_torch(back)
    assert again.keys() == state_dict.keys()
    for key, array in state_dict.items():
        assert again[key].flags.c_contiguous
        np.testing.assert_array_equal(again[key], array, err_msg=key)


def test_round_trip_of_clip_with_its_own_parameters():
    config = dataclasses.replace(ModelConfig.tiny().image_encoder, hidden_size=8, intermediate_size=12)
    abstract = split_model(
        nnx.eval_shape(lambda: CLIPVisionModelWithProjection(config, rngs=PresplitRngs(jax.random.key(0))))
    )[1]
    random = np.random.default_rng(0)
    params = {path: random.normal(size=leaf.shape).astype(leaf.dtype) for path, leaf in abstract.items()}
    state_dict = to_torch(params)
    assert state_dict["vision_model.embeddings.class_embedding"].shape == (8,)
    assert state_dict["vision_model.embeddings.position_embedding.weight"].shape == (17, 8)
    for path, array in from_torch(match_keys(state_dict, abstract)).items():
        np.testing.assert_array_equal(array, params[path], err_msg=path)


def test_arrays_are_views(abstract, state_dict):
    back = from_torch(match_keys(state_dict, abstract))
    assert np.shares_memory(back["conv_in.kernel"], state_dict["conv_in.weight"])


def test_missing_key_is_named_with_its_nearest(abstract, state_dict):
    state_dict["conv_inn.weight"] = state_dict.pop("conv_in.weight")
    with pytest.raises(
        UserError,
        match=r"1 missing: conv_in\.weight \(nearest: conv_inn\.weight\); "
        r"1 not in the model: conv_inn\.weight",
    ):
        match_keys(state_dict, abstract)


def test_many_missing_keys_are_counted_on_one_line(abstract, state_dict):
    kept = {key: array for key, array in state_dict.items() if "motion_modules" not in key}
    count = len(state_dict) - len(kept)
    message = rf"^unet\.pth does not fit the model: {count} missing: .* and {count - 3} more$"
    with pytest.raises(UserError, match=message):
        match_keys(kept, abstract, source="unet.pth")


def test_extra_key_is_named(abstract, state_dict):
    state_dict["conv_in.lora"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"1 not in the model: conv_in\.lora"):
        match_keys(state_dict, abstract)


def test_wrong_shape_is_named(abstract, state_dict):
    state_dict["conv_in.weight"] = np.zeros((8, 9, 3, 3), np.float32)
    with pytest.raises(UserError, match=r"conv_in\.weight is \[8, 9, 3, 3\] instead of \[8, 4, 3, 3\]"):
        match_keys(state_dict, abstract)


def test_the_same_weight_under_two_names_is_refused():
    state_dict = {f"mid_block.attentions.0.{name}.bias": np.zeros(4, np.float32) for name in ("query", "to_q")}
    abstract = {"mid_block.attentions.0.to_q.bias": jax.ShapeDtypeStruct((4,), np.float32)}
    with pytest.raises(UserError, match=r"under an old and a new name: mid_block\.attentions\.0\.to_q\.bias"):
        match_keys(state_dict, abstract)


def shapes(tensors: dict) -> dict:
    """Of parameters, given in torch's layout."""
    return {path: array.shape for path, array in from_torch(tensors).items()}


def part(sd15: dict, *names: str) -> dict:
    return {path: leaf.shape for path, leaf in sd15.items() if part_of(path) in names}


@pytest.mark.compiles
@pytest.mark.parametrize("name", SD15)
def test_full_size_parts_fit_the_model(sd15, name):
    keys = without_memory(SD15[name])
    if name == "image_encoder":
        keys["vision_model.embeddings.position_ids"] = np.arange(257)[None]
    assert shapes(match_part(keys, name, sd15)) == part(sd15, name)


def test_old_vae_names_fit_the_model(sd15):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    keys = {}
    for key, shape in SD15["vae"].items():
        for new_name, old_name in old.items():
            key = key.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}.")
        keys[key] = shape
    assert len(keys.keys() - SD15["vae"].keys()) == 16
    assert shapes(match_part(without_memory(keys), "vae", sd15)) == part(sd15, "vae")


def test_reference_net_takes_a_whole_stable_diffusion_unet(sd15):
    keys = without_memory(SD15["denoising_unet"])
    renamed, _ = rename_keys(keys, "unet", "reference_unet", ModelConfig.sd15())
    assert shapes(match_part(renamed, "reference_unet", sd15)) == part(sd15, "reference_unet")


def test_temporal_layers_may_be_in_the_denoising_unets_file(sd15):
    keys = without_memory(SD15["denoising_unet"] | SD15["motion_module"])
    matched = match_part(keys, "denoising_unet", sd15, with_motion=True)
    assert shapes(matched) == part(sd15, "denoising_unet", "motion_module")
    with pytest.raises(UserError, match=r"not in the model: down_blocks.*motion_modules"):
        match_part(keys, "denoising_unet", sd15)
