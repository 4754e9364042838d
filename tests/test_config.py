"""Presets fit together and survive being written to a checkpoint."""

import dataclasses
import json

import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.config import ModelConfig, to_dict
from animate_jax.errors import UserError
from animate_jax.presets import find_preset, preset_from_dict, presets
from animate_jax.torch_weights.fetching import BUNDLED
from animate_jax.training.options import differences
from animate_jax.validation import problem

PRESETS = list(presets().values())
each_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)


def through_json(config):
    return json.loads(json.dumps(to_dict(config)))


@each_preset
def test_round_trip_through_json(preset):
    again = preset_from_dict(through_json(preset))
    assert again == preset
    assert hash(again) == hash(preset)  # lists have become tuples again


@pytest.mark.parametrize("place", ["model", "model.unet", "model.vae", "schedule", "frames", "sampling"])
def test_unknown_fields_are_refused(place):
    values = part = through_json(presets()["tiny"])
    for name in place.split("."):
        part = part[name]
    part["from_the_future"] = 1
    with pytest.raises(ValueError, match="'from_the_future' is unknown"):
        preset_from_dict(values)


def replaced(preset, path, value):
    values = part = through_json(preset)
    *groups, name = path.split(".")
    for group in groups:
        part = part[group]
    part[name] = value
    return json.loads(json.dumps(values))  # NaN and infinity, too


@pytest.mark.parametrize(
    "path, value",
    [
        ("name", ""),
        ("name", 3),
        ("name", "x" * 300),
        ("model", 3),
        ("model", []),
        ("model.unet", None),
        ("model.unet.in_channels", "48"),
        ("model.unet.in_channels", 0),
        ("model.unet.in_channels", -48),
        ("model.unet.in_channels", 48.0),
        ("model.unet.in_channels", True),
        ("model.unet.in_channels", None),
        ("model.unet.in_channels", 10**30),
        ("model.unet.block_out_channels", []),
        ("model.unet.block_out_channels", 96),
        ("model.unet.block_out_channels", "96"),
        ("model.unet.block_out_channels", [96, "160"]),
        ("model.unet.block_out_channels", [[96], 160]),
        ("model.unet.block_out_channels", {"a": 1}),
        ("model.unet.attention_levels", [True]),
        ("model.unet.attention_levels", [1, 1]),
        ("model.unet.reference", "magic"),
        ("model.unet.reference", 1),
        ("model.unet.norm_num_groups", 7),
        ("model.unet.num_attention_heads", 7),
        ("model.unet.layers_per_block", 10**6),
        ("model.vae.scaling_factor", 0),
        ("model.vae.scaling_factor", float("nan")),
        ("model.vae.norm_num_groups", 7),
        ("model.image_encoder.patch_size", 4096),
        ("model.image_encoder.num_attention_heads", 3),
        ("model.reference_pose_guider", "yes"),
        ("schedule.prediction", "noise"),
        ("schedule.timestep_spacing", "odd"),
        ("schedule.beta_end", 2),
        ("schedule.beta_end", 1e-5),
        ("schedule.beta_start", float("inf")),
        ("schedule.beta_schedule", "cosine"),
        ("schedule.zero_terminal_snr", 1),
        ("schedule.train_steps", 0),
        ("schedule.steps_offset", -1),
        ("sampling.sampler", "magic"),
        ("frames.pose_style", "stick"),
        ("sampling.blend", "none"),
        ("frames.clip_resize", "zoom"),
        ("sampling.dtype", "float8"),
        ("frames.fps", 0),
        ("frames.fps", "10"),
        ("frames.fps", float("inf")),
        ("frames.width", 0),
        ("frames.width", "96"),
        ("sampling.steps", 0),
        ("sampling.steps", 1001),
        ("sampling.guidance", float("nan")),
        ("sampling.guidance", 1e30),
        ("sampling.guidance_interval", [0.0]),
        ("sampling.guidance_interval", [0.9, 0.1]),
        ("sampling.guidance_interval", [0, 2]),
        ("sampling.window", 64),
        ("sampling.overlap", 16),
        ("sampling.deepcache_interval", 0),
        ("sampling.shared_noise", "false"),
        ("sampling", 5),
        ("frames", 5),
    ],
    ids=str,
)
def test_presets_are_validated_whole(path, value):
    with pytest.raises(ValueError) as caught:
        preset_from_dict(replaced(presets()["tiny"], path, value))
    assert path.rpartition(".")[2] in str(caught.value) or path.partition(".")[0] in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("values", [None, [], 3, {}, {"name": "x"}], ids=str)
def test_what_is_no_preset(values):
    with pytest.raises(ValueError, match="preset"):
        preset_from_dict(values)


@each_preset
def test_named_presets_are_valid(preset):
    assert problem(preset) is None


def test_fields_of_later_versions_take_their_defaults():
    values = through_json(presets()["tiny"])
    del values["sampling"]["deepcache_interval"], values["model"]["unet"]["reference"]
    assert preset_from_dict(values) == presets()["tiny"]


def before_frames(preset):
    """A preset as checkpoints stored it when the fields of `frames` were among those of `sampling`."""
    values = through_json(preset)
    values["sampling"] |= values.pop("frames")
    return values


@each_preset
def test_the_older_layout_is_the_same_preset(preset):
    old = before_frames(preset)
    assert preset_from_dict(old) == preset and old["sampling"]["width"] == preset.frames.width
    old["sampling"]["width"] = 0
    with pytest.raises(ValueError, match=r"frames\.width is 0 and must be"):
        preset_from_dict(old)


def test_a_preset_stored_under_old_names_is_the_same():
    values = through_json(presets()["tiny"])
    values["sampling"] |= {"reuse": 3, "blend": "centre"}
    del values["sampling"]["deepcache_interval"]
    sampling = preset_from_dict(values).sampling
    assert (sampling.deepcache_interval, sampling.blend) == (3, "center")


def test_the_bundled_checkpoint_carries_its_preset():
    assert checkpoint.read_preset(BUNDLED) == presets()["tiny-warp"]


def test_runs_of_the_older_layout_go_on():
    """Only what differs is told, by the flag that replaces it."""
    tiny = presets()["tiny"]
    now = {"config": {}, "preset": through_json(tiny)}
    assert differences({"config": {}, "preset": before_frames(tiny)}, now) == []
    larger = dataclasses.replace(tiny, frames=dataclasses.replace(tiny.frames, width=64))
    assert differences({"config": {}, "preset": before_frames(larger)}, now) == ["--size 64 -> 96"]


def test_options_of_a_run_stored_under_old_names_are_compared():
    preset = through_json(presets()["tiny"])
    stored = {"config": {"loss": {"person": 2.0, "flicker": 0.0}, "data": {"workers": 8}}, "preset": preset}
    now = {"loss": {"person_weight": 1.0, "flicker_weight": 0.0}, "data": {"num_workers": 1}}
    assert differences(stored, {"config": now, "preset": preset}) == ["--loss.person-weight 2.0 -> 1.0"]


def test_an_unknown_name_is_refused_with_those_there_are():
    assert find_preset("moore") is presets()["moore"]
    with pytest.raises(UserError, match="--preset 'more': choose one of paper, moore"):
        find_preset("more")


def test_an_animation_has_the_fields_of_both():
    tiny = presets()["tiny"]
    assert tiny.animation.width == tiny.frames.width and tiny.animation.steps == tiny.sampling.steps


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
        for parts in (
            unet.num_attention_heads,
            unet.motion_num_attention_heads,
            unet.norm_num_groups,
            unet.motion_norm_num_groups,
        ):
            assert channels % parts == 0
    assert all(channels % vae.norm_num_groups == 0 for channels in vae.block_out_channels)
    assert encoder.hidden_size % encoder.num_attention_heads == 0


@each_preset
def test_sampling_defaults_fit_the_model(preset):
    sampling, frames, downscale = preset.sampling, preset.frames, preset.model.vae.downscale
    assert frames.width % downscale == frames.height % downscale == 0
    assert 0 <= sampling.overlap < sampling.window <= preset.model.unet.motion_max_length
    assert 0 < sampling.steps <= preset.schedule.train_steps
    assert sampling.guidance >= 1


def test_configurations_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets()["tiny"].schedule.prediction = "v"
