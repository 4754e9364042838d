"""2D keypoints of one person in a video with BlazePose: MediaPipe's models in `assets/blazepose`, no download.

A person detector (224 x 224) gives a region of interest for everybody: the hip center and a circle around the body. A
landmark model (256 x 256) estimates 33 keypoints, and the region for the next frame, from a crop of that circle,
rotated so that the body is upright. While one person is tracked, the detector runs every `REDETECT_EVERY` frames;
with nobody or several people, in every frame. Hands and face are estimated on demand (`hands_face`). Bazarevsky et al.,
"BlazePose: On-device Real-time Body Pose tracking", 2020; the numbers are those of MediaPipe's graphs
`pose_detection_cpu` and `pose_landmark_cpu`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from animate_jax.errors import UserError
from animate_jax.pose.hands_face import FACE_68, Points, estimate_face, estimate_hand
from animate_jax.pose.keypoints import LEFT_RIGHT, MIN_CONFIDENCE, Keypoints
from animate_jax.pose.litert import apply_affine, crop_square, run_model, sigmoid
from animate_jax.pose.track import Detection, check_person, track_person

# Estimates one person's pose: (frames, progress, person) -> keypoints [F]; `detect` and `DWPose` are detectors.
Detector = Callable[..., Keypoints]

DETECTOR_SIZE, LANDMARK_SIZE, HEATMAP_SIZE = 224, 256, 64  # pixels
DETECTOR_STRIDES = {8: 2, 16: 2, 32: 6}  # stride in pixels -> boxes per position

DETECTION_CONFIDENCE = 0.5  # of the person detector, at least
TRACKING_CONFIDENCE = 0.5  # of the landmark model that a person is there, at least
OVERLAP = 0.3  # intersection over union from which two detections are one person
SAME_PERSON = 0.25  # distance of hip centers, in radii, below which two circles are around one person
REDETECT_EVERY = 5  # frames between two runs of the person detector while one person is tracked
MARGIN = 1.25  # side of the crop in diameters of the body circle
REFINEMENT_WINDOW = 7  # side of the heatmap window that refines a point
REFINEMENT_CONFIDENCE = 0.5  # peak of the heatmap from which it is used

# Rows of the landmark model's output: OpenPose-18 (the neck is filled in), and the circle.
NOSE, LEFT_SHOULDER, RIGHT_SHOULDER = 0, 11, 12
BODY_FROM_BLAZEPOSE = [
    NOSE, NOSE, RIGHT_SHOULDER, 14, 16, LEFT_SHOULDER, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7,
]  # fmt: skip
NECK, TORSO = 1, [2, 5, 8, 11]  # rows of OpenPose-18; right and left shoulder, right and left hip
CIRCLE = slice(33, 35)  # hip center, a point on the circle above the head


class _Estimate(NamedTuple):
    """One person's pose in one frame.

    pose: our keypoints, in units of the frame.
    circle: the region of interest for the next frame.
    points, confidence: BlazePose's 39 landmarks in pixels of the frame: 33 of the body, 6 for the tracking.
    """

    pose: Keypoints
    circle: _BodyCircle
    points: Float[np.ndarray, "39 2"]
    confidence: Float32[np.ndarray, " 39"]


@dataclasses.dataclass(frozen=True)
class _BodyCircle:
    """The region of interest of one person: the whole body lies within `radius` of the hip center. In pixels of the
    frame. Also keeps the last estimates of hands and face for the next frame.
    """

    center: Float[np.ndarray, "xy=2"]
    up: Float[np.ndarray, "xy=2"]  # from the center to the circle, in the direction of the head
    hands: tuple[Points | None, Points | None] = (None, None)  # the last estimates, left first
    face: Points | None = None

    @property
    def radius(self) -> float:
        return math.hypot(*self.up)


def detect(
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    progress: Callable[[int], None] | None = None,
    person: str = "largest",
    *,
    hands: bool = False,
    face: bool = False,
) -> Keypoints:
    """Estimates the pose of one person in every frame of a video (unrelated images: one call for each).

    Points that are not visible or lie outside the frame have confidence 0, as have all points of frames without the
    person.

    Args:
        frames: RGB images of equal size, an array [F, H, W, 3] or an iterator, which is consumed.
        progress: called with the number of finished frames after every frame.
        person: which of several, see `animate_jax.pose.track.track_person`.
        hands, face: whether to estimate them, too (`hands_face`).

    Raises:
        UserError: there is no such person.
    """
    check_person(person)
    people, circles, shape, most = [], [], (), 0
    for index, frame in enumerate(frames):
        shape = frame.shape
        estimates = _estimate_poses(frame, circles)
        # A single person is tracked with few detections; where several were seen, some may be hidden now.
        if len(estimates) != 1 or most > 1 or index % REDETECT_EVERY == 0:
            estimates = _estimate_poses(frame, [estimate.circle for estimate in estimates] + _detect_people(frame))
        if hands or face:
            estimates = [_with_parts(frame, estimate, hands, face) for estimate in estimates]
        circles = [estimate.circle for estimate in estimates]
        most = max(most, len(circles))
        people.append(
            [found for found in (Detection.from_pose(estimate.pose, frame) for estimate in estimates) if found]
        )
        if progress:
            progress(len(people))
    return _fix_left_right_swaps(track_person(people, person), shape) if people else Keypoints.empty(0)


def segment(
    picture: UInt8[np.ndarray, "height width 3"], person: Keypoints
) -> UInt8[np.ndarray, "height width"] | None:
    """Segmentation mask of the person with these keypoints (one frame, from `detect`), 255 inside; None when the person
    is not detected again.

    It is the landmark model's segmentation output in the crop that fits the person best.
    """
    height, width = picture.shape[:2]

    def distance(estimate: _Estimate) -> float:
        both = (person.body_confidence > 0) & (estimate.pose.body_confidence > 0)
        return float(np.abs(estimate.pose.body - person.body)[both].mean()) if both.any() else math.inf

    estimate = min(_estimate_poses(picture, _detect_people(picture)), key=distance, default=None)
    if estimate is None or distance(estimate) == math.inf:
        return None
    to_frame = _circle_to_frame(estimate.circle)
    logits = run_model("pose_landmark_full", crop_square(picture, to_frame, LANDMARK_SIZE) / 255)[2][..., 0]
    index_map = to_frame.copy()
    index_map[:, 2] += to_frame[:, :2].sum(1) / 2 - 0.5
    return cv2.warpAffine(np.round(255 * sigmoid(logits)), index_map, (width, height)).astype(np.uint8)


def _estimate_poses(frame: UInt8[np.ndarray, "height width 3"], circles: list[_BodyCircle]) -> list[_Estimate]:
    """Estimates a pose in every region of interest; of several regions of one person the first counts."""
    estimates: list[_Estimate] = []
    for circle in circles:
        if any(_same_person(circle, other.circle) for other in estimates):
            continue
        estimate = _estimate_in_circle(frame, circle)
        if estimate and not any(_same_person(estimate.circle, other.circle) for other in estimates):
            estimates.append(estimate)
    return estimates


def _same_person(a: _BodyCircle, b: _BodyCircle) -> bool:
    """Whether two regions of interest are around one person: their hip centers are close for their size."""
    return math.dist(a.center, b.center) < SAME_PERSON * max(a.radius, b.radius)


def require_person(keypoints: Keypoints, path: str | os.PathLike) -> None:
    """Raises a UserError that names `path` when no frame shows a person."""
    if not (keypoints.body_confidence >= MIN_CONFIDENCE).any():
        raise UserError(f"{path}: no person found: use one that shows a whole person clearly")


def _detect_people(frame: UInt8[np.ndarray, "height width 3"]) -> list[_BodyCircle]:
    """The person detector on the whole frame, then non-maximum suppression; the most confident first."""
    height, width, _ = frame.shape
    side = max(height, width)
    # The picture, centered in a black square: detector pixels -> picture pixels.
    scale = side / DETECTOR_SIZE
    to_frame = np.array([[scale, 0, (width - side) / 2], [0, scale, (height - side) / 2]])
    boxes, logits = run_model("pose_detection", crop_square(frame, to_frame, DETECTOR_SIZE) / 127.5 - 1)
    scores = sigmoid(logits[:, 0])
    candidates = np.flatnonzero(scores >= DETECTION_CONFIDENCE)
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    # Face center, (face size), hip center, circle, shoulder center, its circle: pixels from the anchor.
    points = boxes[candidates].reshape(-1, 6, 2)
    points[:, [0, 2, 3, 4, 5]] += _anchors()[candidates, None]

    kept = []
    for index, candidate in enumerate(points):
        if all(_overlap(candidate, points[other]) < OVERLAP for other in kept):
            kept.append(index)
    return [_body_circle(apply_affine(to_frame, points[index, 2:4])) for index in kept]


def _estimate_in_circle(frame: UInt8[np.ndarray, "height width 3"], circle: _BodyCircle) -> _Estimate | None:
    """The landmark model in one region of interest: the pose, and the region for the next frame; None when it finds no
    person there."""
    height, width, _ = frame.shape
    to_frame = _circle_to_frame(circle)
    rows, presence, _, heatmaps, _ = run_model("pose_landmark_full", crop_square(frame, to_frame, LANDMARK_SIZE) / 255)
    if presence.item() < TRACKING_CONFIDENCE:
        return None

    # Of 39 points: x, y, z in pixels of the crop, logits of visibility and of presence.
    rows = rows.reshape(39, 5)
    confidence = sigmoid(rows[:, 3:]).min(-1)
    points = apply_affine(to_frame, _refine(rows[:, :2], heatmaps))
    shoulders = [LEFT_SHOULDER, RIGHT_SHOULDER]
    body, body_confidence = points[BODY_FROM_BLAZEPOSE], confidence[BODY_FROM_BLAZEPOSE]
    body[NECK], body_confidence[NECK] = points[shoulders].mean(0), confidence[shoulders].min()
    body = (body / (width, height)).astype(np.float32)
    seen = (body_confidence >= MIN_CONFIDENCE) & (body >= 0).all(-1) & (body <= 1).all(-1)
    pose = dataclasses.replace(Keypoints.empty(), body=body, body_confidence=body_confidence * seen)
    fitting = dataclasses.replace(_body_circle(points[CIRCLE]), hands=circle.hands, face=circle.face)
    return _Estimate(pose, fitting, points, confidence)


def _with_parts(frame: UInt8[np.ndarray, "height width 3"], estimate: _Estimate, hands: bool, face: bool) -> _Estimate:
    """Adds hands and face to an estimate, in its pose and for tracking them in the next frame."""
    size, pose, circle = np.array(frame.shape[1::-1], np.float32), estimate.pose, estimate.circle
    body = estimate.points[:33], estimate.confidence[:33]

    def placed(points: Points, presence: float) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, " n"]]:
        place = (points / size).astype(np.float32)
        inside = np.logical_and(place >= 0, place <= 1).all(-1)
        return place, np.where(inside, np.float32(presence), np.float32(0))

    if hands:
        found = [estimate_hand(frame, *body, side, circle.hands[side]) for side in (0, 1)]
        for side, hand in enumerate(found):
            if hand:
                pose.hands[side], pose.hands_confidence[side] = placed(*hand)
        circle = dataclasses.replace(circle, hands=tuple(hand and hand[0] for hand in found))
    if face:
        mesh = estimate_face(frame, *body, circle.face)
        if mesh:
            pose.face[:], pose.face_confidence[:] = placed(mesh[0][list(FACE_68)], mesh[1])
        circle = dataclasses.replace(circle, face=mesh and mesh[0])
    return estimate._replace(pose=pose, circle=circle)


def _circle_to_frame(circle: _BodyCircle) -> Float[np.ndarray, "2 3"]:
    """The affine map of the square crop around a region of interest, head up: crop pixels -> frame pixels."""
    down = -circle.up * 2 * MARGIN / LANDMARK_SIZE
    right = np.array([down[1], -down[0]])
    corner = circle.center - (right + down) * LANDMARK_SIZE / 2
    return np.stack([right, down, corner], axis=1)


def _fix_left_right_swaps(keypoints: Keypoints, shape: tuple[int, ...]) -> Keypoints:
    """Undoes sudden left-right swaps, which the model makes when a hidden face leaves front and back ambiguous.

    Left and right were swapped between two frames when shoulders and hips move less after exchanging them. The labeling
    of the majority of the frames is kept.
    """
    size = np.array((shape[1], shape[0]), np.float32)
    torso = keypoints.body[:, TORSO] * size  # [F, 4, 2]
    length = np.linalg.norm(torso[:, :2].mean(1) - torso[:, 2:].mean(1), axis=-1)
    present = np.flatnonzero(keypoints.body_confidence[:, TORSO].all(-1))
    before, after = torso[present[:-1]], torso[present[1:]]
    jump = np.linalg.norm(after - before, axis=-1).mean(-1)
    exchanged_jump = np.linalg.norm(after[:, [1, 0, 3, 2]] - before, axis=-1).mean(-1)
    turned = (jump > 0.2 * length[present[1:]]) & (exchanged_jump < 0.3 * jump)

    parity = np.zeros(len(keypoints), int)
    parity[present[1:]] = turned
    exchanged = np.cumsum(parity) % 2 == 1
    if 2 * exchanged[present].sum() > len(present):
        exchanged = ~exchanged
    order = np.arange(18)
    order[np.array(LEFT_RIGHT)] = np.array(LEFT_RIGHT)[:, ::-1]
    body, confidence = keypoints.body.copy(), keypoints.body_confidence.copy()
    body[exchanged], confidence[exchanged] = body[exchanged][:, order], confidence[exchanged][:, order]
    hands, hands_confidence = keypoints.hands.copy(), keypoints.hands_confidence.copy()
    hands[exchanged], hands_confidence[exchanged] = hands[exchanged][:, ::-1], hands_confidence[exchanged][:, ::-1]
    return dataclasses.replace(
        keypoints, body=body, body_confidence=confidence, hands=hands, hands_confidence=hands_confidence
    )


def _body_circle(points: Float[np.ndarray, "2 2"]) -> _BodyCircle:
    """From the hip center and a point on the circle above the head."""
    return _BodyCircle(points[0], points[1] - points[0])


def _overlap(a: Float[np.ndarray, "6 2"], b: Float[np.ndarray, "6 2"]) -> float:
    """Intersection over union of two detections' face boxes (rows: center, size)."""
    low, high = np.maximum(a[0] - a[1] / 2, b[0] - b[1] / 2), np.minimum(a[0] + a[1] / 2, b[0] + b[1] / 2)
    common = (high - low).clip(0).prod()
    return float(common / (a[1].prod() + b[1].prod() - common))


def _refine(
    points: Float32[np.ndarray, "n 2"], heatmaps: Float32[np.ndarray, "size size n"]
) -> Float32[np.ndarray, "n 2"]:
    """Moves points (pixels of the crop) to the center of mass of their heatmap nearby, where that is sure."""
    cell, reach = LANDMARK_SIZE / HEATMAP_SIZE, REFINEMENT_WINDOW // 2
    padded = np.pad(sigmoid(heatmaps), ((reach, reach), (reach, reach), (0, 0)))
    steps = np.arange(REFINEMENT_WINDOW)
    refined = points.copy()
    for index, (x, y) in enumerate(np.floor(points / cell).astype(int)):
        if not (0 <= x < HEATMAP_SIZE and 0 <= y < HEATMAP_SIZE):
            continue
        window = padded[y : y + REFINEMENT_WINDOW, x : x + REFINEMENT_WINDOW, index]
        if window.max() >= REFINEMENT_CONFIDENCE:
            center = np.array([window.sum(0) @ steps, window.sum(1) @ steps]) / window.sum()
            refined[index] = (center + (x - reach, y - reach)) * cell
    return refined


@functools.cache
def _anchors() -> Float[np.ndarray, "2254 2"]:
    """SSD anchors: centers x, y of the detector's boxes in its pixels, in the order of its outputs."""
    grids = []
    for stride, boxes in DETECTOR_STRIDES.items():
        y, x = np.mgrid[0:DETECTOR_SIZE:stride, 0:DETECTOR_SIZE:stride] + stride / 2
        grids.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), boxes, axis=0))
    return np.concatenate(grids)
