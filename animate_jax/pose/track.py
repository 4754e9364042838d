"""Tracks one of several people through a clip, also when two cross.

All people are tracked together: detections are assigned to tracks with the least total cost (Kuhn 1955), and the
position of a hidden person is extrapolated.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints

TORSO = [2, 5, 8, 11]  # right and left shoulder, right and left hip
INERTIA = 0.5  # weight of the previous speed in the moving average
COLOR_WEIGHT = 2.0  # body sizes per difference between black and white
# Largest distance from the extrapolated position in body sizes, and its increase for every frame without a detection.
MAX_DISTANCE, MAX_DISTANCE_PER_FRAME = 0.5, 0.1


@dataclasses.dataclass(frozen=True)
class Detection:
    """A person in one frame."""

    pose: Keypoints  # one frame
    center: Float[np.ndarray, "xy=2"]  # of the visible points, in pixels
    size: float  # diagonal of the box around them, in pixels
    offset: float  # distance of `center` from the frame's, in pixels
    color: Float[np.ndarray, "rgb=3"]  # of the torso, 0..1

    @classmethod
    def from_pose(cls, pose: Keypoints, frame: UInt8[np.ndarray, "height width 3"]) -> Detection | None:
        """None when fewer than three points are visible."""
        (height, width, _), pose = frame.shape, pose.bounded()
        seen = pose.body_confidence > MIN_CONFIDENCE
        if seen.sum() < 3:
            return None
        points = pose.body[seen] * (width, height)
        torso = (pose.body[TORSO] * (width, height))[seen[TORSO]]
        box = torso if len(torso) >= 3 else points
        (left, top), (right, bottom) = box.min(0), box.max(0)
        top, bottom = (int(np.clip(y, 0, height - 1)) for y in (top, bottom))
        left, right = (int(np.clip(x, 0, width - 1)) for x in (left, right))
        patch = frame[top : bottom + 1, left : right + 1]
        size = float(np.linalg.norm(np.ptp(points, axis=0)))
        center = points.mean(0).astype(np.float64)
        offset = float(np.linalg.norm(center - np.array([width, height]) / 2))
        return cls(pose, center, max(size, 1.0), offset, patch.reshape(-1, 3).mean(0) / 255)


@dataclasses.dataclass
class _Track:
    frames: dict[int, Detection]
    center: np.ndarray
    speed: np.ndarray
    color: np.ndarray
    last: int

    def cost(self, found: Detection, frame: int) -> float:
        """Of assigning a detection, in body sizes; infinite if it is too far away."""
        hidden = frame - self.last
        distance = np.linalg.norm(self.center + self.speed * hidden - found.center) / found.size
        if distance > MAX_DISTANCE + MAX_DISTANCE_PER_FRAME * hidden:
            return np.inf
        return float(distance + COLOR_WEIGHT * np.linalg.norm(self.color - found.color) / np.sqrt(3))

    def update(self, found: Detection, frame: int) -> None:
        step = (found.center - self.center) / (frame - self.last)
        self.speed = INERTIA * self.speed + (1 - INERTIA) * step
        self.center, self.last = found.center, frame
        self.color = 0.9 * self.color + 0.1 * found.color
        self.frames[frame] = found


def track_person(people: list[list[Detection]], person: str = "largest") -> Keypoints:
    """The keypoints of one person in every frame; all are missing where the person is hidden.

    Args:
        people: the detections of each frame, in any order.
        person: "largest" or "center" (nearest to the frame's center) in the first frame with a detection, or a number:
            the position counted from the left, from 1, in the first frame with so many people.

    Raises:
        UserError: no such choice, or no frame shows so many people.
    """
    check_person(person)
    tracks: list[_Track] = []
    for frame, found in enumerate(people):
        costs = np.array([[track.cost(f, frame) for f in found] for track in tracks]).reshape(len(tracks), len(found))
        # Infinite costs are replaced by ones larger than those of any possible assignment.
        rows, columns = _assign(np.where(np.isinf(costs), 1e6, costs))
        pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if np.isfinite(costs[r, c])]
        for row, column in pairs:
            tracks[row].update(found[column], frame)
        taken = {column for _, column in pairs}
        for column, new in enumerate(found):
            if column not in taken:
                tracks.append(_Track({frame: new}, new.center, np.zeros(2), new.color, frame))

    wanted = int(person) if person.isdigit() else 1
    start = next((i for i, found in enumerate(people) if len(found) >= wanted), None)
    if start is None:
        if any(people) and person.isdigit():
            most = max(map(len, people))
            seen = f"{most} people are" if most > 1 else "one person is"
            raise UserError(f"--person {person}: no more than {seen} seen in any frame: take a smaller number")
        return Keypoints.stack([Keypoints.empty()] * len(people)) if people else Keypoints.empty(0)
    here = sorted((t for t in tracks if start in t.frames), key=lambda t: t.frames[start].center[0])
    if person == "largest":
        chosen = max(here, key=lambda t: t.frames[start].size)
    elif person == "center":
        chosen = min(here, key=lambda t: t.frames[start].offset)
    else:
        chosen = here[wanted - 1]
    return Keypoints.stack([_pose_at(chosen, tracks, frame) for frame in range(len(people))])


def _assign(costs: Float[np.ndarray, "t d"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs with the least total cost."""
    if costs.size <= 1:  # one person, as in most videos: SciPy takes half a second to import
        return np.arange(costs.size), np.arange(costs.size)
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(costs)


def _pose_at(chosen: _Track, tracks: list[_Track], frame: int) -> Keypoints:
    """The chosen person's pose, or after the end of their track that of a new person who is alone in the frame."""
    if frame in chosen.frames:
        return chosen.frames[frame].pose
    here = [track for track in tracks if frame in track.frames]
    newcomer = len(here) == 1 and frame > chosen.last and min(here[0].frames) > chosen.last
    return here[0].frames[frame].pose if newcomer else Keypoints.empty()


def check_person(person: str) -> None:
    """Raises a UserError unless `track_person` accepts the choice."""
    number = person.isascii() and person.isdigit()  # "²" is a digit, too
    if person not in ("largest", "center") and not (number and len(person) < 10 and int(person) > 0):
        raise UserError(f"--person {person}: must be largest, center, or a number from 1, counted from the left")
