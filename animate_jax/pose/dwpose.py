"""Whole-body keypoints, with hands and face, from DWPose's two ONNX models, which the user downloads.

`yolox_l.onnx` detects people in a letterboxed 640 x 640 image, `dw-ll_ucoco_384.onnx` estimates 133 keypoints from each
person's crop, as scores over columns and rows (SimCC). Yang et al., "Effective Whole-body Pose Estimation with
Two-stages Distillation", 2023; the numbers are those of the `dwpose` folders of Moore-AnimateAnyone and MusePose.
Runs on onnxruntime: `pip install animate_jax[dwpose]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from animate_jax.errors import UserError, reading
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.track import Detection, check_person, track_person

DETECTOR, POSE_MODEL = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
DETECTOR_SIZE, STRIDES, PAD_VALUE = 640, (8, 16, 32), 114.0
MIN_SCORE, OVERLAP = 0.3, 0.45
HEIGHT, WIDTH = 384, 288  # of a person's crop
PADDING = 1.25  # the crop is that much larger than the person's box
MEAN = np.array((123.675, 116.28, 103.53), np.float32)
STD = np.array((58.395, 57.12, 57.375), np.float32)
SIMCC_SPLIT_RATIO = 2  # scores per pixel of the crop
SHOULDERS = [5, 6]
# OpenPose-18 out of COCO-WholeBody's 17; the neck (1) is filled in. Then 6 points of feet, face, left and right hand.
BODY_FROM_COCO = [0, 0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
NECK, FACE, HANDS = 1, slice(23, 91), slice(91, 133)

BoxXYXY = Float[np.ndarray, "4"]  # left, top, right, bottom in pixels


class DWPose:
    """A detector like `animate_jax.pose.detect.detect`.

    Raises UserError when the folder does not hold the two models, they cannot be read, or onnxruntime is missing.
    """

    def __init__(self, folder: str | os.PathLike):
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("--dwpose: onnxruntime is not installed: pip install 'animate_jax[dwpose]'") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        self._models = []
        for name, size in ((DETECTOR, (DETECTOR_SIZE, DETECTOR_SIZE)), (POSE_MODEL, (HEIGHT, WIDTH))):
            path = Path(folder) / name
            if not path.is_file():
                raise UserError(f"{path}: no such file: --dwpose needs a folder with {DETECTOR} and {POSE_MODEL}")
            with reading(path, "model in ONNX", "download it again"):
                model = onnxruntime.InferenceSession(path, options, onnxruntime.get_available_providers())
                takes = tuple(model.get_inputs()[0].shape[-2:])
            if all(isinstance(length, int) for length in takes) and takes != size:
                raise UserError(
                    f"{path}: takes pictures of {takes}, not {size} pixels: is it {DETECTOR} or {POSE_MODEL}?"
                )
            self._models.append((path, model))

    def __call__(
        self,
        frames: Iterable[UInt8[np.ndarray, "height width 3"]],
        progress: Callable[[int], None] | None = None,
        person: str = "largest",
    ) -> Keypoints:
        """As `animate_jax.pose.detect.detect`, always with hands and face."""
        check_person(person)
        people = []
        for frame in frames:
            found = [Detection.from_pose(self._estimate(frame, box), frame) for box in self._detect_people(frame)]
            people.append([one for one in found if one])
            if progress:
                progress(len(people))
        return track_person(people, person)

    def _detect_people(self, frame: UInt8[np.ndarray, "height width 3"]) -> list[BoxXYXY]:
        """Boxes of people; the whole picture when there are none, as the PyTorch implementations do."""
        picture, scale = letterbox(frame)
        boxes = decode_boxes(self._run(0, picture)[0][0]) / scale
        return list(boxes) or [np.array([0.0, 0, frame.shape[1], frame.shape[0]])]

    def _estimate(self, frame: UInt8[np.ndarray, "height width 3"], box: BoxXYXY) -> Keypoints:
        picture, to_frame = crop_person(frame, box)
        scores_x, scores_y = self._run(1, picture)
        points, confidence = decode_simcc(scores_x[0], scores_y[0])
        return from_coco_wholebody(points @ to_frame[:, :2].T + to_frame[:, 2], confidence, frame.shape[:2])

    def _run(self, index: int, picture: Float32[np.ndarray, "3 height width"]) -> list[np.ndarray]:
        path, model = self._models[index]
        with reading(path, "model of DWPose", "download it again"):
            return model.run(None, {model.get_inputs()[0].name: picture[None]})


def letterbox(frame: UInt8[np.ndarray, "height width 3"]) -> tuple[Float32[np.ndarray, "3 640 640"], float]:
    """The frame, BGR 0..255, in the upper left of a gray square; and the factor by which it was scaled."""
    height, width, _ = frame.shape
    scale = min(DETECTOR_SIZE / height, DETECTOR_SIZE / width)
    small = cv2.resize(frame[..., ::-1], (int(width * scale), int(height * scale)), interpolation=cv2.INTER_LINEAR)
    square = np.full((DETECTOR_SIZE, DETECTOR_SIZE, 3), PAD_VALUE, np.float32)
    square[: small.shape[0], : small.shape[1]] = small
    return np.ascontiguousarray(square.transpose(2, 0, 1)), scale


def decode_boxes(outputs: Float32[np.ndarray, "8400 85"]) -> Float[np.ndarray, "n 4"]:
    """Boxes of people out of YOLOX's outputs: offset from the cell and logarithm of the size, both in strides;
    objectness; 80 classes (0: person)."""
    cells, strides = [], []
    for stride in STRIDES:
        side = DETECTOR_SIZE // stride
        y, x = np.mgrid[:side, :side]
        cells.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    cells, strides = np.concatenate(cells), np.concatenate(strides)
    scores = outputs[:, 4] * outputs[:, 5]
    likely = np.flatnonzero(scores > MIN_SCORE)
    likely = likely[np.argsort(-scores[likely], kind="stable")]
    center = (outputs[likely, :2] + cells[likely]) * strides[likely]
    half = np.exp(outputs[likely, 2:4]) * strides[likely] / 2
    boxes = np.concatenate([center - half, center + half], 1).astype(np.float64)
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if all(_overlap(box, boxes[other]) <= OVERLAP for other in kept):
            kept.append(index)
    return boxes[kept]


def _overlap(a: BoxXYXY, b: BoxXYXY) -> float:
    """Intersection over union with inclusive pixel coordinates, as in YOLOX's non-maximum suppression."""
    common = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1).clip(0).prod()
    return float(common / ((a[2:] - a[:2] + 1).prod() + (b[2:] - b[:2] + 1).prod() - common))


def crop_person(
    frame: UInt8[np.ndarray, "height width 3"], box: BoxXYXY
) -> tuple[Float32[np.ndarray, "3 384 288"], Float[np.ndarray, "2 3"]]:
    """The padded box, widened to the crop's aspect ratio, as standardized BGR; and the map crop -> frame, in pixels."""
    center, (width, height) = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * PADDING
    width = max(width, height * WIDTH / HEIGHT)
    step = width / WIDTH
    to_frame = np.array([[step, 0, center[0] - step * WIDTH / 2], [0, step, center[1] - step * HEIGHT / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(frame[..., ::-1], to_frame, (WIDTH, HEIGHT), flags=flags)
    return np.ascontiguousarray(((picture - MEAN) / STD).transpose(2, 0, 1)), to_frame


def decode_simcc(
    scores_x: Float32[np.ndarray, "points columns"], scores_y: Float32[np.ndarray, "points rows"]
) -> tuple[Float[np.ndarray, "points 2"], Float[np.ndarray, " points"]]:
    """Each point's column and row of the highest score, in pixels of the crop, and the smaller of the two scores."""
    place = np.stack([scores_x.argmax(1), scores_y.argmax(1)], -1) / SIMCC_SPLIT_RATIO
    return place, np.minimum(scores_x.max(1), scores_y.max(1)).astype(np.float64)


def from_coco_wholebody(
    points: Float[np.ndarray, "133 2"], confidence: Float[np.ndarray, "133"], canvas: tuple[int, int]
) -> Keypoints:
    """Our keypoints from COCO-WholeBody's, which are in pixels of an image (height, width); the feet are left out."""
    place = (points / (canvas[1], canvas[0])).astype(np.float32)
    confidence = confidence.clip(0, 1).astype(np.float32)
    body, body_confidence = place[BODY_FROM_COCO], confidence[BODY_FROM_COCO]
    body[NECK], body_confidence[NECK] = place[SHOULDERS].mean(0), (confidence[SHOULDERS] > MIN_CONFIDENCE).all()
    return Keypoints(
        body,
        body_confidence,
        place[HANDS].reshape(2, 21, 2),
        confidence[HANDS].reshape(2, 21),
        place[FACE],
        confidence[FACE],
    )
