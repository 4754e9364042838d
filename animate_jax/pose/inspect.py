"""Inspects driving material before it is used: whether a video shows drawn poses, and what to warn the user of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from animate_jax.errors import InputWarning
from animate_jax.pose.detect import detect
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints

Frame = UInt8[np.ndarray, "height width 3"]

PROBE_FRAMES = 8  # frames that are not black, at most, to tell drawn poses from a filmed person
PROBE_SIZE = 512  # pixels of the longer side; larger frames are subsampled
NOT_BLACK = 64  # of 255: brighter pixels are not background
BLACK, BLACK_SHARE = 24, 0.75  # darker pixels (of 255) are black; drawn poses have at least that share of them
# Drawn poses have at least so many of 12 hues, each at least that share of the pixels that are not black.
MIN_SATURATION, MIN_HUES, HUE_SHARE = 0.8, 5, 0.01
MIN_PEOPLE_SHARE = 0.75  # from that share of frames with a detected person, a video shows a filmed person

MAX_OUTSIDE_SHARE = 0.05  # of the joints may lie outside the image without a warning
MIN_SEEN_SHARE = 0.5  # of the frames show a person, else there is a warning
MIN_JOINTS = 3  # of a person
KNEES = [9, 12]


def shows_drawn_poses(frames: Iterable[Frame]) -> bool:
    """Whether a video shows drawn poses, not a person; reads the first few frames that are not black.

    Drawn poses have saturated colors of many hues on black, a dancer before a black curtain has few. Where colors
    suggest drawn poses, the person detector decides, which seldom detects a person in drawn limbs.
    """
    probe: list[Frame] = []
    for frame in frames:
        if frame.max() > NOT_BLACK:
            step = -(-max(frame.shape) // PROBE_SIZE)
            probe.append(frame[::step, ::step].copy())
        if len(probe) == PROBE_FRAMES:
            break
    if not probe or not is_drawn(np.stack(probe)):
        return False
    people = [bool(detect(frame[None]).body_confidence.any()) for frame in probe]
    return sum(people) < MIN_PEOPLE_SHARE * len(people)


def is_drawn(probe: UInt8[np.ndarray, "frames height width 3"]) -> bool:
    """Whether frames have the background and the colors of drawn poses: saturated, of many hues, on black."""
    brightest = probe.max(-1)
    if (brightest < BLACK).mean() <= BLACK_SHARE:
        return False
    colors = probe[brightest > NOT_BLACK]
    saturated = colors[colors.min(-1) < (1 - MIN_SATURATION) * colors.max(-1)]
    if not len(saturated):
        return False
    hues = cv2.cvtColor(saturated[None], cv2.COLOR_RGB2HSV)[0, :, 0] // 15
    return bool((np.bincount(hues, minlength=12) > HUE_SHARE * len(colors)).sum() >= MIN_HUES)


def warn_of_gaps(path: str | os.PathLike, keypoints: Keypoints) -> None:
    """Warns when most frames [F] show no person."""
    seen = (keypoints.body_confidence >= MIN_CONFIDENCE).sum(-1) >= MIN_JOINTS
    if seen.mean() < MIN_SEEN_SHARE:
        warn(
            f"{path}: only {seen.sum()} of {len(seen)} frames show a person, the others drive nothing: "
            "cut it to where one is seen"
        )


def warn_of_fit(fitted: Keypoints, parts: Sequence[str], reference: Keypoints) -> None:
    """Warns when keypoints [F], fitted to the picture to be made, leave it, or lack one of the parts to be drawn.

    Joints count that the reference (one frame, in the same units) shows: legs that it does not show may leave.
    """
    joints = fitted.body_confidence >= MIN_CONFIDENCE
    seen = joints & _inside(reference)
    outside = seen & ((fitted.body < 0) | (fitted.body > 1)).any(-1)
    if outside.sum() > MAX_OUTSIDE_SHARE * seen.sum():
        warn(
            f"{outside.sum() / seen.sum():.0%} of the fitted joints lie outside the picture: "
            "give a picture with more room around the person, or try another --align"
        )
    lacking = [part for part in parts if not (getattr(fitted, f"{part}_confidence") >= MIN_CONFIDENCE).any()]
    if joints.any() and lacking:
        warn(
            f"no {' and no '.join(lacking)} in any frame, though these weights are driven by them: "
            "give a motion that shows them larger, or another detector with --dwpose FOLDER"
        )


def warn_of_missing_legs(driven: Keypoints, reference: Keypoints) -> None:
    """Warns when a motion [F] shows legs in the picture to be made that the reference (one frame) does not show."""
    if not _inside(reference)[KNEES].any() and _inside(driven)[:, KNEES].any(-1).mean() > MIN_SEEN_SHARE:
        warn(
            "the picture does not show the person's legs, and the result has none: "
            "give a picture from head to foot, or a motion of the upper body"
        )


def _inside(keypoints: Keypoints) -> Bool[np.ndarray, "*frames joints"]:
    """Which joints of the body are seen, within the picture."""
    return (keypoints.body_confidence >= MIN_CONFIDENCE) & ((keypoints.body > 0) & (keypoints.body < 1)).all(-1)


def warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=4)
