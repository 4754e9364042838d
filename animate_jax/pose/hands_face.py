"""Keypoints of hands and face of a person whose body keypoints are known, as in MediaPipe's holistic graph.

The body's wrist, index and little finger give a rough square around a hand; a small model (`hand_recrop`) refines it,
and `hand_landmark_full` estimates 21 points in it. A face detector runs in a square around the body's nose, eyes, ears
and mouth, and `face_landmark` estimates 468 points of the face it detects. Squares from the previous frame's estimates
are tried first. Grishchenko & Bazarevsky, "MediaPipe Holistic", 2020; the numbers are those of the
graphs `hand_landmarks_left_and_right_cpu`, `hand_recrop_by_roi_cpu` and `face_landmarks_from_pose_cpu`.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float, UInt8

from animate_jax.pose.litert import Affine, apply_affine, crop_square, run_model, sigmoid, square_to_frame

Frame = UInt8[np.ndarray, "height width 3"]
Points = Float[np.ndarray, "n 2"]  # pixels of the frame
PointsAndPresence = tuple[Points, float]  # and the model's probability that the part is there

RECROP_SIZE, HAND_SIZE, FACE_DETECTOR_SIZE, FACE_SIZE = 256, 224, 128, 192  # pixels
MIN_PRESENCE = 0.5  # of a hand or a face, from its landmark model
MIN_WRIST_CONFIDENCE = 0.1  # of the body's wrist, from which its hand is estimated
MIN_FACE_CONFIDENCE = 0.5  # of the face detector
MIN_HEAD_CONFIDENCE = 0.1
MAX_WRIST_DISTANCE = 0.6  # largest distance of a tracked hand's wrist from the body's, in sides of its square

# Rows of BlazePose's 33 body points: wrist, index and little finger of each hand, left first; the head.
HAND_ROWS = (15, 19, 17), (16, 20, 18)
HEAD_ROWS, RIGHT_EYE, LEFT_EYE = slice(0, 11), 5, 2
PALM = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)  # hand points that hardly move when fingers bend
EYE_CORNERS = 33, 263  # outer ones, of 468 face points: the right and the left
# The 68 points of iBUG 300-W among the 468.
FACE_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip


def estimate_hand(
    frame: Frame,
    body: Float[np.ndarray, "33 2"],
    confidence: Float[np.ndarray, " 33"],
    side: int,
    previous: Points | None,
) -> PointsAndPresence | None:
    """21 points of a hand in OpenPose's order; None when it is not visible.

    Args:
        body: BlazePose's points in pixels.
        side: 0 the person's left hand, 1 the right.
        previous: the estimate in the previous frame, if any.
    """
    wrist, index, little = body[list(HAND_ROWS[side])]
    if confidence[HAND_ROWS[side][0]] < MIN_WRIST_CONFIDENCE:
        return None
    if previous is not None:
        center, length, angle = _hand_square(previous)
        if math.dist(previous[0], wrist) < MAX_WRIST_DISTANCE * length:
            estimate = _estimate_hand(frame, square_to_frame(center, length, angle, HAND_SIZE))
            if estimate and math.dist(estimate[0][0], wrist) < MAX_WRIST_DISTANCE * length:
                return estimate
    middle = (2 * index + little) / 3
    rough = square_to_frame(middle, 2 * 2.7 * math.dist(middle, wrist), _angle_upward(wrist, middle), RECROP_SIZE)
    if not _is_inside(rough, RECROP_SIZE, frame):
        return None
    (points,) = run_model("hand_recrop", crop_square(frame, rough, RECROP_SIZE) / 255)
    start, end = apply_affine(rough, points.reshape(2, 2).astype(np.float64))
    angle = _angle_upward(start, end, up=-1)
    side_length = 2 * math.dist(start, end)
    center = start + _rotate(np.array([0, -0.1 * side_length]), angle)
    return _estimate_hand(frame, square_to_frame(center, side_length, angle, HAND_SIZE))


def _estimate_hand(frame: Frame, to_frame: Affine) -> PointsAndPresence | None:
    if not _is_inside(to_frame, HAND_SIZE, frame):
        return None
    points, presence, _, _ = run_model("hand_landmark_full", crop_square(frame, to_frame, HAND_SIZE) / 255)
    if presence.item() < MIN_PRESENCE:
        return None
    return apply_affine(to_frame, points.reshape(21, 3)[:, :2].astype(np.float64)), presence.item()


def _hand_square(points: Float[np.ndarray, "21 2"]) -> tuple[Float[np.ndarray, "xy=2"], float, float]:
    """Center, side and rotation of the square around a hand's points, for the next frame."""
    angle = _angle_upward(points[0], (points[5] + 2 * points[9] + points[13]) / 4)
    return _rotated_box(points[list(PALM)], angle, scale=2.0, shift=-0.1)


def estimate_face(
    frame: Frame, body: Float[np.ndarray, "33 2"], confidence: Float[np.ndarray, " 33"], previous: Points | None
) -> PointsAndPresence | None:
    """468 points of the face mesh; None when the face is not visible. Arguments as in `estimate_hand`."""
    head = body[HEAD_ROWS]
    if confidence[HEAD_ROWS].mean() < MIN_HEAD_CONFIDENCE:
        return None
    if previous is not None:
        angle = _angle_rightward(*previous[list(EYE_CORNERS)])
        center, side, _ = _rotated_box(previous, angle, scale=1.5)
        if math.dist(center, head.mean(0)) < side / 2:
            estimate = _estimate_face(frame, square_to_frame(center, side, angle, FACE_SIZE))
            if estimate:
                return estimate
    angle = _angle_rightward(head[RIGHT_EYE], head[LEFT_EYE])
    low, high = head.min(0), head.max(0)
    rough = square_to_frame((low + high) / 2, 3.0 * (high - low).max(), angle, FACE_DETECTOR_SIZE)
    if not _is_inside(rough, FACE_DETECTOR_SIZE, frame):
        return None
    crop = crop_square(frame, rough, FACE_DETECTOR_SIZE) / 127.5 - 1
    logits, boxes = run_model("face_detection_short_range", crop)
    best = int(logits[:, 0].argmax())
    if sigmoid(logits[best]).item() < MIN_FACE_CONFIDENCE:
        return None
    # Center and size of the box, then the right eye, the left one, ...: pixels from the anchor.
    rows = boxes[best].reshape(8, 2).astype(np.float64)
    size = np.linalg.norm(rough[:, 0]) * rows[1].max()
    center, right_eye, left_eye = apply_affine(rough, rows[[0, 2, 3]] + _face_anchors()[best])
    angle = _angle_rightward(right_eye, left_eye)
    center = center + _rotate(np.array([0, -0.1 * size]), angle)
    return _estimate_face(frame, square_to_frame(center, 2.0 * size, angle, FACE_SIZE))


def _estimate_face(frame: Frame, to_frame: Affine) -> PointsAndPresence | None:
    points, presence = run_model("face_landmark", crop_square(frame, to_frame, FACE_SIZE) / 255)
    presence = sigmoid(presence).item()
    if presence < MIN_PRESENCE:
        return None
    return apply_affine(to_frame, points.reshape(468, 3)[:, :2].astype(np.float64)), presence


@functools.cache
def _face_anchors() -> Float[np.ndarray, "896 2"]:
    """Centers x, y of the face detector's boxes in its pixels, in the order of its outputs."""
    grids = []
    for stride, boxes in ((8, 2), (16, 6)):
        y, x = np.mgrid[0:FACE_DETECTOR_SIZE:stride, 0:FACE_DETECTOR_SIZE:stride] + stride / 2
        grids.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), boxes, axis=0))
    return np.concatenate(grids)


def _angle_upward(start: Float[np.ndarray, "xy=2"], end: Float[np.ndarray, "xy=2"], up: int = 1) -> float:
    """Clockwise rotation in radians of a square that makes its upward (`up` 1) axis point from start to end."""
    x, y = up * (end - start)
    return math.atan2(x, -y)


def _angle_rightward(right: Float[np.ndarray, "xy=2"], left: Float[np.ndarray, "xy=2"]) -> float:
    """Clockwise rotation in radians of a square that makes its horizontal axis point from the right to the left eye."""
    x, y = left - right
    return math.atan2(y, x)


def _rotate(offset: Float[np.ndarray, "xy=2"], angle: float) -> Float[np.ndarray, "xy=2"]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]]) @ offset


def _rotated_box(
    points: Points, angle: float, scale: float, shift: float = 0.0
) -> tuple[Float[np.ndarray, "xy=2"], float, float]:
    """The square around the points' bounding box in axes rotated by `angle`; `shift` is downward, in box heights."""
    turned = points @ np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    low, high = turned.min(0), turned.max(0)
    center = (low + high) / 2 + np.array([0, shift * (high - low)[1]])
    return _rotate(center, angle), scale * (high - low).max(), angle


def _is_inside(to_frame: Affine, size: int, frame: Frame) -> bool:
    """Whether the square has a plausible size and its center lies in the frame."""
    height, width, _ = frame.shape
    side = np.linalg.norm(to_frame[:, 0]) * size
    x, y = apply_affine(to_frame, np.full((1, 2), size / 2))[0]
    return bool(4 <= side <= 4 * max(height, width) and 0 <= x < width and 0 <= y < height)
