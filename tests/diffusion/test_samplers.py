import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from animate_jax.config import ScheduleConfig, presets
from animate_jax.diffusion.samplers import ddim_step, timesteps
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError

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
    return 0.6 * x + 0.3 * x**2 / (1 + x**2) - 0.0002 * t


@pytest.mark.parametrize("steps", [1, 7, 20, 30])
@pytest.mark.parametrize("config", CASES, ids=name)
def test_ddim_is_diffusers(config, steps):
    schedule, theirs = make_schedule(config), ddim(config)
    theirs.set_timesteps(steps)
    noise = np.random.default_rng(0).normal(size=(1, 2, 4, 3)).astype(np.float32)
    ours, expected = jnp.asarray(noise), torch.from_numpy(noise)
    step = jax.jit(lambda x, t: ddim_step(schedule, model(x, t), x, t, steps))
    for t, torch_t in zip(timesteps(steps, schedule), theirs.timesteps, strict=True):
        ours = step(ours, jnp.int32(t))
        expected = theirs.step(model(expected, int(torch_t)), torch_t, expected, eta=0.0).prev_sample
        assert np.abs(ours - expected.numpy()).max() < 1e-5 * np.abs(expected.numpy()).max()


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_a_perfect_model_recovers_x0_within_fori_loop(prediction):
    schedule, steps = make_schedule(ScheduleConfig(prediction=prediction)), 20
    x0, noise = (jax.random.normal(jax.random.key(i), (1, 2, 4, 4, 3)) for i in range(2))
    visited = jnp.asarray(timesteps(steps, schedule))

    def body(i, x):
        return ddim_step(schedule, schedule.target(x0, noise, visited[i]), x, visited[i], steps)

    result = jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, x))(noise)
    np.testing.assert_allclose(result, x0, atol=1e-5)
