"""What is trained and what is frozen, the learning rate, the averaged weights."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.config import OptimConfig
from animate_jax.errors import UserError
from animate_jax.training.state import make_state, optimizer, sampling_params, update_ema

PARAMS = {"unet.conv.kernel": jnp.ones((2, 2)), "unet.motion.kernel": jnp.ones(3), "vae.conv.kernel": jnp.ones(4)}
PLAIN = OptimConfig(learning_rate=1.0, warmup=4, weight_decay=0.0)


def rates(config, steps):
    """The learning rate of every step: with a constant gradient, Adam moves by just that."""
    tx, params = optimizer(config, steps), {"x": jnp.zeros(())}
    opt, found = tx.init(params), []
    for _ in range(steps):
        updates, opt = tx.update({"x": jnp.ones(())}, opt, params)
        found.append(-float(updates["x"]))
    return found


def test_parameters_are_divided_by_their_paths():
    state = make_state(PARAMS, r".*motion|vae", optimizer(PLAIN, 10), ema=True)
    assert state["trainable"].keys() == state["ema"].keys() == {"unet.motion.kernel", "vae.conv.kernel"}
    assert state["frozen"].keys() == {"unet.conv.kernel"}
    assert make_state(PARAMS, r"motion|unet\.motion", optimizer(PLAIN, 10), ema=False)["ema"] == {}


def test_a_pattern_that_matches_nothing():
    with pytest.raises(UserError, match=r"--trainable 'motion' matches no parameter.*'unet.conv.kernel'"):
        make_state(PARAMS, "motion", optimizer(PLAIN, 10), ema=True)


def test_averages_are_sampled_from_where_they_are_kept():
    state = make_state(PARAMS, "vae", optimizer(PLAIN, 10), ema=True)
    state["ema"]["vae.conv.kernel"] = jnp.full(4, 5.0)
    sampled = sampling_params(state)
    assert sampled.keys() == PARAMS.keys()
    np.testing.assert_array_equal(sampled["vae.conv.kernel"], 5)
    assert sampled["unet.conv.kernel"] is state["frozen"]["unet.conv.kernel"]
    np.testing.assert_array_equal(sampling_params(state | {"ema": {}})["vae.conv.kernel"], 1)


def test_warm_up_then_constant():
    np.testing.assert_allclose(rates(PLAIN, 8), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1], atol=1e-5)


def test_cosine_after_half_of_the_steps_ends_near_zero():
    found = rates(dataclasses.replace(PLAIN, decay="cosine"), 40)
    np.testing.assert_allclose(found[4:21], 1, atol=1e-5)
    np.testing.assert_allclose(found[30], 0.5, atol=1e-5)
    assert (np.diff(found[20:]) < 0).all() and 0 < found[-1] < 0.01


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up(warmup):
    np.testing.assert_allclose(rates(dataclasses.replace(PLAIN, warmup=warmup), 3)[warmup:], 1, atol=1e-5)


def test_large_gradients_are_clipped_together():
    tx = optimizer(dataclasses.replace(PLAIN, betas=(0.0, 0.0)), 10)
    params = {"x": jnp.zeros(()), "y": jnp.zeros(())}
    _, opt = tx.update({"x": jnp.array(30.0), "y": jnp.array(40.0)}, tx.init(params), params)
    moments = opt[1][0].mu
    np.testing.assert_allclose([moments["x"], moments["y"]], [0.6, 0.8], rtol=1e-5)


def test_the_average_forgets_the_start_first_and_then_slows_down():
    ema, params = {"x": jnp.array(0.0)}, {"x": jnp.array(1.0)}
    np.testing.assert_allclose(update_ema(ema, params, jnp.array(0), 0.999)["x"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(update_ema(ema, params, jnp.array(10**6), 0.999)["x"], 0.001, rtol=1e-3)
    assert update_ema({}, params, jnp.array(0), 0.0) == {}
