"""Motion capture: random segments of recordings that were retargeted onto the average body when the asset was made."""

import dataclasses

import numpy as np
from jaxtyping import Float

ASSET_FPS = 30  # frames a second in the asset
# The last part of long takes is held out, some seconds after the part that is trained on:
# name -> (take, first second, last second).
TAKES = {
    "cmu_01_03": ("cmu_01_03", 0.0, 24.5),
    "cmu_01_03_tail": ("cmu_01_03", 27.0, None),
    "boxing": ("boxing", 0.0, 15.5),
    "boxing_tail": ("boxing", 17.5, 23.2),
    "boxing_fallen": ("boxing", 25.0, None),
}
# Only test splits use these motions.
HELD_OUT = ("dance_b", "kick", "cmu_01_03_tail", "boxing_tail")
CYCLIC = ("walk", "run", "turn_left0", "turn_left1", "turn_right0", "turn_right1")
ACROBATIC = ("crawl", "getup_facedown", "getup_faceup", "roll", "backflip", "cartwheel", "boxing_fallen")
MAX_SECONDS = 12.0  # seconds that any clip may need; shorter motions are repeated up to it


@dataclasses.dataclass(frozen=True)
class Segment:
    """World rotations of the driven bones from the rest pose, and root positions (in hip heights, floor at z = 0)."""

    name: str
    rotations: Float[np.ndarray, "frames bones 3 3"]
    root: Float[np.ndarray, "frames 3"]


def quaternion_to_matrix(q: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "... 3 3"]:
    """Rotation matrices of quaternions w, x, y, z, which need not be normalized."""
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def axis_angle_to_matrix(
    axis: Float[np.ndarray, "3"], angle: Float[np.ndarray, " frames"]
) -> Float[np.ndarray, "frames 3 3"]:
    """Rotation matrices of angles in radians about a unit vector."""
    half = np.asarray(angle)[..., None] / 2
    return quaternion_to_matrix(np.concatenate([np.cos(half), np.sin(half) * axis], -1))


def heading(hips: Float[np.ndarray, "frames 3 3"]) -> Float[np.ndarray, " frames"]:
    """The yaw of the hips in radians: 0 faces -y, counter-clockwise from above."""
    return np.arctan2(-hips[:, 0, 1], hips[:, 1, 1])


class Motions:
    """All motions of the asset, extended to the longest clip, divided into train and test."""

    def __init__(self, asset: dict[str, np.ndarray]):
        self.bones = [str(name) for name in asset["driven"]]
        swapped = [b.replace("Left", "~").replace("Right", "Left").replace("~", "Right") for b in self.bones]
        self._mirrored_bones = [self.bones.index(bone) for bone in swapped]
        self._upper_body = [k for k, b in enumerate(self.bones) if b != "Hips" and not b.endswith(("Leg", "Foot"))]
        arms = ([side + name for name in ("Arm", "ForeArm", "Hand")] for side in ("Left", "Right"))
        self._arms = [[k for k, b in enumerate(self.bones) if b in arm] for arm in arms]
        raw = {key.removeprefix("motion_"): asset[key] for key in asset if key.startswith("motion_")}
        takes = {name: (name, 0.0, None) for name in raw} | TAKES
        self.seconds, self._data = {}, {}
        for name, (source, first, last) in takes.items():
            end = None if last is None else round(last * ASSET_FPS)
            table = raw[source][round(first * ASSET_FPS) : end].astype(np.float64)
            self.seconds[name] = len(table) / ASSET_FPS
            self._data[name] = self._extend(name, table[:, :-3].reshape(len(table), -1, 4), table[:, -3:])
        self.names = {"test": sorted(HELD_OUT), "train": sorted(set(takes) - set(HELD_OUT))}

    def _extend(self, name: str, q: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Repeats a short motion: cyclic ones go on from where the cycle ended, others are played
        forward and backward in turn."""
        rotations = quaternion_to_matrix(q)
        while len(rotations) < MAX_SECONDS * ASSET_FPS:
            if name in CYCLIC:
                yaw = heading(rotations[-1:, 0]) - heading(rotations[:1, 0])
                turn = axis_angle_to_matrix(np.array([0.0, 0, 1]), yaw)[0]
                step = root[-1] - turn @ root[0]
                step[2] = 0
                rotations = np.concatenate([rotations, (turn @ rotations)[1:]])
                root = np.concatenate([root, (root @ turn.T + step)[1:]])
            else:
                rotations, root = (np.concatenate([part, part[-2:0:-1]]) for part in (rotations, root))
        return rotations, root

    def _sample_stretch(self, name: str, rng: np.random.Generator, frames: int, fps: float):
        rotations, root = self._data[name]
        step = ASSET_FPS / fps * rng.uniform(0.8, 1.25)
        mirror = rng.random() < 0.5
        span = min(step * (frames - 1), len(root) - 2.001)
        times = rng.uniform(0, len(root) - 1.001 - span) + np.linspace(0, span, frames)
        low = times.astype(int)
        t = (times - low)[:, None]
        root = root[low] * (1 - t) + root[low + 1] * t
        # Between neighbors 1/30 s apart, blending matrices and re-orthogonalizing is as good as slerp.
        mixed = rotations[low] * (1 - t[..., None, None]) + rotations[low + 1] * t[..., None, None]
        x = mixed[..., 0] / np.linalg.norm(mixed[..., 0], axis=-1, keepdims=True)
        y = mixed[..., 1] - (mixed[..., 1] * x).sum(-1, keepdims=True) * x
        y /= np.linalg.norm(y, axis=-1, keepdims=True)
        rotations = np.stack([x, y, np.cross(x, y)], -1)
        if mirror:
            flip = np.array([-1.0, 1, 1])
            rotations = rotations[:, self._mirrored_bones] * flip[:, None] * flip
            root = root * flip
        return rotations, root

    def sample_segment(self, split: str, rng: np.random.Generator, frames: int, fps: float) -> Segment:
        """A random segment of a motion of "train" or "test", at 0.8 to 1.25 of its speed, mirrored half of the time.

        Training motions are few, so they are augmented: the upper body of another motion on these legs, and random
        rotations of the arms. Test motions stay as they were captured.
        """
        names = self.names[split]
        chance = np.sqrt([self.seconds[name] * (0.03 if name in ACROBATIC else 1) for name in names])
        name = names[rng.choice(len(names), p=chance / chance.sum())]
        rotations, root = self._sample_stretch(name, rng, frames, fps)
        if split == "train" and name not in ACROBATIC:
            if rng.random() < 0.3:
                upright = [other for other in names if other not in (name, *ACROBATIC)]
                other = upright[rng.integers(len(upright))]
                upper, _ = self._sample_stretch(other, rng, frames, fps)
                to_lower_body = rotations[:, :1] @ upper[:, :1].swapaxes(-1, -2)
                rotations[:, self._upper_body] = to_lower_body @ upper[:, self._upper_body]
                name = f"{name}+{other}"
            if rng.random() < 0.5:
                for arm in self._arms:
                    axis = rng.normal(size=3)
                    phase = rng.uniform(0, 6) + np.arange(frames) * rng.uniform(0, 2.5) / fps
                    swing = rng.uniform(0, 0.5) * np.sin(phase)
                    turn = axis_angle_to_matrix(axis / np.linalg.norm(axis), swing)
                    rotations[:, arm] = turn[:, None] @ rotations[:, arm]
        return Segment(name, rotations, root)
