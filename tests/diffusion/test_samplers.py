import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch

from animate_jax.config import ScheduleConfig
from animate_jax.diffusion.noise import per_frame_normal
from animate_jax.diffusion.samplers import SAMPLERS, ddim_step, timesteps
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.presets import presets

pytestmark = pytest.mark.compiles

KEYS = jax.random.key(3)[None]
CASES = [
    ScheduleConfig(prediction=prediction, beta_schedule=betas, timestep_spacing=spacing, zero_terminal_snr=zero)
    for prediction in ("epsilon", "v", "x0")
    for betas in ("linear", "scaled_linear")
    for spacing in ("trailing", "leading")
    for zero in (False, True)
    if not (prediction == "epsilon" and zero)
]


def name(config: ScheduleConfig) -> str:
    zero = "zero" if config.zero_terminal_snr else "usual"
    return f"{config.prediction}-{config.beta_schedule}-{config.timestep_spacing}-{zero}"


def ddim(config: ScheduleConfig) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        clip_sample=False,
        steps_offset=config.steps_offset,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[config.prediction],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing=config.timestep_spacing,
    )


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 2, 5, 7, 8, 20, 25, 30, 50, 333, 500, 999])
def test_timesteps_are_diffusers(spacing, steps):
    config = ScheduleConfig(timestep_spacing=spacing)
    theirs = ddim(config)
    theirs.set_timesteps(steps)
    assert timesteps(steps, make_schedule(config)).tolist() == theirs.timesteps.tolist()


def test_timesteps_of_the_peers():
    linear = make_schedule(ScheduleConfig(beta_schedule="linear"))
    assert timesteps(20, linear).tolist() == list(range(999, 0, -50))
    assert timesteps(30, linear).tolist()[:6] == [999, 966, 932, 899, 866, 832]
    first_version = make_schedule(presets()["paper"].schedule)
    assert timesteps(30, first_version)[[0, -1]].tolist() == [958, 1]


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_timesteps_are_valid_for_every_number_of_steps(spacing):
    schedule = make_schedule(ScheduleConfig(timestep_spacing=spacing))
    for steps in range(1, 1000):
        t = timesteps(steps, schedule)
        assert len(t) == steps and t.min() >= 0 and t.max() <= 999 and (np.diff(t) < 0).all()


def test_rounding_surplus_is_dropped():
    # arange(1000, 0, -1000 / 61) has 62 elements
    t = timesteps(61, make_schedule(ScheduleConfig()))
    assert len(t) == 61 and t[-1] == 15


@pytest.mark.parametrize("steps", [0, 1001])
def test_too_few_or_many_steps(steps):
    with pytest.raises(UserError, match=f"between 1 and 1000, not {steps}"):
        timesteps(steps, make_schedule(ScheduleConfig()))


def test_leading_spacing_must_stay_inside_the_schedule():
    with pytest.raises(UserError, match="begin at timestep 1000, but the last is 999"):
        timesteps(1000, make_schedule(ScheduleConfig(timestep_spacing="leading")))


def model(x, t):
    """Any smooth function of the sample and the timestep; the same in numpy, jax and torch."""
    return 0.6 * x + 0.3 * x**2 / (1 + x**2) - 0.0002 * float(t)


@pytest.mark.parametrize("steps", [1, 7, 20, 30])
@pytest.mark.parametrize("config", CASES, ids=name)
def test_ddim_is_diffusers(config, steps):
    schedule, theirs = make_schedule(config), ddim(config)
    theirs.set_timesteps(steps)
    noise = np.random.default_rng(0).normal(size=(1, 2, 4, 3)).astype(np.float32)
    ours, expected = noise, torch.from_numpy(noise)
    for t, torch_t in zip(timesteps(steps, schedule), theirs.timesteps, strict=True):
        ours = ddim_step(schedule, model(ours, t), ours, t, steps)
        expected = theirs.step(model(expected, int(torch_t)), torch_t, expected, eta=0.0).prev_sample
        assert np.abs(ours - expected.numpy()).max() < 1e-5 * np.abs(expected.numpy()).max()


MULTISTEP = {"dpm_solver": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}
IN_SIGMAS = {"euler": diffusers.EulerDiscreteScheduler, "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler}


def scheduler(cls, config: ScheduleConfig, **options):
    """diffusers' scheduler of that configuration; its defaults are the cited algorithms of second order."""
    theirs = cls.from_config({**ddim(config).config, "_class_name": cls.__name__}, **options)
    # Theirs are multiplied up in float32, and where 1 - alpha_bar is small 1e-4 of it is lost.
    exact = make_schedule(config).alphas_cumprod
    theirs.alphas_cumprod = torch.from_numpy(np.maximum(exact, 2.0**-24).astype(np.float64))
    return theirs


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # theirs, with NumPy 2
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("config", CASES, ids=name)
@pytest.mark.parametrize("sampler", MULTISTEP)
def test_multistep_solvers_are_diffusers(sampler, config, steps):
    schedule, theirs = make_schedule(config), scheduler(MULTISTEP[sampler], config)
    theirs.set_timesteps(steps)
    noise = np.random.default_rng(0).normal(size=(1, 2, 4, 3)).astype(np.float32)
    visited = []

    def denoise(x, t):
        visited.append(int(t))
        return model(x, t)

    ours = SAMPLERS[sampler](denoise, noise, schedule, steps, KEYS)
    assert visited == theirs.timesteps.tolist()
    expected = torch.from_numpy(noise).double()
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, int(t)), t, expected).prev_sample
    assert np.abs(ours - expected.numpy()).max() < 1e-5 * np.abs(expected.numpy()).max()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # theirs, with NumPy 2
@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("config", [c for c in CASES if c.prediction != "x0"], ids=name)
@pytest.mark.parametrize("sampler", IN_SIGMAS)
def test_euler_is_diffusers(sampler, config, steps, monkeypatch):
    schedule, theirs = make_schedule(config), scheduler(IN_SIGMAS[sampler], config)
    theirs.set_timesteps(steps)
    noise = np.random.default_rng(0).normal(size=(1, 2, 4, 3)).astype(np.float32)
    ours = SAMPLERS[sampler](model, noise, schedule, steps, KEYS)
    fresh = [
        torch.from_numpy(per_frame_normal(jax.random.fold_in(KEYS[0], i)[None], noise.shape)) for i in range(steps)
    ]
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: fresh.pop(0))
    # Theirs is x / signal, of variance sigma^2 + 1.
    expected = torch.from_numpy(noise) * (theirs.sigmas[0] ** 2 + 1) ** 0.5
    for t in theirs.timesteps:
        seen = theirs.scale_model_input(expected, t)
        expected = theirs.step(model(seen, float(t)), t, expected).prev_sample
    # With zero terminal SNR their x begins 4096 times as large, in float32, and loses 12 bits on the way down.
    tolerance = 5e-4 if config.zero_terminal_snr and config.timestep_spacing == "trailing" else 1e-5
    assert np.abs(ours - expected.numpy()).max() < tolerance * np.abs(expected.numpy()).max()


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("config", [c for c in CASES if c.timestep_spacing == "trailing"], ids=name)
def test_lcm_is_diffusers(config, steps, monkeypatch):
    schedule, theirs = make_schedule(config), scheduler(diffusers.LCMScheduler, config)
    # Their own are multiples of a 50th, 999, 759, 499, 259; every timestep is trained here.
    theirs.set_timesteps(timesteps=timesteps(steps, schedule).tolist())
    noise = np.random.default_rng(0).normal(size=(1, 2, 4, 3)).astype(np.float32)
    ours = SAMPLERS["lcm"](model, noise, schedule, steps, KEYS)
    fresh = [
        torch.from_numpy(per_frame_normal(jax.random.fold_in(KEYS[0], i)[None], noise.shape)) for i in range(steps)
    ]
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: fresh.pop(0))
    expected = torch.from_numpy(noise).double()
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, int(t)), t, expected).prev_sample
    assert np.abs(ours - expected.numpy()).max() < 1e-5 * np.abs(expected.numpy()).max()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["v", "x0", "epsilon"])
def test_every_sampler_recovers_x0_from_a_perfect_model(sampler, prediction):
    schedule = make_schedule(ScheduleConfig(prediction=prediction, zero_terminal_snr=prediction != "epsilon"))
    x0, noise = np.random.default_rng(0).normal(size=(2, 1, 2, 4, 3)).astype(np.float32)
    x = schedule.add_noise(x0, noise, 999)

    def perfect(x, t):
        _, epsilon = dataclasses.replace(
            schedule, config=dataclasses.replace(schedule.config, prediction="x0")
        ).to_x0_epsilon(x0, x, t)
        return schedule.target(x0, epsilon, t)

    result = SAMPLERS[sampler](perfect, x, schedule, 12, KEYS)
    assert isinstance(result, np.ndarray) and result.dtype == np.float32
    np.testing.assert_allclose(result, x0, atol=2e-4 if prediction == "epsilon" else 1e-5)
