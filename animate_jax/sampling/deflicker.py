"""Less flicker: what hardly changes from frame to frame is averaged over neighboring frames.

A bilateral filter along time (Tomasi & Manduchi 1998): what moves is unlike its neighbors and stays as it is. An
extension of ours, not in the paper.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

REACH = 2  # frames before and after
NEIGHBORHOOD = 1 / 128  # image heights over which a change is measured, standard deviation

Chunk = UInt8[np.ndarray, "_ height width 3"]


def deflicker(chunks: Iterator[Chunk], levels: float) -> Iterator[Chunk]:
    """A video's frames, a few at a time and at most `REACH` later, with less flicker.

    Args:
        levels: a change that is small against it, as a root mean square in levels of 255, is flicker; 0: none is.
    """
    if levels <= 0:
        yield from chunks
        return
    frames, first = None, 0  # of `frames`, the first that has not been given yet
    for chunk in chunks:
        frames = chunk if frames is None else np.concatenate([frames, chunk])
        ready = len(frames) - REACH
        if ready > first:
            yield _averaged(frames, levels)[first:ready]
            first = min(ready, REACH)
            frames = frames[ready - first :]
    if frames is not None and len(frames) > first:
        yield _averaged(frames, levels)[first:]


def _averaged(frames: Chunk, levels: float) -> Chunk:
    exact = frames.astype(np.float32)
    total, weights = exact.copy(), np.ones((*frames.shape[:3], 1), np.float32)
    deviation = NEIGHBORHOOD * frames.shape[1]
    for step in range(1, min(REACH, len(frames) - 1) + 1):
        before, after = exact[:-step], exact[step:]
        changes = ((after - before) ** 2).mean(-1)
        changes = np.stack([cv2.GaussianBlur(change, (0, 0), deviation) for change in changes])
        alike = np.exp(changes / (-2 * levels**2))[..., None]
        for one, other in ((np.s_[:-step], after), (np.s_[step:], before)):
            total[one] += alike * other
            weights[one] += alike
    return np.round(total / weights).astype(np.uint8)
