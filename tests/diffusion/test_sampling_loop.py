"""The sampling loop, with denoisers that are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import SamplingConfig, ScheduleConfig
from animate_jax.diffusion.noise import initial_noise
from animate_jax.diffusion.samplers import SAMPLERS
from animate_jax.diffusion.sampling_loop import num_function_evaluations, sample_windowed
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.diffusion.windows import windows
from animate_jax.errors import UserError

pytestmark = pytest.mark.compiles

SHAPE = (1, 7, 4, 3, 2)  # B, F, h, w, C
OPTIONS = SamplingConfig(steps=5, guidance=1.0, window=4, overlap=2, blend="flat")
KEYS = jax.random.split(jax.random.key(0), 2)
CLEAN, NOISE = (initial_noise(KEYS[i : i + 1], SHAPE, shared=False) for i in range(2))


def perfect(schedule):
    """Knows the clean clip, and that x_t lies between it and NOISE."""

    def denoise(x, t, frames):
        clean = jnp.broadcast_to(CLEAN[:, frames[0]], x.shape)
        noise = jnp.broadcast_to(NOISE[:, frames[0]], x.shape)
        return schedule.target(clean, noise, t.astype(jnp.int32))

    return denoise


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_a_perfect_denoiser_returns_the_clean_clip(prediction, guidance):
    config = ScheduleConfig(prediction=prediction, zero_terminal_snr=prediction != "epsilon")
    schedule = make_schedule(config)
    start = schedule.add_noise(CLEAN, NOISE, 999)
    options = dataclasses.replace(OPTIONS, guidance=guidance)
    result = sample_windowed(perfect(schedule), start, schedule, options)
    np.testing.assert_allclose(result, CLEAN, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 4, 7, 12])
@pytest.mark.parametrize("closed_loop", [False, True])
def test_every_window_is_denoised_once_per_step(frames, closed_loop):
    schedule = make_schedule(ScheduleConfig(prediction="x0"))
    options = dataclasses.replace(OPTIONS, closed_loop=closed_loop)
    seen, progress = [], []

    def denoise(x, t, chunk):
        seen.append((int(t[0, 0]), chunk[0].tolist()))
        assert x.shape[1] == chunk.size and t.shape == (1, 1)
        return x

    result = sample_windowed(denoise, np.ones((1, frames, 2, 2, 1), np.float32), schedule, options, progress.append)
    expected = [(t, chunk) for t in (999, 799, 599, 399, 199) for chunk in windows(frames, 4, 2, closed_loop)]
    assert seen == expected
    number = len(windows(frames, 4, 2, closed_loop))
    assert progress == [(step, 5, window, number) for step in range(1, 6) for window in range(1, number + 1)]
    assert len(progress) == len(seen) == num_function_evaluations(frames, options)
    assert result.shape == (1, frames, 2, 2, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_device_sees_one_window_at_a_time(sampler):
    """Latents of the whole video are NumPy arrays throughout, and no device array is as long as the video."""
    schedule = make_schedule(ScheduleConfig(prediction="v"))
    options = dataclasses.replace(OPTIONS, sampler=sampler, guidance=2.0, guidance_rescale=0.5)
    noise = np.random.default_rng(0).normal(size=(1, 200, 2, 2, 3)).astype(np.float32)
    others = jax.live_arrays()  # of other tests
    before = {id(array) for array in others}

    def denoise(x, t, frames):
        assert isinstance(x, np.ndarray) and x.shape[1] == 4
        assert not [a for a in jax.live_arrays() if a.size >= 100 * 2 * 2 * 3 and id(a) not in before]
        return jnp.sin(x)

    result = sample_windowed(denoise, noise, schedule, options)
    assert isinstance(result, np.ndarray) and result.dtype == np.float32 and np.isfinite(result).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_is_its_videos(sampler):
    """Each with its key: of the noise it starts from and of the noise that is added on the way."""
    schedule = make_schedule(ScheduleConfig(prediction="v"))
    options = dataclasses.replace(OPTIONS, sampler=sampler, guidance=2.0, guidance_rescale=0.5)

    def run(keys):
        noise = initial_noise(keys, (len(keys), *SHAPE[1:]), shared=True)
        return sample_windowed(lambda x, t, frames: np.sin(x), noise, schedule, options, keys=keys)

    together = run(KEYS)
    assert np.abs(together[0] - together[1]).max() > 0.1
    for i in range(2):
        np.testing.assert_allclose(together[i : i + 1], run(KEYS[i : i + 1]), rtol=1e-5, atol=1e-6)


def test_overlapping_windows_are_averaged_and_the_rest_is_not_touched():
    """Window n says n: one step of x0 prediction to the end returns the blended prediction itself."""
    schedule = make_schedule(ScheduleConfig(prediction="x0"))
    chunks = windows(7, 4, 2)
    assert chunks == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]
    number = {tuple(chunk): n for n, chunk in enumerate(chunks)}

    def denoise(x, t, frames):
        return jnp.full(x.shape, float(number[tuple(frames[0].tolist())]))

    result = sample_windowed(denoise, NOISE, schedule, dataclasses.replace(OPTIONS, steps=1))
    expected = [0, 0, (0 + 1) / 2, (0 + 1 + 2) / 3, (1 + 2) / 2, (1 + 2) / 2, 2]
    np.testing.assert_allclose(result[0, :, 0, 0, 0], expected, atol=1e-6)
    assert np.ptp(result, axis=(2, 3, 4)).max() < 1e-6


@pytest.mark.parametrize("together", [2, 5])
def test_windows_denoised_together_are_the_same(together):
    """Two guided videos; what is predicted depends on the video, the window and the half of guidance."""
    schedule, calls = make_schedule(ScheduleConfig(prediction="x0")), []
    noise = np.random.default_rng(0).normal(size=(2, 7, 2, 2, 3)).astype(np.float32)
    options = dataclasses.replace(OPTIONS, steps=2, guidance=2.0)

    def denoise(x, t, frames):
        calls.append(frames.shape)
        by_video = x.reshape(2, len(frames), 2, *x.shape[1:])
        halves = np.array([0.5, 1.5]).reshape(2, 1, 1, 1, 1)
        return (by_video * halves + frames[None, :, :1, None, None, None, None]).reshape(x.shape).astype(np.float32)

    alone, several = (
        sample_windowed(denoise, noise, schedule, options, windows_per_call=count) for count in (1, together)
    )
    np.testing.assert_allclose(several, alone, rtol=1e-6)
    number = len(windows(7, options.window, options.overlap))
    assert number % together and calls == 2 * number * [(1, 4)] + 2 * -(-number // together) * [(together, 4)]
    assert num_function_evaluations(7, options, together) == 2 * -(-number // together)


@pytest.mark.parametrize("scale, expected", [(1.5, 1 + 1.5 * 2), (4.0, 1 + 4.0 * 2)])
def test_guidance_starts_from_the_unconditional_half(scale, expected):
    """Rows are [unconditional, conditional]; they say 1 and 3."""
    schedule = make_schedule(ScheduleConfig(prediction="x0"))

    def denoise(x, t, frames):
        np.testing.assert_array_equal(x[0], x[1])
        assert t.shape == (2, 1)
        return jnp.stack([jnp.full(x.shape[1:], 1.0), jnp.full(x.shape[1:], 3.0)])

    result = sample_windowed(denoise, NOISE, schedule, dataclasses.replace(OPTIONS, steps=1, guidance=scale))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_without_guidance_only_the_conditional_half_is_computed(scale):
    schedule = make_schedule(ScheduleConfig(prediction="x0"))

    def denoise(x, t, frames):
        assert x.shape[0] == t.shape[0] == 1
        return x

    sample_windowed(denoise, NOISE, schedule, dataclasses.replace(OPTIONS, guidance=scale))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_guided_at_the_timesteps_that_it_visits(sampler, spacing):
    schedule, rows = make_schedule(ScheduleConfig(prediction="x0", timestep_spacing=spacing)), []
    options = dataclasses.replace(
        OPTIONS, sampler=sampler, steps=4, guidance=2.0, guidance_interval=(0.6, 0.85), window=7
    )

    def denoise(x, t, frames):
        rows.append((int(t[0, 0]), x.shape[0]))
        return x

    sample_windowed(denoise, NOISE, schedule, options)
    assert [count for _, count in rows] == [1 + (0.6 <= t / 999 <= 0.85) for t, _ in rows]
    assert len({t for t, _ in rows}) == num_function_evaluations(SHAPE[1], options) == 4


def test_guidance_is_limited_to_its_interval():
    schedule, rows = make_schedule(ScheduleConfig(prediction="x0")), []
    options = dataclasses.replace(OPTIONS, steps=4, guidance=2.0, guidance_interval=(0.4, 0.8), window=7)

    def denoise(x, t, frames):
        rows.append((int(t[0, 0]), x.shape[0]))
        return x

    sample_windowed(denoise, NOISE, schedule, options)
    assert rows == [(999, 1), (749, 2), (499, 2), (249, 1)]


def test_shifted_windows_put_no_seam_twice_in_the_same_place():
    schedule, starts = make_schedule(ScheduleConfig(prediction="x0")), {}

    def denoise(x, t, frames):
        starts.setdefault(int(t[0, 0]), []).append(int(frames[0, 0]))
        return x

    noise = np.ones((1, 60, 1, 1, 1), np.float32)
    options = dataclasses.replace(OPTIONS, steps=4, window=16, overlap=4, shift_windows=True)
    sample_windowed(denoise, noise, schedule, options)
    inner = [tuple(s for s in step if 0 < s < 44) for step in starts.values()]
    assert len(inner) == 4 and len({s for step in inner for s in step}) == sum(map(len, inner))


@pytest.mark.parametrize("sampler", ["dpm_solver", "unipc", "euler", "euler_ancestral"])
def test_every_sampler_denoises_long_guided_videos(sampler):
    """The clean clip is known; windows and guidance change nothing about it."""
    schedule, calls = make_schedule(ScheduleConfig(prediction="x0")), []
    options = dataclasses.replace(OPTIONS, sampler=sampler, guidance=2.0)

    def denoise(x, t, frames):
        return jnp.broadcast_to(CLEAN[:, frames[0]], x.shape)

    result = sample_windowed(denoise, NOISE, schedule, options, calls.append)
    np.testing.assert_allclose(result, CLEAN, atol=1e-5)
    assert len(calls) == num_function_evaluations(SHAPE[1], options)


@pytest.mark.parametrize("field", [{"steps": 0}, {"overlap": 4}])
def test_impossible_options(field):
    schedule = make_schedule(ScheduleConfig(prediction="x0"))
    with pytest.raises(UserError):
        sample_windowed(lambda x, t, frames: x, NOISE, schedule, dataclasses.replace(OPTIONS, **field))
