"""What is computed once stays computed, and what `--speed` approximates."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model, merge_model
from animate_jax.presets import composes, presets, speeds
from animate_jax.sampling import denoiser
from animate_jax.sampling.pipeline import Pipeline

pytestmark = pytest.mark.compiles

POSES = np.random.default_rng(0).integers(0, 256, (10, 64, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def pipeline(micro, micro_params, compile_fast):
    return Pipeline(micro_params, micro)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (64, 48, 3), np.uint8)


def latents(pipeline, frames=4, seed=0, shown=0, **overrides):
    options = pipeline.animation_config(**overrides)
    conditioning = pipeline.precompute_conditioning(picture(shown), POSES[0], options)
    result = pipeline.sample(conditioning, POSES[:frames], options, seed, progress=False)
    pipeline.decode(result)
    return np.asarray(result)


def compiled(pipeline):
    return {name: f._cache_size() for name, f in vars(pipeline).items() if hasattr(f, "_cache_size")}


def test_nothing_compiles_again(pipeline):
    """For another seed, guidance scale, picture, number of steps or of windows."""
    latents(pipeline)
    before = compiled(pipeline)
    assert before["_run_unet"] == before["_conditioning"] == before["_decode"] == before["_pose_features"] == 1
    for changed in ({"seed": 3}, {"guidance": 5.0}, {"shown": 4}, {"steps": 3}, {"frames": 7}, {"frames": 10}):
        latents(pipeline, **changed)
        assert compiled(pipeline) == before, changed
    latents(pipeline, frames=3)  # a shorter window
    assert compiled(pipeline) != before  # else the comparison could not fail


@pytest.mark.parametrize("guidance, placed", [(1.0, True), (2.0, False)])
def test_what_is_compiled_ahead_is_not_compiled_again(micro, micro_params, compile_fast, caplog, guidance, placed):
    params = jax.device_put(micro_params, jax.devices()[0]) if placed else jax.tree.map(np.asarray, micro_params)
    pipeline = Pipeline(params if placed else jax.tree.map(jnp.asarray, params), micro)
    pipeline.compile(pipeline.animation_config(guidance=guidance), frames=7)
    with jax.log_compiles():
        latents(pipeline, frames=7, guidance=guidance)
        assert "Finished XLA compilation of jit(run)" not in caplog.text
        latents(pipeline, frames=3, guidance=guidance)
    assert "Finished XLA compilation of jit(run)" in caplog.text  # else the comparison could not fail


def test_deep_features_of_the_same_step_change_nothing(micro):
    two = dataclasses.replace(micro.model.unet, block_out_channels=(8, 16), attention_levels=(True, True))
    graphdef, shapes = abstract_model(dataclasses.replace(micro.model, unet=two))
    random = np.random.default_rng(0)
    model = merge_model(graphdef, {k: jnp.asarray(random.normal(size=v.shape) / 4, v.dtype) for k, v in shapes.items()})
    x, pose = (jnp.asarray(random.normal(size=(1, 3, 6, 4, n)), jnp.float32) for n in (4, 8))
    token = jnp.asarray(random.normal(size=(1, 8)), jnp.float32)
    conditioning = model.denoising_unet.precompute_conditioning(token)
    inputs = x, jnp.full((1, 1), 20.0), conditioning, pose
    full, deep = model.denoise_cached(*inputs)
    np.testing.assert_allclose(full, model.denoise(*inputs), rtol=1e-5, atol=1e-6)
    again, kept = model.denoise_cached(*inputs, deep)
    np.testing.assert_allclose(again, full, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept, deep)
    other = model.denoise_cached(*inputs, jnp.zeros_like(deep))[0]
    assert np.abs(other - full).max() > 1e-2


def test_deep_features_are_reused_as_often_as_asked(pipeline, monkeypatch):
    calls, original = [], pipeline._run_unet_cached
    monkeypatch.setattr(
        pipeline,
        "_run_unet_cached",
        lambda params, x, *rest: calls.append((len(x), len(rest) - 3)) or original(params, x, *rest),
    )
    exact = latents(pipeline, steps=5)
    np.testing.assert_allclose(latents(pipeline, steps=5, deepcache_interval=1), exact, rtol=1e-5)
    assert calls == []
    reused = latents(pipeline, steps=5, deepcache_interval=2, guidance_interval=(0.5, 1.0))
    assert calls == [(2, 0), (2, 1), (2, 0), (1, 1), (1, 0)]
    assert np.abs(reused - exact).max() > 1e-3
    calls.clear()
    latents(pipeline, frames=7, steps=2, deepcache_interval=2)  # two windows, each with features of its own
    assert calls == [(2, 0), (2, 0), (2, 1), (2, 1)]


@pytest.mark.parametrize("shift", [False, True])
def test_the_device_never_holds_the_features_of_a_long_video(pipeline, shift):
    """What lives on it is as large for 180 frames as for 20, and the numbers do not depend on where features wait."""

    def most(frames):
        held, before = [], sum(array.nbytes for array in jax.live_arrays())

        def watch(*_):
            return held.append(sum(array.nbytes for array in jax.live_arrays()))

        options = pipeline.animation_config(steps=3, deepcache_interval=2, shift_windows=shift)
        conditioning = pipeline.precompute_conditioning(picture(), POSES[0], options)
        made = pipeline.sample(conditioning, np.resize(POSES, (frames, 64, 48, 3)), options, 0, False, watch)
        return max(held) - before, made

    most(20)
    (short, _), (longer, _), (long, made) = map(most, (20, 60, 180))
    assert longer <= short * 1.001 and long <= short * 1.001
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "CACHED_WINDOWS", 1000)
        everything, same = most(180)
    assert everything > 1.2 * long
    np.testing.assert_array_equal(made, same)


def test_half_precision_is_near(pipeline):
    exact = latents(pipeline)
    half = latents(pipeline, dtype="bfloat16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # qwix calls methods that flax will rename
def test_products_of_8_bit_integers_are_near(pipeline):
    """In one step; a random network multiplies the difference in every further one."""
    exact = latents(pipeline, steps=1)
    rounded = latents(pipeline, steps=1, dtype="int8")
    assert rounded.dtype == np.float32
    assert 0.001 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.1
    with mock.patch.dict("sys.modules", qwix=None), pytest.raises(UserError, match=r"animate-jax\[int8\]"):
        latents(pipeline, dtype="int8", deepcache_interval=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_8_bit_products_of_the_bundled_model_can_be_traced():
    """Its upsamplers multiply with sums of their weights."""
    preset = presets()["tiny"]
    shapes = abstract_model(preset.model)[1]
    pipeline = Pipeline(shapes, preset)

    def step(params, picture, square, t):
        latents = pipeline._encode(params, picture)
        conditioning = pipeline._conditioning(params, latents, square, picture)
        pose = pipeline._pose_features(params, picture[None])
        return pipeline._run_unet(params, latents[None], t, conditioning, pose, int8=True)

    sides = (1, 128, 96, 3), (1, 64, 64, 3), (1, 1)
    assert jax.eval_shape(step, shapes, *(jax.ShapeDtypeStruct(side, jnp.float32) for side in sides)).shape[-1] == 48


def test_only_the_small_model_composes_unasked():
    assert [name for name, preset in presets().items() if composes(preset)] == ["tiny", "tiny-warp"]


def test_speeds(pipeline, micro):
    assert pipeline.animation_config() == pipeline.animation_config(speed="exact") == micro.animation
    for name, fields in speeds(micro.sampling).items():
        assert dataclasses.asdict(pipeline.animation_config(speed=name)).items() >= fields.items()
    assert pipeline.animation_config(speed="fastest", deepcache_interval=7).deepcache_interval == 7
    with pytest.raises(UserError, match="deepcache_interval 0"):
        pipeline.animation_config(deepcache_interval=0)
