import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.diffusion.windows import blend, windows
from animate_jax.errors import UserError


def span(start: int, stop: int) -> list[int]:
    return list(range(start, stop))


@pytest.mark.parametrize("closed_loop", [False, True])
@pytest.mark.parametrize("frames", [1, 23, 24])
def test_a_short_video_is_one_window(frames, closed_loop):
    assert windows(frames, 24, 4, closed_loop) == [span(0, frames)]


def test_open_windows_end_with_the_video():
    assert windows(64, 24, 4) == [span(0, 24), span(20, 44), span(40, 64)]
    assert windows(30, 24, 4) == [span(0, 24), span(6, 30)]
    assert windows(65, 24, 4) == [span(0, 24), span(20, 44), span(40, 64), span(41, 65)]


def test_closed_loop_is_the_peers():
    assert windows(30, 24, 4, closed_loop=True) == [span(0, 24), [*span(20, 30), *span(0, 14)]]
    assert windows(64, 24, 4, closed_loop=True) == [
        span(0, 24),
        span(20, 44),
        span(40, 64),
        [*span(60, 64), *span(0, 20)],
    ]
    assert sum(map(len, windows(25, 24, 4, closed_loop=True))) == 48  # 1.92 evaluations per frame


def test_shifted_windows_keep_their_distance():
    assert windows(65, 24, 4, shift=7) == [span(0, 24), span(13, 37), span(33, 57), span(41, 65)]
    assert windows(64, 24, 4, shift=20) == windows(64, 24, 4)


@pytest.mark.parametrize("closed_loop", [False, True])
@pytest.mark.parametrize(("size", "overlap"), [(24, 4), (24, 0), (8, 7), (48, 4), (2, 1), (1, 0)])
def test_every_frame_is_covered_by_windows_of_one_length(size, overlap, closed_loop):
    for frames in (1, 2, 5, 24, 25, 47, 48, 49, 100, 136):
        found = windows(frames, size, overlap, closed_loop, shift=frames // 3)
        assert {frame for window in found for frame in window} == set(range(frames))
        assert {len(window) for window in found} == {min(size, frames)}
        assert all(len(set(window)) == len(window) for window in found)
        if not closed_loop:
            assert all((np.diff(window) == 1).all() for window in found)
            assert all(len({*a} & {*b}) >= overlap for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("frames", "size", "overlap"), [(0, 24, 4), (30, 24, 24), (30, 24, -1), (30, 0, 0)])
def test_impossible_windows(frames, size, overlap):
    with pytest.raises(UserError, match=f"windows of {size} frames with overlap {overlap} on {frames} frames"):
        windows(frames, size, overlap)


@pytest.mark.parametrize("closed_loop", [False, True])
@pytest.mark.parametrize("frames", [5, 8, 13, 30])
def test_blend_is_the_mean(frames, closed_loop):
    indices = windows(frames, 8, 3, closed_loop)
    shape = (len(indices), 2, len(indices[0]), 3, 2, 4)
    predictions = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = blend(predictions, indices, frames)
    assert result.shape == (2, frames, 3, 2, 4)
    for frame in range(frames):
        said = [p[:, w.index(frame)] for p, w in zip(predictions, indices, strict=True) if frame in w]
        np.testing.assert_allclose(result[:, frame], np.mean(said, axis=0), rtol=1e-5, atol=1e-6)


def test_gradual_blend_weighs_by_the_distance_from_the_ends():
    predictions = np.float32([np.zeros((1, 6)), np.ones((1, 6))])  # the second window takes over
    result = blend(predictions, [span(0, 6), span(2, 8)], 8, flat=False)
    np.testing.assert_allclose(result[0], [0, 0, 1 / 4, 2 / 5, 3 / 5, 3 / 4, 1, 1], rtol=1e-6)


def test_blend_keeps_what_all_windows_agree_on():
    indices = windows(30, 24, 4, closed_loop=True)
    video = np.random.default_rng(0).normal(size=(1, 30, 2)).astype(np.float32)
    windows_of = (video[:, window] for window in indices)  # one at a time, and from anywhere
    np.testing.assert_allclose(blend(map(jnp.asarray, windows_of), indices, 30), video, rtol=1e-6)


def test_blend_refuses_uncovered_frames():
    with pytest.raises(ValueError, match=r"exactly the frames 0\.\.3"):
        blend(np.zeros((1, 1, 3, 2)), [[0, 1, 2]], 4)
    with pytest.raises(ValueError, match=r"exactly the frames 0\.\.1"):
        blend(np.zeros((1, 1, 3, 2)), [[0, 1, 2]], 2)
