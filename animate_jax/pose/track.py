"""Follows one of several people through a clip, so that nobody trades places when two cross.

Everybody is followed at once: between frames, people found are given to people known where the sum of all
disagreements is least (Kuhn 1955), and somebody hidden for a while is expected where their motion leads them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from scipy.optimize import linear_sum_assignment

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import Keypoints

SEEN = 0.3  # confidence from which a point counts
TORSO = [2, 5, 8, 11]  # right and left shoulder, right and left hip
INERTIA = 0.5  # share of the old speed in the new one
COLOUR = 2.0  # body sizes that the difference of black and white is worth
REACH, REACH_PER_FRAME = 0.5, 0.1  # body sizes somebody may be from where they are expected, more when hidden


@dataclasses.dataclass(frozen=True)
class Found:
    """A person in one frame."""

    pose: Keypoints  # one frame
    center: Float[np.ndarray, "xy=2"]  # of the points seen, in pixels
    size: float  # diagonal of the box around them, in pixels
    offset: float  # of `center` from the middle of the picture, in pixels
    colour: Float[np.ndarray, "rgb=3"]  # of the torso, 0..1

    @classmethod
    def of(cls, pose: Keypoints, frame: UInt8[np.ndarray, "height width 3"]) -> Found | None:
        """None where fewer than three points are seen."""
        (height, width, _), pose = frame.shape, pose.bounded()
        seen = pose.body_confidence > SEEN
        if seen.sum() < 3:
            return None
        points = pose.body[seen] * (width, height)
        torso = (pose.body[TORSO] * (width, height))[seen[TORSO]]
        box = torso if len(torso) >= 3 else points
        (left, top), (right, bottom) = box.min(0), box.max(0)
        inside = lambda value, size: int(np.clip(value, 0, size - 1))  # noqa: E731
        patch = frame[inside(top, height) : inside(bottom, height) + 1, inside(left, width) : inside(right, width) + 1]
        size = float(np.linalg.norm(np.ptp(points, axis=0)))
        center = points.mean(0).astype(np.float64)
        offset = float(np.linalg.norm(center - np.array([width, height]) / 2))
        return cls(pose, center, max(size, 1.0), offset, patch.reshape(-1, 3).mean(0) / 255)


@dataclasses.dataclass
class _Track:
    frames: dict[int, Found]
    center: np.ndarray
    speed: np.ndarray
    colour: np.ndarray
    last: int

    def disagreement(self, found: Found, frame: int) -> float:
        """In body sizes; infinite beyond reach."""
        hidden = frame - self.last
        way = np.linalg.norm(self.center + self.speed * hidden - found.center) / found.size
        if way > REACH + REACH_PER_FRAME * hidden:
            return np.inf
        return float(way + COLOUR * np.linalg.norm(self.colour - found.colour) / np.sqrt(3))

    def take(self, found: Found, frame: int) -> None:
        step = (found.center - self.center) / (frame - self.last)
        self.speed = INERTIA * self.speed + (1 - INERTIA) * step
        self.center, self.last = found.center, frame
        self.colour = 0.9 * self.colour + 0.1 * found.colour
        self.frames[frame] = found


def follow(people: list[list[Found]], person: str = "largest") -> Keypoints:
    """The keypoints of one person in every frame; everything is missing where they are hidden.

    Args:
        people: those found in each frame, in any order.
        person: "largest" or "center" (nearest to the picture's) in the first frame that shows somebody, or a
            number: the how manieth from the left, from 1, in the first frame that shows so many.

    Raises:
        UserError: no such choice, or never so many people.
    """
    check_person(person)
    tracks: list[_Track] = []
    for frame, found in enumerate(people):
        costs = np.array([[track.disagreement(f, frame) for f in found] for track in tracks]).reshape(
            len(tracks), len(found)
        )
        # Out of reach costs more than any assignment within reach.
        rows, columns = linear_sum_assignment(np.where(np.isinf(costs), 1e6, costs))
        pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if np.isfinite(costs[r, c])]
        for row, column in pairs:
            tracks[row].take(found[column], frame)
        taken = {column for _, column in pairs}
        for column, new in enumerate(found):
            if column not in taken:
                tracks.append(_Track({frame: new}, new.center, np.zeros(2), new.colour, frame))

    wanted = int(person) if person.isdigit() else 1
    start = next((i for i, found in enumerate(people) if len(found) >= wanted), None)
    if start is None:
        if any(people) and person.isdigit():
            raise UserError(f"--person {person}: never more than {max(map(len, people))} people in one frame")
        return Keypoints.stack([Keypoints.missing()] * len(people)) if people else Keypoints.missing(0)
    here = sorted((t for t in tracks if start in t.frames), key=lambda t: t.frames[start].center[0])
    if person == "largest":
        chosen = max(here, key=lambda t: t.frames[start].size)
    elif person == "center":
        chosen = min(here, key=lambda t: t.frames[start].offset)
    else:
        chosen = here[wanted - 1]
    return Keypoints.stack([_pose(chosen, tracks, frame) for frame in range(len(people))])


def _pose(chosen: _Track, tracks: list[_Track], frame: int) -> Keypoints:
    """Of the chosen person, or of who comes alone after they were lost for good."""
    if frame in chosen.frames:
        return chosen.frames[frame].pose
    here = [track for track in tracks if frame in track.frames]
    newcomer = len(here) == 1 and frame > chosen.last and min(here[0].frames) > chosen.last
    return here[0].frames[frame].pose if newcomer else Keypoints.missing()


def check_person(person: str) -> None:
    """Raises a UserError unless it is a choice that `follow` knows."""
    number = person.isascii() and person.isdigit()  # "²" is a digit, too
    if person not in ("largest", "center") and not (number and len(person) < 10 and int(person) > 0):
        raise UserError(f"--person {person}: must be largest, center, or a number from 1, counted from the left")
