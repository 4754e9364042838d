"""Where a video changes its scene, found while it is being read."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

# PySceneDetect's AdaptiveDetector: a cut stands out by itself and against the motion around it.
MIN_CHANGE = 15.0  # mean difference of hue, saturation and value (0..255) between two frames
MIN_RATIO = 3.0  # of the change to that of the frames around
NEIGHBORS = 2  # frames before and after
COMPARED_SIZE = (64, 64)  # pixels; the size at which frames are compared

Frame = UInt8[np.ndarray, "_ _ 3"]


def shots(frames: Iterable[Frame]) -> Iterator[tuple[int, Frame]]:
    """Every frame (RGB) with the number of its shot: 0, 1, ...; holds on to no more than 3 frames."""
    shot, previous = 0, None
    pending: deque[Frame | None] = deque()
    changes = deque([0.0] * (2 * NEIGHBORS + 1), maxlen=2 * NEIGHBORS + 1)
    for frame in itertools.chain(frames, [None] * NEIGHBORS):
        small = previous if frame is None else _small_hsv(frame)
        comparable = small is not None and previous is not None
        changes.append(float(np.abs(small - previous).mean()) if comparable else 0.0)
        previous = small
        pending.append(frame)
        if len(pending) > NEIGHBORS and (oldest := pending.popleft()) is not None:
            change = changes[NEIGHBORS]
            others = (sum(changes) - change) / (2 * NEIGHBORS)
            if change >= max(MIN_CHANGE, MIN_RATIO * others):
                shot += 1
            yield shot, oldest


def _small_hsv(frame: Frame) -> np.ndarray:
    """Hue (a circle of 256 steps, here cut open), saturation and value of a small copy, as int16."""
    small = cv2.resize(frame, COMPARED_SIZE, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2HSV_FULL).astype(np.int16)
