"""Long videos: which frames are denoised together, and the mean of what overlapping windows say."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from animate_jax.errors import UserError


def windows(frames: int, size: int, overlap: int, closed_loop: bool = False) -> list[list[int]]:
    """Frame indices of every window; all windows have the same length and together they cover every frame.

    A video no longer than `size` is one window. Otherwise windows of `size` frames start every
    `size - overlap` frames, and the last one is moved back so that it ends with the video. `closed_loop` is
    Moore-AnimateAnyone's rule instead: the last windows wrap around to the first frames, so the beginning of
    the video sees its end.
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
    if closed_loop:
        starts = list(range(0, frames, stride))
    else:
        starts = [*range(0, frames - size, stride), frames - size]
    return [[(start + i) % frames for i in range(size)] for start in starts]


def blend(
    predictions: Float[Array, "windows batch size *rest"], indices: list[list[int]], frames: int
) -> Float[Array, "batch frames *rest"]:
    """The mean over windows of each frame's predictions; `indices` are the frames of every window.

    Raises ValueError if a frame is in no window.
    """
    flat = np.asarray(indices).ravel()
    counts = np.bincount(flat, minlength=frames)  # [frames]
    if len(counts) != frames or not counts.all():
        raise ValueError(f"windows must cover exactly the frames 0..{frames - 1}; they occur {counts} times")
    n, batch, size, *rest = predictions.shape
    side_by_side = jnp.moveaxis(predictions, 0, 1).reshape(batch, n * size, *rest)
    total = jnp.zeros((batch, frames, *rest), predictions.dtype).at[:, flat].add(side_by_side)
    return total / counts.reshape(frames, *[1] * len(rest)).astype(predictions.dtype)
