"""Flicker is averaged away, motion is not, however the frames arrive."""

import numpy as np
import pytest

from animate_jax.sampling.deflicker import REACH, deflicker

LEVELS = 6.0


def walk(frames: int = 9, noise: float = 2.5):
    """A dark bar that moves 4 pixels a frame over a noisy gray wall, and where it is [F, H, W]."""
    wall = np.full((frames, 64, 96, 3), 150.0) + np.random.default_rng(0).normal(0, noise, (frames, 64, 96, 3))
    columns = np.arange(96)
    bar = np.stack([(columns >= 4 * f) & (columns < 4 * f + 12) for f in range(frames)])[:, None].repeat(64, 1)
    return np.where(bar[..., None], 20, wall).round().astype(np.uint8), bar


def all_of(chunks, levels=LEVELS):
    return np.concatenate(list(deflicker(iter(chunks), levels)))


def change(frames, where):
    return np.abs(np.diff(frames.astype(float), axis=0)).mean(-1)[where].mean()


def test_what_stands_still_flickers_less():
    frames, bar = walk()
    far = np.repeat(~bar.any(0, keepdims=True), len(frames) - 1, 0)
    far[..., :60] = False
    assert change(all_of([frames]), far) < 0.5 * change(frames, far)


def test_what_moves_stays_as_sharp():
    frames, _ = walk(noise=0)
    np.testing.assert_allclose(all_of([frames]).astype(int), frames, atol=1)


@pytest.mark.parametrize("sizes", [[1] * 9, [2, 7], [4, 4, 1], [8, 1], [3, 3, 3]])
def test_chunks_of_any_size_give_the_same_frames_soon(sizes):
    frames, _ = walk()
    ends = np.cumsum(sizes)
    chunks = [frames[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    np.testing.assert_array_equal(all_of(chunks), all_of([frames]))
    taken, given = 0, 0

    def counted():
        nonlocal taken
        for chunk in chunks:
            taken += len(chunk)
            yield chunk

    for chunk in deflicker(counted(), LEVELS):
        given += len(chunk)
        assert given >= taken - REACH - max(sizes) or given == len(frames)
    assert given == len(frames)


def test_few_frames_and_none():
    frames, _ = walk()
    np.testing.assert_array_equal(all_of([frames[:1]]), frames[:1])
    assert len(all_of([frames[:2]])) == 2
    assert list(deflicker(iter([]), LEVELS)) == []
    chunks = [frames[:4], frames[4:]]
    assert all(one is other for one, other in zip(deflicker(iter(chunks), 0.0), chunks, strict=True))
