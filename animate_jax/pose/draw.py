"""Draws keypoints as the pose images that the weights were trained with.

`moore` and `musepose` equal the images of the PyTorch implementations Moore-AnimateAnyone (`src/dwpose/util.py`) and
MusePose (`pose/script/util.py`) pixel for pixel, which is why OpenCV draws them. `paper` is `moore` without
the face (Hu et al. 2023 draw body and hands). `tiny` is made for images around 128 pixels high:
anti-aliased limbs, no hands, no face.

A new style is a row of `STYLES`, and its name in `config.PoseStyle`.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from animate_jax.config import PoseStyle
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints

# OpenPose's limbs in drawing order, and its hues: one RGB color per limb and per joint.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLORS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
LIMBS_ARRAY, COLORS_ARRAY = np.array(LIMBS), np.array(COLORS, np.float32)
FINGERS = tuple(
    (0 if joint == first else joint - 1, joint) for first in range(1, 21, 4) for joint in range(first, first + 4)
)
FINGER_COLORS = tuple(tuple(255 * c for c in colorsys.hsv_to_rgb(i / 20, 1.0, 1.0)) for i in range(20))
LIMB_SHADE = 0.6  # limbs are darkened, joints are not
JOINT_RADIUS = 4
FACE_RADIUS = 3

TINY_RADIUS = 1.6 / 128  # of a limb, in picture heights


Image = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Style:
    draw: Callable[[Image, Keypoints], None] | None  # draws one frame in place; None draws nothing
    parts: tuple[str, ...] = ()  # the keypoints that it draws besides the body


@dataclasses.dataclass(frozen=True)
class _OpenPose:
    """Where the PyTorch implementations differ; widths are pixels, None grows with the limb's length."""

    limb_width: int | None  # half the width of a limb
    finger_width: int | None
    hand_radius: int
    face: bool
    bgr: bool = False  # red and blue are swapped


@dataclasses.dataclass(frozen=True)
class LazyPoseImages:
    """The pose images of a clip, drawn on access: `images[frames]` with an index, a slice or an index array."""

    keypoints: Keypoints
    height: int
    width: int
    style: PoseStyle

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, frames) -> UInt8[np.ndarray, "*frames height width 3"]:
        return draw(self.keypoints[frames], self.height, self.width, self.style)


def draw(
    keypoints: Keypoints, height: int, width: int, style: PoseStyle
) -> UInt8[np.ndarray, "*frames height width 3"]:
    """Draws every frame as an RGB image on black; missing points and their limbs are left out.

    Raises:
        UserError: a point that is not missing has a position that is not finite.
    """
    for name in ("body", "hands", "face"):
        present = getattr(keypoints, f"{name}_confidence") >= MIN_CONFIDENCE
        invalid = present & ~np.isfinite(getattr(keypoints, name)).all(-1)
        if invalid.any():
            raise UserError(
                f"keypoints: {invalid.sum()} of {invalid.size} {name} points are nowhere (NaN or infinite): "
                "mark them as missing with confidence 0"
            )
    keypoints = keypoints.bounded()
    frames = keypoints.body.shape[:-2]
    images = np.zeros((*frames, height, width, 3), np.uint8)
    if draw_frame := STYLES[style].draw:
        for index in np.ndindex(frames):
            draw_frame(images[index], keypoints[index])
    return images


def _draw_openpose(canvas: Image, pose: Keypoints, options: _OpenPose) -> None:
    """Draws in place. Positions are truncated, not rounded, to whole pixels, as the PyTorch implementations do."""
    height, width, _ = canvas.shape
    body = pose.body.astype(np.float64) * (width, height)
    visible = pose.body_confidence >= MIN_CONFIDENCE
    for (start, end), color in zip(LIMBS, COLORS, strict=False):
        if not (visible[start] and visible[end]):
            continue
        x, y = (body[start] + body[end]) / 2
        dx, dy = body[start] - body[end]
        length = (dx**2 + dy**2) ** 0.5
        axes = int(length / 2), options.limb_width or _line_width(length)
        ellipse = cv2.ellipse2Poly((int(x), int(y)), axes, int(math.degrees(math.atan2(dy, dx))), 0, 360, 1)
        cv2.fillConvexPoly(canvas, np.asarray(ellipse), color)
    canvas[:] = canvas * LIMB_SHADE
    for joint in np.flatnonzero(visible):
        cv2.circle(canvas, body[joint].astype(int).tolist(), JOINT_RADIUS, COLORS[joint], cv2.FILLED)

    for points, confidence in zip(pose.hands, pose.hands_confidence, strict=True):
        points, inside = _drawable_pixels(points, confidence, canvas)
        for (start, end), color in zip(FINGERS, FINGER_COLORS, strict=True):
            if inside[start] and inside[end]:
                thickness = options.finger_width or _line_width(math.dist(points[start], points[end]))
                cv2.line(canvas, points[start].tolist(), points[end].tolist(), color, thickness)
        for point in points[inside].tolist():
            cv2.circle(canvas, point, options.hand_radius, (0, 0, 255), cv2.FILLED)
    if options.face:
        points, inside = _drawable_pixels(pose.face, pose.face_confidence, canvas)
        for point in points[inside].tolist():
            cv2.circle(canvas, point, FACE_RADIUS, (255, 255, 255), cv2.FILLED)
    if options.bgr:
        canvas[:] = canvas[..., ::-1].copy()


def _drawable_pixels(points: Float[np.ndarray, "n 2"], confidence: Float[np.ndarray, " n"], canvas: np.ndarray):
    """Whole pixels, and which to draw: the PyTorch implementations leave out hand and face points in the first row or
    column."""
    pixels = (points.astype(np.float64) * (canvas.shape[1], canvas.shape[0])).astype(int)
    return pixels, (confidence >= MIN_CONFIDENCE) & (pixels > 0).all(-1)


def _line_width(length: float) -> int:
    """MusePose's line width in pixels: 1 below 5 pixels, one more with every doubling, at most 8."""
    return 1 + int(np.searchsorted((5, 10, 20, 40, 80, 160, 320), length, side="right"))


def _draw_tiny(canvas: Image, pose: Keypoints) -> None:
    """Draws limbs as anti-aliased capsules, later ones over earlier ones; in place."""
    height, width, _ = canvas.shape
    size = np.array((width, height), np.float32)
    radius = np.float32(TINY_RADIUS * height)
    ends = (pose.body * size).astype(np.float32)[LIMBS_ARRAY]  # [limb, end, xy]
    start, axis = ends[:, 0], ends[:, 1] - ends[:, 0]
    slope = axis / (axis**2).sum(-1, keepdims=True).clip(1e-6)
    low = np.floor(ends.min(1) - radius - 1).clip(0, size).astype(int).tolist()
    high = np.ceil(ends.max(1) + radius + 1).clip(0, size).astype(int).tolist()
    drawn = (pose.body_confidence >= MIN_CONFIDENCE)[LIMBS_ARRAY].all(-1)
    centers_x = np.arange(width, dtype=np.float32) + np.float32(0.5)
    centers_y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    for limb in np.flatnonzero(drawn).tolist():
        (left, top), (right, bottom) = low[limb], high[limb]
        across, down = centers_x[left:right] - start[limb, 0], centers_y[top:bottom] - start[limb, 1]
        along = np.clip(across * slope[limb, 0] + down * slope[limb, 1], 0, 1)
        across, down = across - along * axis[limb, 0], down - along * axis[limb, 1]
        coverage = np.clip(radius + np.float32(0.5) - np.sqrt(across * across + down * down), 0, 1)[..., None]
        box = canvas[top:bottom, left:right]
        box[:] = box + coverage * (COLORS_ARRAY[limb] - box) + np.float32(0.5)


def _openpose(**options) -> Style:
    options = _OpenPose(**options)
    parts = ("hands", "face") if options.face else ("hands",)
    return Style(functools.partial(_draw_openpose, options=options), parts)


STYLES: dict[PoseStyle, Style] = {
    "none": Style(draw=None),
    "tiny": Style(_draw_tiny),
    "paper": _openpose(limb_width=4, finger_width=2, hand_radius=4, face=False),
    "moore": _openpose(limb_width=4, finger_width=2, hand_radius=4, face=True),
    "musepose": _openpose(limb_width=None, finger_width=None, hand_radius=3, face=False, bgr=True),
}
