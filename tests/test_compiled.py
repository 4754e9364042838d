"""Losses and metrics compiled and operation by operation are the same at the sizes they are used at.

Compilers have computed some programs wrongly from a certain number of rows on (`animate_jax/xla_flags.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.diffusion import losses
from animate_jax.evaluation import disco_metrics, image_quality
from animate_jax.perceptual import lpips

pytestmark = pytest.mark.compiles

HEIGHT, WIDTH = 768, 512
BOXES = np.array([[40, 60, 470, 700]])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pictures(rng, frames):
    """Two videos in [0, 1] that are near each other, as results and truths are."""
    a = rng.random((frames, HEIGHT, WIDTH, 3), np.float32)
    return a, np.clip(a + 0.1 * rng.standard_normal(a.shape, np.float32), 0, 1)


def random_lpips(rng, net):
    convs, channels = [], 3
    for size, width in [conv for stage in lpips.STAGES[net] for conv in stage]:
        scale = (2 / (size * size * channels)) ** 0.5
        kernel = scale * rng.standard_normal((size, size, channels, width), np.float32)
        convs.append({"kernel": kernel, "bias": np.zeros(width, np.float32)})
        channels = width
    return {"convs": convs, "heads": [rng.random(stage[-1][1], np.float32) for stage in lpips.STAGES[net]]}


def check(function, *arrays, tolerance=1e-5):
    arrays = jax.tree.map(jnp.asarray, arrays)
    for expected, got in zip(*(jax.tree.leaves(f(*arrays)) for f in (function, jax.jit(function))), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("frames", [1, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("boxes", [None, BOXES], ids=["whole", "box"])
@pytest.mark.parametrize("metric", ["l1", "psnr", "ssim"])
def test_image_quality(metric, boxes, frames, rng):
    function = getattr(image_quality, metric)
    for each in range(0, frames, 4):  # of many frames operation by operation, SSIM's take gigabytes
        a, b = pictures(rng, min(4, frames - each))
        check(functools.partial(function, boxes=None if boxes is None else boxes.repeat(len(a), 0)), a, b)


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_disco(metric, rng):
    a, b = ((255 * x[0]).astype(np.uint8) for x in pictures(rng, 1))
    check(getattr(disco_metrics, metric), a, b)


@pytest.mark.slow
def test_cut_boxes(rng):
    """Positions of up to 768 pixels are rounded to 1e-4, over which noise changes as much."""
    a, _ = pictures(rng, 1)
    check(lambda x: image_quality.crop_resize(x, BOXES, HEIGHT * 7 // 8, WIDTH * 2 // 3), a, tolerance=1e-4)


@pytest.mark.parametrize(
    "net, stages", [("vgg", 1), *(pytest.param(net, 5, marks=pytest.mark.slow) for net in ("alex", "vgg"))]
)
def test_lpips(net, stages, rng):
    params = random_lpips(rng, net)
    a, b = (2 * x - 1 for x in pictures(rng, 1))
    constant = functools.partial(lpips.lpips, params, net=net, stages=stages)  # as a loss holds its weights
    check(constant, a, b, tolerance=1e-4)
    check(functools.partial(lpips.lpips, net=net, stages=stages), params, a, b, tolerance=1e-4)


LATENTS = (1, 24, HEIGHT // 8, WIDTH // 8, 4)


def test_training_losses(rng):
    """24 frames of 512x768 in latent space, 147,456 rows, with gradients; and what weighs them."""
    prediction, target = (jnp.asarray(rng.standard_normal(LATENTS, np.float32)) for _ in range(2))
    weight, spatial = jnp.ones(1), jnp.asarray(0.1 + rng.random((*LATENTS[:-1], 1), np.float32))
    for where in (None, spatial):
        loss = functools.partial(losses.weighted_mse, weight=weight, spatial_weight=where)
        check(loss, prediction, target)
        check(jax.grad(lambda x, loss=loss: loss(x, target).mean()), prediction)


@pytest.mark.slow
def test_flicker(rng):
    frames = LATENTS[1]
    truth = np.repeat(rng.integers(0, 256, (1, 1, HEIGHT, WIDTH, 3), np.uint8), frames, 1)
    truth[:, 1:, : HEIGHT // 2] = rng.integers(0, 256, truth[:, 1:, : HEIGHT // 2].shape, np.uint8)
    truth = jnp.asarray(truth)
    latents = rng.standard_normal(LATENTS, np.float32)
    check(losses.flicker, latents, truth)
    check(jax.grad(lambda x: losses.flicker(x, truth).sum()), latents)


@pytest.mark.slow
def test_noise():
    check(functools.partial(losses.sample_noise, shape=LATENTS, offset=0.05), jax.random.key(0))


def test_products_of_rows(rng):
    """The pattern that was wrong: many rows by a small matrix that the program holds, summed."""
    points, matrix = rng.standard_normal((65536, 3), np.float32), jnp.asarray(rng.random((3, 3), np.float32))
    check(lambda x: jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x), points)
