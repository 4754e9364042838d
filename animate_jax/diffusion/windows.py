"""Long videos: which frames are denoised together, and how overlapping windows are combined."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Array, Float

from animate_jax.errors import UserError


def windows(frames: int, size: int, overlap: int, closed_loop: bool = False, shift: int = 0) -> list[list[int]]:
    """Frame indices of every window; all windows have the same length and together they cover every frame.

    A video no longer than `size` is one window. Otherwise windows of `size` frames start every
    `size - overlap` frames, and the last one is moved back so that it ends with the video. `closed_loop` is
    Moore-AnimateAnyone's rule instead: the last windows wrap around to the first frames, so the beginning of
    the video sees its end. `shift` moves the windows that many frames (modulo their distance) towards the
    beginning; where that leaves frames at an end, the outermost window stays at that end.
    Raises UserError unless 0 <= overlap < size and frames >= 1.
    """
    if frames < 1 or not 0 <= overlap < size:
        raise UserError(
            f"cannot place windows of {size} frames with overlap {overlap} on {frames} frames: needed are "
            "at least one frame, and an overlap of at least 0 that is smaller than the window"
        )
    if frames <= size:
        return [list(range(frames))]
    stride = size - overlap
    shift %= stride
    if closed_loop:
        starts = [start - shift for start in range(0, frames, stride)]
    else:
        moved = {max(start - shift, 0) for start in range(0, frames - size + shift, stride)}
        starts = sorted(moved | {frames - size})
    return [[(start + i) % frames for i in range(size)] for start in starts]


def blend(
    predictions: Iterable[Float[Array | np.ndarray, "batch size *rest"]],
    indices: list[list[int]],
    frames: int,
    flat: bool = True,
) -> Float[np.ndarray, "batch frames *rest"]:
    """The mean over windows of each frame's predictions, in host memory.

    Every window has the same weight if `flat`; otherwise a frame's weight is its distance from the window's ends, for a
    gradual transition between windows. Raises ValueError if a frame is in no window.

    Args:
        predictions: one per window, taken one at a time.
        indices: the frames of every window.
    """
    size = len(indices[0])
    shares = np.ones(size) if flat else np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
    total = np.bincount(np.ravel(indices), np.tile(shares, len(indices)), minlength=frames)  # [frames]
    if len(total) != frames or not total.all():
        raise ValueError(f"windows must cover exactly the frames 0..{frames - 1}; their total weights are {total}")
    result = None
    for prediction, window in zip(predictions, indices, strict=True):
        prediction = np.asarray(prediction)
        if result is None:
            result = np.zeros((len(prediction), frames, *prediction.shape[2:]), prediction.dtype)
        weights = (shares / total[window]).astype(prediction.dtype)
        result[:, window] += prediction * weights.reshape(-1, *[1] * (prediction.ndim - 2))
    assert result is not None  # every frame is in a window
    return result
