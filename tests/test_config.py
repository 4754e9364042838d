"""Presets fit together and survive being written to a checkpoint."""

import dataclasses
import json

import pytest

from animate_jax.config import ModelConfig, preset_from_dict, presets, to_dict

PRESETS = list(presets().values())
each_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)


def through_json(config):
    return json.loads(json.dumps(to_dict(config)))


@each_preset
def test_round_trip_through_json(preset):
    again = preset_from_dict(through_json(preset))
    assert again == preset
    assert hash(again) == hash(preset)  # lists have become tuples again


@pytest.mark.parametrize("place", ["model", "model.unet", "model.vae", "schedule", "sampling"])
def test_unknown_fields_are_refused(place):
    values = part = through_json(presets()["tiny"])
    for name in place.split("."):
        part = part[name]
    part["from_the_future"] = 1
    with pytest.raises(TypeError, match="from_the_future"):
        preset_from_dict(values)


def test_presets_know_their_names():
    assert {name: preset.name for name, preset in presets().items()} == {name: name for name in presets()}
    assert presets()["tiny"].model == ModelConfig.tiny() and presets()["moore"].model == ModelConfig.sd15()


@each_preset
def test_the_models_fit_together(preset):
    unet, vae, encoder = preset.model.unet, preset.model.vae, preset.model.image_encoder
    guider = preset.model.pose_guider
    assert unet.in_channels == unet.out_channels == vae.latent_channels
    assert unet.cross_attention_dim == encoder.projection_dim
    assert guider.conditioning_channels == unet.block_out_channels[0]
    assert 2 ** (len(guider.block_out_channels) - 1) == vae.downscale  # pose pictures become latent-sized
    assert len(unet.attention_levels) == len(unet.block_out_channels)
    assert encoder.image_size % encoder.patch_size == 0


@each_preset
def test_channels_divide_into_heads_and_groups(preset):
    unet, vae, encoder = preset.model.unet, preset.model.vae, preset.model.image_encoder
    for channels in unet.block_out_channels:
        for parts in (unet.num_attention_heads, unet.motion_num_attention_heads, unet.norm_num_groups,
                      unet.motion_norm_num_groups):  # fmt: skip
            assert channels % parts == 0
    assert all(channels % vae.norm_num_groups == 0 for channels in vae.block_out_channels)
    assert encoder.hidden_size % encoder.num_attention_heads == 0


@each_preset
def test_sampling_defaults_fit_the_model(preset):
    sampling, downscale = preset.sampling, preset.model.vae.downscale
    assert sampling.width % downscale == sampling.height % downscale == 0
    assert 0 <= sampling.overlap < sampling.window <= preset.model.unet.motion_max_length
    assert 0 < sampling.steps <= preset.schedule.train_steps
    assert sampling.guidance >= 1


def test_configurations_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets()["tiny"].schedule.prediction = "v"
