"""A look at driving material before it is used: of what kind is a video, and what will the user wonder about?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import UInt8

from animate_jax.config import PoseStyle
from animate_jax.errors import InputWarning
from animate_jax.pose.detect import detect
from animate_jax.pose.draw import PARTS, VISIBLE
from animate_jax.pose.keypoints import Keypoints

Frame = UInt8[np.ndarray, "height width 3"]

LOOK = 8  # frames with something in them that tell drawn poses from a film
LOOK_SIZE = 512  # pixels of the longer side that are enough for it
DARK = 64  # of 255: what is brighter is something
BLACK, GROUND = 24, 0.75  # of 255; share of the picture that the ground of drawn poses fills
SATURATED, HUES, HUE_SHARE = 0.8, 5, 0.01  # drawn poses have so many of 12 hues, each of that share of what is bright
PEOPLE = 0.75  # share of those frames in which the detector finds a person, from which it is a film

OUTSIDE = 0.05  # share of joints outside the picture that the user is told of
SEEN = 0.5  # share of frames with a person below which the user is told
PERSON = 3  # points that make one


def shows_drawn_poses(frames: Iterable[Frame]) -> bool:
    """Whether a video shows drawn poses, not a person; reads as many frames as tell it, and keeps small copies.

    A dancer before a black curtain has few saturated hues, drawn poses have the whole rainbow; where a person is so
    colorful, the detector decides, which seldom takes drawn limbs for a person.
    """
    shown: list[Frame] = []
    for frame in frames:
        if frame.max() > DARK:
            step = -(-max(frame.shape) // LOOK_SIZE)
            shown.append(frame[::step, ::step].copy())
        if len(shown) == LOOK:
            break
    if not shown or not is_drawn(np.stack(shown)):
        return False
    people = [bool(detect(frame[None]).body_confidence.any()) for frame in shown]
    return sum(people) < PEOPLE * len(people)


def is_drawn(shown: UInt8[np.ndarray, "frames height width 3"]) -> bool:
    """Whether frames have the ground and the colors of drawn poses: saturated lines of many hues on black."""
    brightest = shown.max(-1)
    if (brightest < BLACK).mean() <= GROUND:
        return False
    colors = shown[brightest > DARK]
    saturated = colors[colors.min(-1) < (1 - SATURATED) * colors.max(-1)]
    if not len(saturated):
        return False
    hues = cv2.cvtColor(saturated[None], cv2.COLOR_RGB2HSV)[0, :, 0] // 15
    return bool((np.bincount(hues, minlength=12) > HUE_SHARE * len(colors)).sum() >= HUES)


def warn_of_gaps(path: str | os.PathLike, keypoints: Keypoints) -> None:
    """Warns when most frames [F] show nobody."""
    seen = (keypoints.body_confidence >= VISIBLE).sum(-1) >= PERSON
    if seen.mean() < SEEN:
        warn(
            f"{path}: only {seen.sum()} of {len(seen)} frames show a person, the others drive nothing: "
            "cut it to where one is seen"
        )


def warn_of_fit(fitted: Keypoints, style: PoseStyle) -> None:
    """Warns when keypoints [F], fitted to the picture to be made, leave it, or lack what is drawn for the weights."""
    joints = fitted.body_confidence >= VISIBLE
    outside = joints & ((fitted.body < 0) | (fitted.body > 1)).any(-1)
    if outside.sum() > OUTSIDE * joints.sum():
        warn(
            f"{outside.sum() / joints.sum():.0%} of the fitted joints lie outside the picture: "
            "give a picture with more room around the person, or try another --align"
        )
    lacking = [part for part in PARTS[style] if not (getattr(fitted, f"{part}_confidence") >= VISIBLE).any()]
    if joints.any() and lacking:
        warn(
            f"no {' and no '.join(lacking)} in any frame, though these weights are driven by them: "
            "--dwpose FOLDER finds them, the built-in detector does not"
        )


def warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=4)
