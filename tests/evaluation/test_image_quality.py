"""Picture metrics against scikit-image, and boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage

from animate_jax.evaluation.image_quality import crop_resize, l1, person_box, psnr, ssim

pytestmark = pytest.mark.compiles

BOX = np.array([12, 3, 40, 50])


@pytest.fixture(scope="module")
def pictures():
    """A photograph with a flat patch, and the same with noise: float64 in [0, 1]."""
    truth = skimage.data.astronaut()[60:124, 180:240] / 255.0
    truth[:20, :20] = 0.9
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 0.05, truth.shape), 0, 1)
    return truth, noisy


def to_jax(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def skimage_ssim(a, b, full=False):
    return skimage.metrics.structural_similarity(
        a,
        b,
        data_range=1,
        channel_axis=-1,
        full=full,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def test_equals_scikit_image(pictures):
    truth, noisy = pictures
    a, b = to_jax(*pictures)
    np.testing.assert_allclose(ssim(a, b), skimage_ssim(truth, noisy), rtol=1e-5)
    expected = skimage.metrics.peak_signal_noise_ratio(truth, noisy, data_range=1)
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(l1(a, b), np.abs(truth - noisy).mean(), rtol=1e-5)


def test_a_box_counts_its_pixels_only(pictures):
    truth, noisy = pictures
    a, b = to_jax(*pictures)
    x0, y0, x1, y1 = BOX
    inside = np.s_[y0:y1, x0:x1]
    expected = skimage.metrics.peak_signal_noise_ratio(truth[inside], noisy[inside], data_range=1)
    np.testing.assert_allclose(psnr(a, b, BOX), expected, rtol=1e-5)
    np.testing.assert_allclose(l1(a, b, BOX), np.abs(truth - noisy)[inside].mean(), rtol=1e-5)
    _, similarity = skimage_ssim(truth, noisy, full=True)
    np.testing.assert_allclose(ssim(a, b, BOX), similarity[inside].mean(), rtol=1e-5)


@pytest.mark.parametrize("metric", [l1, psnr, ssim])
def test_leading_axes_are_independent_pictures(pictures, metric):
    a, b = to_jax(*pictures)
    batch = jnp.stack([a, b, 1 - a, a**2]).reshape(2, 2, *a.shape)
    boxes = np.stack([BOX, BOX + 5, BOX - 3, [0, 0, 60, 64]]).reshape(2, 2, 4)
    truths = jnp.broadcast_to(b, batch.shape)
    got = jax.jit(metric)(batch, truths, boxes)
    assert got.shape == (2, 2)
    for i in np.ndindex(2, 2):
        np.testing.assert_allclose(got[i], metric(batch[i], b, boxes[i]), rtol=1e-5)
    np.testing.assert_allclose(metric(batch, truths)[1, 0], metric(batch[1, 0], b), rtol=1e-5)


def test_equal_pictures(pictures):
    (a,) = to_jax(pictures[0])
    assert psnr(a, a) == pytest.approx(100)
    assert ssim(a, a) == pytest.approx(1)
    assert l1(a, a) == 0


def test_person_box():
    masks = np.zeros((2, 3, 10, 12), np.uint8)
    masks[0, 0, 2:7, 3:11] = 255
    masks[0, 1, 9, 0] = 1
    masks[1, 2, 0, 11] = 1
    boxes = person_box(masks)
    assert boxes.shape == (2, 3, 4)
    assert boxes[0, 0].tolist() == [3, 2, 11, 7]
    assert boxes[0, 1].tolist() == [0, 9, 1, 10]
    assert boxes[1, 2].tolist() == [11, 0, 12, 1]
    assert boxes[1, 1].tolist() == [0, 0, 12, 10]  # nobody there: the whole picture
    assert person_box(masks[0, 0].astype(bool)).tolist() == [3, 2, 11, 7]


def test_enlarge_cuts_the_box_out(pictures):
    (picture,) = to_jax(pictures[0])
    x0, y0, x1, y1 = BOX
    same_size = crop_resize(picture, BOX, 47, 28)
    np.testing.assert_allclose(same_size, picture[y0:y1, x0:x1], atol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(60.0)[:, None], (64, 60, 1)) / 60  # value = column / 60
    doubled = crop_resize(ramp[None], BOX[None], 94, 56)
    expected = (x0 - 0.25 + 0.5 * np.arange(56)) / 60
    np.testing.assert_allclose(doubled[0, 7, :, 0], expected, atol=1e-6)
