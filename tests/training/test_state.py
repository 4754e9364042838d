"""What is trained and what is frozen, the learning rate, the averaged weights."""

import dataclasses
import functools
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from animate_jax.config import ModelConfig, OptimConfig
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import make_state, sampling_params, update_ema

pytestmark = pytest.mark.compiles

PARAMS = {"unet.conv.kernel": jnp.ones((2, 2)), "unet.motion.kernel": jnp.ones(3), "vae.conv.kernel": jnp.ones(4)}
PLAIN = OptimConfig(learning_rate=1.0, warmup=4, weight_decay=0.0)


def rates(config, steps):
    """The learning rate of every step: with a constant gradient, Adam moves by just that."""
    tx, params = make_optimizer(config, steps), {"x": jnp.zeros(())}
    opt, found = tx.init(params), []
    for _ in range(steps):
        updates, opt = tx.update({"x": jnp.ones(())}, opt, params)
        found.append(-float(updates["x"]))
    return found


def test_parameters_are_divided_by_their_paths():
    state = make_state(PARAMS, r".*motion|vae", make_optimizer(PLAIN, 10), ema=True)
    assert state.trainable.keys() == state.ema.keys() == {"unet.motion.kernel", "vae.conv.kernel"}
    assert state.frozen.keys() == {"unet.conv.kernel"}
    assert make_state(PARAMS, r"motion|unet\.motion", make_optimizer(PLAIN, 10), ema=False).ema == {}


def test_a_pattern_that_matches_nothing():
    with pytest.raises(UserError, match=r"--trainable 'motion' matches no parameter.*'unet.conv.kernel'"):
        make_state(PARAMS, "motion", make_optimizer(PLAIN, 10), ema=True)


def test_frozen_parts_of_what_is_trained():
    state = make_state(PARAMS, r".*", make_optimizer(PLAIN, 10), ema=False, frozen=r"unet\.motion|vae")
    assert state.trainable.keys() == {"unet.conv.kernel"}
    with pytest.raises(UserError, match=r"--trainable 'vae' and --frozen '\.\*' leave no parameter to train"):
        make_state(PARAMS, "vae", make_optimizer(PLAIN, 10), ema=False, frozen=".*")


def test_only_frozen_parameters_are_held_in_bfloat16():
    state = make_state(PARAMS, r"unet\.motion", make_optimizer(PLAIN, 10), ema=True, frozen_bf16=r"vae|unet\.motion")
    assert {path: array.dtype for path, array in sampling_params(state).items()} == {
        "unet.conv.kernel": jnp.float32,
        "unet.motion.kernel": jnp.float32,
        "vae.conv.kernel": jnp.bfloat16,
    }


def test_muon_turns_kernels_and_adamw_moves_the_rest():
    """Orthogonal updates have equal singular values, whatever the gradient's; Adam's are signs."""
    key = jax.random.key(0)
    params = {"a.kernel": jnp.zeros((3, 3, 4, 8)), "conv_in.kernel": jnp.zeros((4, 8)), "a.bias": jnp.zeros(8)}
    gradients = {path: jax.random.normal(key, array.shape) for path, array in params.items()}
    tx = make_optimizer(dataclasses.replace(PLAIN, optimizer="muon", warmup=0, clip_norm=1e9), 10)
    updates, _ = tx.update(gradients, tx.init(params), params)
    values = np.linalg.svd(updates["a.kernel"].reshape(36, 8), compute_uv=False) / (0.2 * 6)
    np.testing.assert_allclose(values, 1, atol=0.35)  # five Newton-Schulz steps bring them to 0.7 ... 1.2
    for path in ("conv_in.kernel", "a.bias"):
        step = np.abs(updates[path]).max()  # Nesterov's first step is 1.47 times Adam's
        np.testing.assert_allclose(updates[path], -step * np.sign(gradients[path]), rtol=1e-4)


def test_muon_on_stacks_is_muon_on_each():
    """Kernels of one shape are moved together, each as if alone: two steps, with decay, against optax one by one."""
    key = jax.random.key(0)
    shapes = {
        "b.kernel": (3, 3, 4, 8),
        "c.kernel": (6, 5),
        "a.kernel": (3, 3, 4, 8),
        "d.kernel": (6, 5),
        "e.bias": (8,),
    }
    params = {path: jax.random.normal(jax.random.fold_in(key, i), s) for i, (path, s) in enumerate(shapes.items())}
    config = dataclasses.replace(PLAIN, optimizer="muon", warmup=0, clip_norm=1e9, weight_decay=0.1)
    tx = make_optimizer(config, 10)

    @functools.partial(jax.jit, static_argnums=0)
    def walk(tx, params):
        state = tx.init(params)
        for i in range(2):
            gradients = {path: jax.random.normal(jax.random.fold_in(key, i), a.shape) for path, a in params.items()}
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    alone = optax.contrib.muon(
        config.learning_rate,
        weight_decay=0.1,
        consistent_rms=0.2,
        adam_b1=config.betas[0],
        adam_b2=config.betas[1],
        adam_weight_decay=0.1,
        muon_weight_dimension_numbers=lambda tree: {
            path: optax.contrib.MuonDimensionNumbers(tuple(range(a.ndim - 1)), (a.ndim - 1,))
            if getattr(a, "ndim", 0) > 1
            else None
            for path, a in tree.items()
        },
    )
    expected = walk(alone, params)
    for path, array in walk(tx, params).items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_factored_moments_are_small_and_go_down():
    """A quarter of AdamW's bytes for a matrix; and gradient descent that ends where the loss does."""
    params = {"x": jnp.zeros((256, 512)), "b": jnp.zeros(3)}
    wanted = {"x": jnp.outer(jnp.linspace(-1, 1, 256), jnp.ones(512)), "b": jnp.array([1.0, -1.0, 0.5])}
    config = dataclasses.replace(PLAIN, learning_rate=0.05, moments="factored", decay="cosine", clip_norm=1e9)
    tx = make_optimizer(config, 200)
    opt = tx.init(params)
    full = make_optimizer(PLAIN, 200).init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(opt)) < 0.27 * sum(leaf.nbytes for leaf in jax.tree.leaves(full))

    def one(_, carry):
        params, opt = carry
        updates, opt = tx.update(jax.tree.map(jnp.subtract, params, wanted), opt, params)
        return optax.apply_updates(params, updates), opt

    params, _ = jax.lax.fori_loop(0, 200, one, (params, opt))
    for name, array in wanted.items():
        np.testing.assert_allclose(params[name], array, atol=0.02)


@pytest.mark.slow  # the shapes of the full-size model take some 10 s
def test_the_configurations_train_what_the_paper_and_the_peers_train():
    """Parameter counts of the peers' own modules: two UNets of 859.5 M, a Pose Guider, 21 temporal layers."""
    shapes = abstract_model(ModelConfig.sd15())[1]

    def count(name, frozen=None):
        config = runpy.run_path(f"configs/{name}.py")["get_config"]()
        kept = [path for path in shapes if not (frozen and re.match(frozen, path))]
        return sum(shapes[path].size for path in kept if re.match(config.trainable, path))

    assert count("stage1") == 859_508_800 + 1_312_730_244 - 453_209_280 + 1_086_480
    assert count("stage1") - count("stage1", r"reference_unet\.up_blocks\.3\.") == 18_810_560
    assert count("stage2") == 453_209_280
    assert count("vae") < 83_653_863


def test_averages_are_sampled_from_where_they_are_kept():
    state = make_state(PARAMS, "vae", make_optimizer(PLAIN, 10), ema=True)
    state.ema["vae.conv.kernel"] = jnp.full(4, 5.0)
    sampled = sampling_params(state)
    assert sampled.keys() == PARAMS.keys()
    np.testing.assert_array_equal(sampled["vae.conv.kernel"], 5)
    assert sampled["unet.conv.kernel"] is state.frozen["unet.conv.kernel"]
    np.testing.assert_array_equal(sampling_params(state._replace(ema={}))["vae.conv.kernel"], 1)


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
    tx = make_optimizer(dataclasses.replace(PLAIN, betas=(0.0, 0.0)), 10)
    params = {"x": jnp.zeros(()), "y": jnp.zeros(())}
    _, opt = tx.update({"x": jnp.array(30.0), "y": jnp.array(40.0)}, tx.init(params), params)
    moments = opt[1][0].mu
    np.testing.assert_allclose([moments["x"], moments["y"]], [0.6, 0.8], rtol=1e-5)


def test_the_average_forgets_the_start_first_and_then_slows_down():
    ema, params = {"x": jnp.array(0.0)}, {"x": jnp.array(1.0)}
    np.testing.assert_allclose(update_ema(ema, params, jnp.array(0), 0.999)["x"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(update_ema(ema, params, jnp.array(10**6), 0.999)["x"], 0.001, rtol=1e-3)
    assert update_ema({}, params, jnp.array(0), 0.0) == {}
