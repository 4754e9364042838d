"""Ranges of images, and that resizing shows what it should."""

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.images import resize_lanczos, to_signed, to_uint8, to_unit

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_every_level_comes_back(array):
    signed, unit = to_signed(array(LEVELS)), to_unit(array(LEVELS))
    assert (signed.min(), signed.max(), unit.min(), unit.max()) == (-1, 1, 0, 1)
    np.testing.assert_array_equal(to_uint8(signed), LEVELS)
    np.testing.assert_allclose(unit * 2 - 1, signed, atol=1e-6)


def test_what_is_brighter_than_white_is_white():
    np.testing.assert_array_equal(to_uint8(jnp.array([-1.5, 1.5])), [0, 255])


def test_resizing():
    image = np.zeros((8, 4, 3), np.uint8)
    image[:4] = 200
    assert resize_lanczos(image, (8, 4)) is image
    large = resize_lanczos(image, (16, 12))
    assert large.shape == (16, 12, 3) and large[0].min() == 200 and large[-1].max() == 0
    assert resize_lanczos(image, (6, 5), (0, 0, 4, 2)).min() > 190
    video = np.stack([image, image[::-1]])
    np.testing.assert_array_equal(resize_lanczos(video, (16, 12))[0], large)
    assert resize_lanczos(video, (8, 4)) is video
