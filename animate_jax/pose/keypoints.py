"""Keypoints: the representation of a pose everywhere until it is drawn.

Body points follow OpenPose-18, hands OpenPose-21 (left hand first), the face the 68 points of iBUG 300-W.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

BODY = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
LEFT_RIGHT = (2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17)
FACE_MIRROR = tuple(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46,
     39, 38, 37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
)  # fmt: skip
Number = float | int
Canvas = tuple[int, int]  # height, width in pixels

MIN_CONFIDENCE = 0.3  # from which a point counts as seen (DWPose's)
MIN_LENGTH = 1e-6  # shorter lengths, in pixels or image heights, are taken for zero
MAX_POSITION = 1e4  # largest coordinate that `bounded` keeps, in sizes of the image


@dataclasses.dataclass(frozen=True)
class Keypoints:
    """One person over any number of leading (frame) axes.

    Positions are x, y in units of the image's width and height (0..1 inside the image; points may lie
    outside). Confidences are 0..1; 0 means that the point is missing and its position has no meaning.
    """

    body: Float[np.ndarray, "*frames 18 2"]
    body_confidence: Float[np.ndarray, "*frames 18"]
    hands: Float[np.ndarray, "*frames 2 21 2"]  # [left, right]
    hands_confidence: Float[np.ndarray, "*frames 2 21"]
    face: Float[np.ndarray, "*frames 68 2"]
    face_confidence: Float[np.ndarray, "*frames 68"]

    @classmethod
    def empty(cls, *frames: int) -> Keypoints:
        """Keypoints that are all missing: every confidence is 0."""
        counts = {"body": (18,), "hands": (2, 21), "face": (68,)}
        arrays = {}
        for name, points in counts.items():
            arrays[name] = np.zeros((*frames, *points, 2), np.float32)
            arrays[f"{name}_confidence"] = np.zeros((*frames, *points), np.float32)
        return cls(**arrays)

    @classmethod
    def stack(cls, frames: list[Keypoints]) -> Keypoints:
        """Joins single frames along a new leading axis."""
        return cls(*(np.stack([getattr(frame, name) for frame in frames]) for name in cls.names()))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))

    def __getitem__(self, index) -> Keypoints:
        """Selects frames (an int, a slice or an index array)."""
        return Keypoints(*(getattr(self, name)[index] for name in self.names()))

    def __len__(self) -> int:
        return self.body.shape[0]

    def bounded(self) -> Keypoints:
        """Marks points as missing whose position or confidence is not finite, and clips positions to `MAX_POSITION`."""
        arrays = {}
        for name in ("body", "hands", "face"):
            points, confidence = getattr(self, name), getattr(self, f"{name}_confidence")
            finite = np.isfinite(points).all(-1) & np.isfinite(confidence)
            arrays[name] = np.where(finite[..., None], points, 0).clip(-MAX_POSITION, MAX_POSITION)
            arrays[f"{name}_confidence"] = np.where(finite, confidence, 0)
        return Keypoints(**arrays)

    def without(self, *parts: str) -> Keypoints:
        """With every point of these parts ("hands", "face") missing."""
        return dataclasses.replace(
            self, **{f"{part}_confidence": np.zeros_like(getattr(self, f"{part}_confidence")) for part in parts}
        )

    def flipped(self) -> Keypoints:
        """The pose of the horizontally flipped image: x becomes 1 - x, left and right points are exchanged."""
        order = np.arange(18)
        for right, left in LEFT_RIGHT:
            order[right], order[left] = left, right
        return Keypoints(
            body=_flip(self.body[..., order, :]),
            body_confidence=self.body_confidence[..., order],
            hands=_flip(self.hands[..., ::-1, :, :]),
            hands_confidence=self.hands_confidence[..., ::-1, :],
            face=_flip(self.face[..., FACE_MIRROR, :]),
            face_confidence=self.face_confidence[..., FACE_MIRROR],
        )

    def affine(self, scale: tuple[Number, Number], offset: tuple[Number, Number]) -> Keypoints:
        """x, y -> x * scale + offset: how keypoints change when their image is cropped, resized or padded."""
        moved = {
            name: (getattr(self, name) * np.array(scale, np.float32) + np.array(offset, np.float32)).astype(np.float32)
            for name in ("body", "hands", "face")
        }
        return dataclasses.replace(self, **moved)


def _flip(points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    return np.stack([1 - points[..., 0], points[..., 1]], -1)


def to_pixels(keypoints: Keypoints, canvas: Canvas) -> Float[np.ndarray, "*frames 18 2"]:
    """The body points in pixels of an image of that height and width."""
    return keypoints.body * np.array([canvas[1], canvas[0]], np.float32)
