"""Adapters as entries of the parameter dict."""

import re

import jax
import numpy as np
import pytest

from animate_jax.config import LoraConfig
from animate_jax.errors import UserError
from animate_jax.models.lora import DOWN, PATHS, UP, is_adapter, make_adapter, merge, scale_of
from animate_jax.models.params import abstract_model
from animate_jax.parallel.rules import RULES
from tests.conftest import MICRO, SMALL

BLOCK = "denoising_unet.mid_block.attentions.0.transformer_blocks.0"


def shapes_of(preset):
    return abstract_model(preset.model)[1]


def test_by_default_the_spatial_attention_of_the_denoising_unet_is_adapted():
    adapter = make_adapter(shapes_of(MICRO), LoraConfig(rank=2), 0)
    layers = [f"{BLOCK}.{name}" for name in ("attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v")]
    layers += [f"{BLOCK}.{name}" for name in ("attn2.to_out.0", "attn2.to_v")]
    assert sorted(adapter) == sorted(layer + half for layer in layers for half in (DOWN, UP))
    assert adapter[f"{BLOCK}.attn1.to_q{DOWN}"].shape == (8, 2) and adapter[f"{BLOCK}.attn1.to_q{UP}"].shape == (2, 8)
    assert all(map(is_adapter, adapter)) and not any(map(is_adapter, shapes_of(MICRO)))


@pytest.mark.parametrize(
    "pattern, part",
    [(r"reference_unet\..*\.to_q", "reference_unet"), (r".*motion_modules.*\.to_(q|k|v|out\.0)", "denoising_unet")],
)
def test_a_pattern_chooses_other_layers(pattern, part):
    adapter = make_adapter(shapes_of(SMALL), LoraConfig(rank=2, target_modules=pattern), 0)
    assert adapter and all(path.startswith(part) for path in adapter)


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_adds_its_product(micro_params):
    adapter = make_adapter(micro_params, LoraConfig(rank=2), 0)
    merged = merge({**micro_params, **adapter}, 3.0)
    assert merged.keys() == micro_params.keys()
    for path, array in merged.items():
        np.testing.assert_array_equal(array, micro_params[path])
    path = f"{BLOCK}.attn1.to_q.kernel"
    down = adapter[f"{BLOCK}.attn1.to_q{DOWN}"]
    bound = 8**-0.5  # peft's: Kaiming's uniform with a = sqrt(5)
    assert 0.5 * bound < np.abs(down).max() <= bound
    up = adapter[f"{BLOCK}.attn1.to_q{UP}"] = jax.random.normal(jax.random.key(1), (2, 8))
    merged = merge({**micro_params, **adapter}, 3.0)
    np.testing.assert_allclose(merged[path], micro_params[path] + 3 * np.asarray(down) @ np.asarray(up), atol=1e-6)
    assert sum(not np.array_equal(merged[path], micro_params[path]) for path in merged) == 1


def test_layers_start_differently_and_the_seed_decides():
    first, second, other = (make_adapter(shapes_of(MICRO), LoraConfig(rank=2), seed) for seed in (0, 0, 1))
    name, key = f"{BLOCK}.attn1.to_q{DOWN}", f"{BLOCK}.attn1.to_k{DOWN}"
    np.testing.assert_array_equal(first[name], second[name])
    assert not np.array_equal(first[name], other[name]) and not np.array_equal(first[name], first[key])


def test_the_scale_is_alpha_over_rank():
    assert scale_of(LoraConfig(rank=4, alpha=8.0)) == 2 and scale_of(LoraConfig(rank=4)) == 1 == scale_of(LoraConfig())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": -1}, "--lora.rank -1: must be at least 1"),
        ({"rank": 9}, "is only 8 x 8"),
        ({"rank": 2, "alpha": 0.0}, "--lora.alpha 0: must be greater than 0"),
        ({"rank": 2, "target_modules": "("}, "no regular expression"),
        ({"rank": 2, "target_modules": "to_q"}, "matches no linear layer of a UNet as a whole"),
        ({"rank": 2, "target_modules": r"image_encoder\..*"}, "matches no linear layer of a UNet as a whole"),
    ],
)
def test_impossible_adapters_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_adapter(shapes_of(MICRO), LoraConfig(**options), 0)


def test_every_device_has_the_whole_adapter():
    """So that one process alone can write it."""
    assert re.fullmatch(PATHS, f"{BLOCK}.attn1.to_q{DOWN}") and re.fullmatch(RULES[0][0], f"{BLOCK}.attn1.to_q{UP}")
