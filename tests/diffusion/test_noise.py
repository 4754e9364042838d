"""Noise of videos of any length."""

import jax
import numpy as np

from animate_jax.diffusion.noise import CHUNK, initial_noise, per_frame_normal

KEYS = jax.random.split(jax.random.key(0), 2)
SHAPE = (2, CHUNK + 5, 4, 3, 2)


def test_noise_is_standard_normal():
    noise = per_frame_normal(KEYS, SHAPE)
    assert noise.shape == SHAPE and noise.dtype == np.float32 and isinstance(noise, np.ndarray)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, CHUNK].ravel())[0, 1]) < 0.4


def test_a_frame_depends_on_its_number_and_its_videos_key_alone():
    noise = per_frame_normal(KEYS, SHAPE)
    np.testing.assert_array_equal(per_frame_normal(KEYS[1:], (1, 7, *SHAPE[2:])), noise[1:, :7])


def test_shared_noise_is_the_same_for_every_frame_and_differs_between_videos():
    noise = initial_noise(KEYS, SHAPE, shared=True)
    assert noise.shape == SHAPE
    np.testing.assert_array_equal(noise, np.broadcast_to(noise[:, :1], noise.shape))
    assert np.abs(noise[0] - noise[1]).max() > 0.1
    own = initial_noise(KEYS, SHAPE, shared=False)
    assert np.abs(own[:, 1:] - own[:, :-1]).max(axis=(0, 2, 3, 4)).min() > 0.1
