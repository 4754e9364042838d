"""Jitter goes, motion stays where and when it is."""

import dataclasses

import numpy as np
import pytest

from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.smooth import smooth

CANVAS = (400, 300)
FRAMES, FPS = 60, 30.0


def walk(frames=FRAMES) -> Keypoints:
    """A body 200 pixels high at rest but for the right wrist (4), which strikes across 100 pixels in 1/6 second."""
    random = np.random.default_rng(0)
    body = np.tile(random.uniform(0.25, 0.75, (18, 2)), (frames, 1, 1))
    strike = 1 / (1 + np.exp(-(np.arange(frames) - frames / 2) / 1.2))
    body[:, 4, 0] += strike / 3
    empty = Keypoints.empty(frames)
    return dataclasses.replace(empty, body=body.astype(np.float32), body_confidence=np.ones_like(empty.body_confidence))


def jittered(clip: Keypoints, pixels=1.5) -> Keypoints:
    noise = np.random.default_rng(1).normal(0, pixels, clip.body.shape) / (CANVAS[1], CANVAS[0])
    return dataclasses.replace(clip, body=(clip.body + noise).astype(np.float32))


def test_jitter_shrinks():
    clip = walk()
    after = smooth(jittered(clip), CANVAS, FPS)
    still = [p for p in range(18) if p != 4]

    def error(k):
        return np.sqrt((((k.body - clip.body) * (300, 400))[:, still] ** 2).mean())

    def shake(k):
        return np.sqrt((np.diff(k.body * (300, 400), axis=0)[:, still] ** 2).mean())

    assert error(after) < 0.6 * error(jittered(clip))
    assert shake(after) < 0.4 * shake(jittered(clip))


def test_fast_motion_is_neither_late_nor_shortened():
    clip = walk()
    before, after = clip.body[:, 4, 0] * 300, smooth(clip, CANVAS, FPS).body[:, 4, 0] * 300

    def middle(x):
        return np.interp((before[0] + before[-1]) / 2, x, np.arange(FRAMES))

    assert abs(middle(after) - middle(before)) < 0.1  # frames
    assert np.abs(after - before).max() < 10  # of 100 pixels
    np.testing.assert_allclose(after[[0, -1]], before[[0, -1]], atol=1)


def test_it_works_the_same_backwards():
    clip = jittered(walk())
    np.testing.assert_allclose(smooth(clip[::-1], CANVAS, FPS).body[::-1], smooth(clip, CANVAS, FPS).body, atol=1e-6)


@pytest.mark.parametrize("scale, offset", [((3, 3), (0, 0)), ((0.5, 0.5), (2, -1))])
def test_size_and_place_do_not_matter(scale, offset):
    clip = jittered(walk())
    after = smooth(clip.affine(scale, offset), CANVAS, FPS)
    np.testing.assert_allclose(after.body, smooth(clip, CANVAS, FPS).affine(scale, offset).body, atol=1e-5)


def test_gaps_are_no_places():
    """Missing points keep what they hold, and do not draw their neighbors towards it."""
    clip = walk()
    body, confidence = clip.body.copy(), clip.body_confidence.copy()
    body[20:25, 7], confidence[20:25, 7] = 9, 0
    after = smooth(dataclasses.replace(clip, body=body, body_confidence=confidence), CANVAS, FPS)
    np.testing.assert_allclose(after.body[:, 7], body[:, 7], atol=1e-6)
    np.testing.assert_array_equal(after.body_confidence, confidence)


def test_nobody_and_single_frames_pass():
    nobody = Keypoints.empty(4)
    np.testing.assert_array_equal(smooth(nobody, CANVAS, FPS).body, nobody.body)
    np.testing.assert_allclose(smooth(walk(1), CANVAS, FPS).body, walk(1).body, atol=1e-6)
