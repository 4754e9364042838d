"""The field's shared code, written again in its own terms: numpy's 8-bit arithmetic, scikit-image and OpenCV."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import skimage

from animate_jax.evaluation import disco_metrics
from animate_jax.evaluation.image_quality import psnr

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def pictures():
    truth = skimage.data.astronaut()[60:124, 180:240]
    noise = np.random.default_rng(0).normal(0, 25, truth.shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth


def on_device(*arrays):
    return [jnp.asarray(x) for x in arrays]


def test_psnr_overflows_like_numpy(pictures):
    a, b = pictures
    mean = np.mean((a - b) ** 2)  # uint8
    assert (a - b).dtype == np.uint8
    np.testing.assert_allclose(disco_metrics.psnr(*on_device(a, b)), 20 * np.log10(255 / np.sqrt(mean)), rtol=1e-6)
    a, b = on_device(a, b)
    assert disco_metrics.psnr(a, b) > psnr(a / 255, b / 255) + 5
    assert disco_metrics.psnr(a, a) == 100
    assert disco_metrics.psnr(a, a + jnp.uint8(16)) == 100  # 16 * 16 = 256 = 0


def test_ssim_is_scikit_images_default_of_grey_pictures(pictures):
    gray = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in pictures]
    expected = skimage.metrics.structural_similarity(*gray)
    np.testing.assert_allclose(disco_metrics.ssim(*on_device(*pictures)), expected, rtol=1e-5)
    batch, truth = on_device(np.stack(pictures), np.stack([pictures[1]] * 2))
    np.testing.assert_allclose(disco_metrics.ssim(batch, truth), [expected, 1], rtol=1e-5)
