import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import ScheduleConfig
from animate_jax.diffusion.losses import loss_weight, sample_noise, weighted_mse
from animate_jax.diffusion.schedule import make_schedule

pytestmark = pytest.mark.compiles

T = jnp.array([0, 100, 400, 700, 999])


def schedule(prediction: str):
    return make_schedule(ScheduleConfig(prediction=prediction, zero_terminal_snr=prediction != "epsilon"))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_min_snr_gives_every_prediction_the_same_weight_on_x0(prediction):
    made = schedule(prediction)
    snr = made.alphas_cumprod[T].astype(np.float64) / (1 - made.alphas_cumprod[T].astype(np.float64))
    # squared error of the prediction = factor * squared error of the x0 it implies
    factor = {"epsilon": snr, "v": snr + 1, "x0": 1}[prediction]
    bounded = np.minimum(snr + 1 if prediction == "v" else snr, 5)
    np.testing.assert_allclose(loss_weight(made, T, "min_snr"), bounded / factor, rtol=1e-4)


def test_x0_weight_is_bounded():
    made = schedule("x0")
    expected = [5, 5, *1 / (1 - made.alphas_cumprod[np.array([400, 700])]), 1]
    np.testing.assert_allclose(loss_weight(made, T, "x0"), expected, rtol=1e-5)


def test_no_weight_is_one():
    np.testing.assert_array_equal(loss_weight(schedule("v"), T, "none"), np.ones(5))


def test_weights_are_finite_and_gamma_matters():
    for prediction in ("epsilon", "v", "x0"):
        for weighting in ("none", "min_snr", "x0"):
            assert jnp.isfinite(loss_weight(schedule(prediction), jnp.arange(1000), weighting)).all()
    assert loss_weight(schedule("x0"), T, "x0", gamma=2.0)[0] == 2


def test_weighted_mse_is_per_sample():
    prediction, target = (jax.random.normal(jax.random.key(i), (3, 2, 4, 4, 5)) for i in range(2))
    weight = jnp.array([1.0, 2.0, 0.0])
    expected = np.square(prediction - target).mean(axis=(1, 2, 3, 4)) * weight
    np.testing.assert_allclose(weighted_mse(prediction, target, weight), expected, rtol=1e-5)


def test_spatial_weight_has_mean_one_per_sample():
    prediction, target = jnp.ones((2, 3, 4, 4, 5)), jnp.zeros((2, 3, 4, 4, 5))
    spatial = jax.random.uniform(jax.random.key(0), (2, 3, 4, 4, 1)) * jnp.array([1, 7]).reshape(2, 1, 1, 1, 1)
    np.testing.assert_allclose(weighted_mse(prediction, target, jnp.ones(2), spatial), 1, rtol=1e-6)


def test_spatial_weight_selects():
    target = jnp.zeros((1, 2, 2, 3))
    prediction = target.at[0, 0, 0].set(1.0)
    spatial = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0].set(3.0)
    np.testing.assert_allclose(weighted_mse(prediction, target, jnp.ones(1), spatial), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weighted_mse(prediction, target, jnp.ones(1), 1 - spatial / 3), 0.0)


def test_noise_is_standard_normal():
    noise = sample_noise(jax.random.key(0), (2, 4, 32, 32, 4))
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


def test_noise_offset_is_one_number_per_sample_and_channel():
    shape = (2, 4, 8, 8, 3)
    offset = sample_noise(jax.random.key(0), shape, offset=0.05) - sample_noise(jax.random.key(0), shape)
    assert np.ptp(offset, axis=(1, 2, 3)).max() < 1e-6
    assert len(np.unique(np.round(offset[:, 0, 0, 0], 4))) == 6

    many = sample_noise(jax.random.key(1), (4000, 1, 1, 1), offset=0.05) - sample_noise(
        jax.random.key(1), (4000, 1, 1, 1)
    )
    assert abs(many.std() - 0.05) < 0.003
