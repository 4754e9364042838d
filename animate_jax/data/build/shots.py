"""Where a video changes its scene, found while it is being read."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

# PySceneDetect's AdaptiveDetector: a cut stands out by itself and against the motion around it.
LEAST_CHANGE = 15.0  # mean difference of hue, saturation and value (0..255) between two frames
LEAST_RATIO = 3.0  # of the change to that of the frames around
AROUND = 2  # frames before and after
SMALL = (64, 64)  # pixels; the size at which frames are compared

Frame = UInt8[np.ndarray, "_ _ 3"]


def shots(frames: Iterable[Frame]) -> Iterator[tuple[int, Frame]]:
    """Every frame (RGB) with the number of its shot: 0, 1, ...; holds on to no more than 3 frames."""
    shot, before = 0, None
    pending: deque[Frame] = deque()
    changes = deque([0.0] * (2 * AROUND + 1), maxlen=2 * AROUND + 1)
    for frame in itertools.chain(frames, [None] * AROUND):
        small = before if frame is None else _small(frame)
        changes.append(0.0 if before is None else float(np.abs(small - before).mean()))
        before = small
        pending.append(frame)
        if len(pending) > AROUND and pending[0] is not None:
            change = changes[AROUND]
            others = (sum(changes) - change) / (2 * AROUND)
            shot += change >= max(LEAST_CHANGE, LEAST_RATIO * others)
            yield shot, pending.popleft()


def _small(frame: Frame) -> np.ndarray:
    """Hue (a circle of 256 steps, here cut open), saturation and value of a small copy, as int16."""
    small = cv2.resize(frame, SMALL, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2HSV_FULL).astype(np.int16)
