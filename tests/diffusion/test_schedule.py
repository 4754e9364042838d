import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from animate_jax.config import ScheduleConfig
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError

pytestmark = pytest.mark.compiles

PREDICTIONS = "epsilon", "v", "x0"


def config(**fields) -> ScheduleConfig:
    if fields.get("prediction") == "epsilon":
        fields.setdefault("zero_terminal_snr", False)
    return ScheduleConfig(**fields)


def sample(seed: int, shape=(4, 2, 3, 3, 2)) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("beta_schedule", "expected"),
    [
        ("linear", [0.999150, 0.555703, 0.142529, 0.0133682, 8.04788e-5, 6.277e-8]),
        ("scaled_linear", [0.999150, 0.654189, 0.242359, 0.0331715, 2.47536e-4, 1.968e-7]),
    ],
)
def test_zero_terminal_snr_values(beta_schedule, expected):
    alphas_cumprod = make_schedule(ScheduleConfig(beta_schedule=beta_schedule)).alphas_cumprod
    np.testing.assert_allclose(alphas_cumprod[[0, 249, 499, 749, 966, 998]], expected, rtol=1e-4)
    assert alphas_cumprod[999] == 0
    assert alphas_cumprod.dtype == np.float32
    assert (np.diff(alphas_cumprod) < 0).all()


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("zero", [False, True])
def test_agrees_with_diffusers(beta_schedule, zero):
    ours = make_schedule(ScheduleConfig(beta_schedule=beta_schedule, zero_terminal_snr=zero, prediction="v"))
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=beta_schedule, rescale_betas_zero_snr=zero
    )
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), atol=2e-6)

    x0, noise, t = sample(0), sample(1), np.array([0, 250, 700, 999])
    arguments = [torch.from_numpy(np.array(a)) for a in (x0, noise, t)]
    np.testing.assert_allclose(ours.add_noise(x0, noise, t), theirs.add_noise(*arguments), atol=1e-5)
    np.testing.assert_allclose(ours.target(x0, noise, t), theirs.get_velocity(*arguments), atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 1, 500, 998])
def test_target_implies_x0_and_noise(prediction, t):
    schedule = make_schedule(config(prediction=prediction))
    x0, noise = sample(0), sample(1)
    x_t = schedule.add_noise(x0, noise, t)
    got_x0, got_noise = schedule.to_x0_epsilon(schedule.target(x0, noise, t), x_t, t)
    # epsilon divides by sqrt(alpha_bar) >= 0.068 and x0 by sqrt(1 - alpha_bar) >= 0.029: rounding grows
    np.testing.assert_allclose(got_x0, x0, atol=2e-5)
    np.testing.assert_allclose(got_noise, noise, atol=2e-5)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_exact_where_nothing_of_x0_is_left(prediction):
    schedule = make_schedule(config(prediction=prediction))
    x0, noise, t = sample(0), sample(1), 999
    x_t = schedule.add_noise(x0, noise, t)
    np.testing.assert_array_equal(x_t, noise)
    got_x0, got_noise = schedule.to_x0_epsilon(schedule.target(x0, noise, t), x_t, t)
    np.testing.assert_array_equal(got_x0, x0)
    np.testing.assert_array_equal(got_noise, noise)


def test_epsilon_with_zero_terminal_snr_is_refused():
    with pytest.raises(UserError, match="'epsilon' cannot work with zero_terminal_snr=True"):
        make_schedule(ScheduleConfig(prediction="epsilon", zero_terminal_snr=True))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_sample_has_its_own_timestep(prediction):
    schedule = make_schedule(config(prediction=prediction))
    x0, noise, t = sample(0), sample(1), jnp.array([3, 250, 700, 998])
    together = schedule.target(x0, noise, t), *schedule.to_x0_epsilon(x0, noise, t)
    for i in range(4):
        one = x0[i : i + 1], noise[i : i + 1], int(t[i])
        alone = schedule.target(*one), *schedule.to_x0_epsilon(*one)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=1e-6)


def test_is_a_pytree():
    schedule, x0, noise = make_schedule(ScheduleConfig()), sample(0), sample(1)
    traced = jax.jit(lambda s, t: s.add_noise(x0, noise, t))(schedule, jnp.int32(123))
    np.testing.assert_allclose(traced, schedule.add_noise(x0, noise, 123), rtol=1e-6)


def test_snr():
    schedule = make_schedule(ScheduleConfig())
    alpha_bar = schedule.alphas_cumprod[[0, 500]].astype(np.float64)
    np.testing.assert_allclose(schedule.snr(np.array([0, 500, 999])), [*alpha_bar / (1 - alpha_bar), 0], rtol=1e-5)
