"""The weights that a run starts from, and options that it refuses."""

import re
import shutil

import jax
import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.models.params import init_params
from animate_jax.training.loop import run
from animate_jax.training.state import sampling_params
from tests.conftest import using
from tests.training.conftest import Numbers, assert_equal, changed, pull, refusal

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


def test_a_run_goes_on_without_the_checkpoint_that_it_began_from(config, micro, micro_checkpoint, tmp_path):
    begun = changed(config, init=str(shutil.copytree(micro_checkpoint, tmp_path / "begin")))
    run(begun, pull, Numbers(stop=3))
    shutil.rmtree(begun.init)
    assert int(run(begun, pull, Numbers()).step) == 6
    assert "begin: no such checkpoint" in refusal(changed(begun, output=str(tmp_path / "new")), pull, Numbers())


def test_without_a_checkpoint_the_weights_are_fresh(config, micro, micro_params, monkeypatch):
    fresh = {path: 2 * array for path, array in jax.device_get(micro_params).items()}
    asked = []
    monkeypatch.setattr("animate_jax.training.start.init_params", lambda *arguments: asked.append(arguments) or fresh)
    state = run(changed(config, init=None, seed=7, steps=1), pull, Numbers())
    assert asked == [(micro.model, 7)]
    assert_equal(state.frozen, {path: fresh[path] for path in state.frozen})


def without(micro_params, tmp_path, pattern, preset):
    """A checkpoint that lacks a part."""
    left = {path: np.asarray(array) for path, array in micro_params.items() if not re.search(pattern, path)}
    checkpoint.save_batches(tmp_path / "partial", [left], preset)
    return str(tmp_path / "partial")


def test_parts_that_start_as_identity_may_be_missing(config, micro, micro_params, tmp_path, capfd):
    """As in a checkpoint of Stable Diffusion alone, without temporal layers and Pose Guiders."""
    init = without(micro_params, tmp_path, r"^(reference_)?pose_guider\.|motion_modules", micro)
    begun = changed(config, init=init, trainable=r"vae\.quant_conv\.bias|(reference_)?pose_guider", steps=1, seed=5)
    state = run(begun, pull, Numbers())
    assert "partial: has no motion_module, pose_guider, reference_pose_guider: starting fresh" in capfd.readouterr().err
    params, fresh = sampling_params(state), init_params(micro.model, 5)
    for path in fresh:
        still = path not in state.trainable
        if still and "motion_modules" in path:
            np.testing.assert_array_equal(params[path], fresh[path])
        elif still:
            np.testing.assert_array_equal(params[path], micro_params[path])
        if re.search(r"pose_guider\.conv_out|motion_modules.*proj_out", path):
            assert not np.any(fresh[path]), "starts as identity"


def test_layers_for_the_warped_reference_may_be_missing(config, micro_copying, micro_params, capfd):
    begun = changed(config, trainable=r"vae\.quant_conv\.bias|.*appearance_", steps=1)
    state = run(using(begun, micro_copying), pull, Numbers())
    assert "has no appearance: starting fresh" in capfd.readouterr().err
    params = sampling_params(state)
    assert {path for path in params if "appearance_" in path} == set(params) - set(micro_params) != set()
    for path in micro_params.keys() & state.frozen.keys():
        np.testing.assert_array_equal(params[path], micro_params[path])


@pytest.mark.parametrize("stage, part", [("stage1", "pose_guider"), ("stage2", "motion_module"), ("stage1", "vae")])
def test_a_missing_part_that_would_stay_as_it_is_is_refused(config, micro, micro_params, tmp_path, stage, part):
    """Nobody trains the Pose Guider here, or the temporal layers in stage 2; and nothing replaces a VAE."""
    pattern = "motion_modules" if part == "motion_module" else rf"^{part}\."
    init = without(micro_params, tmp_path, pattern, micro)
    begun = changed(config, init=init, stage=stage, trainable=r"vae|reference_unet\.conv_in")
    assert f"lacks {part}: add it with" in refusal(begun, pull, Numbers())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"log_every": 0}, "--log-every 0: must be at least 1"),
        ({"save_every": -1}, "--save-every -1: must be at least 1"),
        ({"keep_last": 0}, "--keep-last 0: must be at least 1"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        ({"save_minutes": -1.0}, "--save-minutes -1.0: must be at least 0"),
        ({"hang_minutes": float("nan")}, "--hang-minutes nan: must be at least 0"),
        ({"trainable": "motion"}, "--trainable 'motion' matches no parameter"),
        ({"init": "nowhere"}, "nowhere: no such checkpoint"),
    ],
)
def test_impossible_options(config, micro, fields, message):
    assert message in refusal(changed(config, **fields), pull, Numbers())
