"""Estimates by which ratios the reference's bones differ from those of the person in the clip.

What is hard is to know the ratios from one picture of the reference:

- Over the clip a bone's length is a high quantile, left and right together, for foreshortening only shortens.
- The reference shows each bone once. By how much it may be foreshortened says a prior: `_true_lengths`.
- Where the reference holds a pose of the clip, its bones are as foreshortened as those: `_pose_similarity`,
  `_ratios_in_same_pose`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from animate_jax.pose.keypoints import MIN_LENGTH

NOSE, NECK, HIPS = 0, 1, 18  # the middle of the hips is put after the 18 body points


@dataclasses.dataclass(frozen=True)
class Bone:
    """One kind of bone.

    length: of an adult, in statures (Drillis and Contini 1966; Winter, "Biomechanics", table 4.1).
    shortening: how much a picture of somebody shortens it, on average, as a logarithm.
    """

    pairs: tuple[tuple[int, int], ...]
    length: float
    shortening: float


BONES = {
    "spine": Bone(((HIPS, NECK),), 0.288, 0.04),
    "shoulders": Bone(((2, 5),), 0.22, 0.2),
    "hips": Bone(((8, 11),), 0.11, 0.2),
    "upper arm": Bone(((2, 3), (5, 6)), 0.186, 0.1),
    "forearm": Bone(((3, 4), (6, 7)), 0.146, 0.2),
    "thigh": Bone(((8, 9), (11, 12)), 0.245, 0.06),
    "shin": Bone(((9, 10), (12, 13)), 0.246, 0.06),
    "neck": Bone(((NOSE, NECK),), 0.12, 0.1),
    "eyes": Bone(((14, 15),), 0.037, 0.2),
    "ears": Bone(((16, 17),), 0.085, 0.2),
    "temples": Bone(((14, 16), (15, 17)), 0.05, 0.4),
}
HEAD = "eyes", "ears", "temples"
SPREAD = 0.07  # of bone lengths between people of one stature, as a logarithm
CLIP_SHORTENING = 0.05  # of the longest that a whole clip shows
LONGEST = 0.95  # quantile over frames
SAME_DIRECTION = np.radians(7)  # how far bones of two people in one pose differ, root mean square
CLOSEST_DIRECTION = np.radians(1)  # how much worse than the best another frame may fit

# Wrist and first joint of every finger of a flat hand, across and along it, in no unit: mean of 40 MakeHuman bodies.
PALM = [0, 1, 5, 9, 13, 17]
FLAT_PALM = np.array([(0.01, -0.65), (0.23, -0.30), (0.25, 0.29), (0.01, 0.28), (-0.17, 0.23), (-0.33, 0.15)])

DISAGREEMENT = 0.3  # of the two ways to know a ratio, at most, as a logarithm
SIDEWAYS = 0.5  # share of its length from which a bone is surely measured
PROPORTIONS = np.log([bone.length for bone in BONES.values()])
SHORTENING = np.array([bone.shortening for bone in BONES.values()])
NEIGHBORS = 3  # standard deviation, in frames, of the neighborhood that tells how near a person is

Points = Float[np.ndarray, "_ 19 2"]  # one reference, or the frames of a clip
Seen = Bool[np.ndarray, "_ 19"]


@dataclasses.dataclass(frozen=True)
class Proportions:
    """Lengths in the reference / lengths in the clip's first frame.

    bones: by kind of bone, and of "leg" and "head".
    sizes: of the person in each frame by distance from the camera, logarithms, 0 in the first frame.
    trust: how far each frame holds the reference's pose, 0..1.
    """

    bones: dict[str, float]
    sizes: Float[np.ndarray, " frames"]
    trust: Float[np.ndarray, " frames"]


def estimate_proportions(driven: Points, driven_seen: Seen, target: Points, target_seen: Seen) -> Proportions | None:
    """The reference's bones against those of the person in the clip; None when the two show no bone in common.

    Args:
        driven, driven_seen: the clip's points in pixels, and which are seen.
        target, target_seen: the reference's.
    """
    lengths, target_lengths = _lengths(driven, driven_seen), _lengths(target, target_seen)[0]
    if not (~np.isnan(lengths).all(0) & ~np.isnan(target_lengths)).any():
        return None
    # The person comes nearer and goes away: bones as they would look at the first frame's distance.
    sizes, true = np.zeros(len(driven)), None
    for _ in range(3):
        longest = _quantile(lengths - sizes[:, None], LONGEST)
        # A bone that the clip never shows sideways is longer than any frame says.
        size, build = _true_lengths(longest - PROPORTIONS, np.full(len(BONES), CLIP_SHORTENING))
        true = size + build + PROPORTIONS
        sizes = _smooth([_true_lengths(frame - true, SHORTENING)[0] for frame in lengths])

    # Sizes of both are told from single frames, by the same rule: its errors cancel on the average.
    first = np.flatnonzero(~np.isnan(lengths).all(1))[0]
    size, build = _true_lengths(target_lengths - true, SHORTENING)
    logs = size + build - sizes[first]
    sizes = sizes - sizes[first]
    pairs = _compare_bones(driven, driven_seen, target, target_seen, sizes)
    trust, likeness = _pose_similarity(pairs)
    matching, measured = _ratios_in_same_pose(pairs, likeness, sizes, true)
    share = trust.max(initial=0) * measured
    matching = logs + np.clip(matching - logs, -DISAGREEMENT, DISAGREEMENT)
    logs = share * matching + (1 - share) * logs
    bones = dict(zip(BONES, np.exp(logs), strict=True))
    thigh, shin = (np.exp(true[list(BONES).index(name)]) for name in ("thigh", "shin"))
    bones["head"] = np.median([bones[name] for name in HEAD])
    bones["leg"] = (bones["thigh"] * thigh + bones["shin"] * shin) / (thigh + shin)
    return Proportions({name: float(ratio) for name, ratio in bones.items()}, sizes, trust)


def estimate_hand_ratio(
    proportions: Proportions,
    driven: Float[np.ndarray, "frames 2 21 2"],
    driven_seen: Bool[np.ndarray, "frames 2 21"],
    target: Float[np.ndarray, "2 21 2"],
    target_seen: Bool[np.ndarray, "2 21"],
) -> float:
    """The reference's hands against those of the person in the clip: the mean of what the hands and the forearms say.

    Either alone errs by some hundredths: of hands there is one picture, and not every hand goes with its arm. Of hands
    that only one of the two shows, the forearms decide.
    """
    forearm = np.log(proportions.bones["forearm"])
    sizes, target_size = _hand_sizes(driven, driven_seen) - proportions.sizes, _hand_sizes(target, target_seen)
    if np.isnan(sizes).all() or np.isnan(target_size):
        return float(np.exp(forearm))
    measured = target_size - np.nanmedian(sizes)
    return float(np.exp(forearm + np.clip(measured - forearm, -2 * DISAGREEMENT, 2 * DISAGREEMENT) / 2))


def _hand_sizes(
    points: Float[np.ndarray, "*frames 2 21 2"], seen: Bool[np.ndarray, "*frames 2 21"]
) -> Float[np.ndarray, "*frames"]:
    """Logarithm of the mean size of the hands, however they are turned; nan where no whole palm is seen.

    The palm is flat: a picture of it, turned in space, is as long as it is in one direction and shorter in the other,
    so that the larger singular value of the map from the flat palm tells its size.
    """
    palm = points[..., PALM, :]
    to_picture = np.linalg.pinv(FLAT_PALM - FLAT_PALM.mean(0)) @ (palm - palm.mean(-2, keepdims=True))
    size = np.linalg.svd(to_picture, compute_uv=False)[..., 0]
    known = seen[..., PALM].all(-1) & (size > MIN_LENGTH)
    total = np.where(known, np.log(np.where(known, size, 1)), 0).sum(-1)
    return np.where(known.any(-1), total / known.sum(-1).clip(1), np.nan)


def _lengths(points: Points, seen: Seen) -> Float[np.ndarray, "frames bones"]:
    """Logarithm of the longest of each kind of bone in every frame; nan where none is seen."""
    result = np.full((len(points), len(BONES)), np.nan)
    for column, bone in enumerate(BONES.values()):
        for a, b in bone.pairs:
            length = np.linalg.norm(points[:, a] - points[:, b], axis=-1)
            shown = seen[:, a] & seen[:, b] & (length > MIN_LENGTH)
            result[shown, column] = np.fmax(result[shown, column], np.log(length[shown]))
    return result


def _quantile(values: Float[np.ndarray, "frames bones"], share: float) -> Float[np.ndarray, " bones"]:
    """Over the frames that show the bone; nan where none does."""
    return np.array([np.quantile(v[~np.isnan(v)], share) if (~np.isnan(v)).any() else np.nan for v in values.T])


def _smooth(values: list[float]) -> Float[np.ndarray, " frames"]:
    """Straight lines fitted to the neighborhood of each frame; nan is left out."""
    x, y = np.arange(len(values)), np.array(values)
    known = ~np.isnan(y)
    result = []
    for center in x:
        weight = np.where(known, np.exp(-0.5 * ((x - center) / NEIGHBORS) ** 2), 0) + 1e-9 * known
        mean_x, mean_y = (weight @ x / weight.sum(), weight @ np.where(known, y, 0) / weight.sum())
        spread = weight @ (x - mean_x) ** 2 + weight.sum()  # a slope is believed when frames enough say so
        slope = weight @ ((x - mean_x) * np.where(known, y - mean_y, 0)) / spread
        result.append(mean_y + slope * (center - mean_x))
    return np.array(result)


def _true_lengths(
    looks: Float[np.ndarray, " bones"], shortening: Float[np.ndarray, " bones"]
) -> tuple[float, Float[np.ndarray, " bones"]]:
    """Splits logarithms of how long bones look, against how long they should (nan: unknown), into size and builds.

    look = size + build - foreshortening, with a build that is normal (`SPREAD`) and a foreshortening that is
    exponential. Their most probable values: build = max(look - size, -SPREAD**2 / shortening), so that a bone which
    looks longer than it should is longer, one that looks a little shorter is shorter, and one that looks shorter
    still points at the camera; the size is where the builds' pulls cancel. Unknown builds are 0, an unknown size nan.
    """
    known = ~np.isnan(looks)
    if not known.any():
        return np.nan, np.zeros(len(looks))
    least = -(SPREAD**2) / shortening
    low, high = (looks + least)[known].min(), looks[known].max()
    for _ in range(50):
        size = (low + high) / 2
        pull = np.maximum(looks - size, least)[known].sum()
        low, high = (size, high) if pull > 0 else (low, size)
    return size, np.where(known, np.maximum(np.nan_to_num(looks) - size, least), 0)


@dataclasses.dataclass(frozen=True)
class _BonePairs:
    """The single bones ("pairs" of all kinds) of every frame beside the reference's.

    kind: of each bone, a row of `BONES`.
    seen: in both.
    length: in the frame, pixels.
    angle: between the two, radians.
    log_ratio: of the length in the reference to the length in the frame, at the first frame's distance.
    """

    kind: Int[np.ndarray, " pairs"]
    seen: Bool[np.ndarray, "frames pairs"]
    length: Float[np.ndarray, "frames pairs"]
    angle: Float[np.ndarray, "frames pairs"]
    log_ratio: Float[np.ndarray, "frames pairs"]


def _compare_bones(
    driven: Points, driven_seen: Seen, target: Points, target_seen: Seen, sizes: Float[np.ndarray, " frames"]
) -> _BonePairs:
    a, b = np.array([pair for bone in BONES.values() for pair in bone.pairs]).T
    kind = np.array([index for index, bone in enumerate(BONES.values()) for _ in bone.pairs])
    vectors, reference = driven[:, b] - driven[:, a], target[:, b] - target[:, a]
    length, reference_length = (np.linalg.norm(v, axis=-1) for v in (vectors, reference))
    seen = driven_seen[:, a] & driven_seen[:, b] & target_seen[:, a] & target_seen[:, b]
    seen &= (length > MIN_LENGTH) & (reference_length > MIN_LENGTH)
    cross = vectors[..., 0] * reference[..., 1] - vectors[..., 1] * reference[..., 0]
    angle = np.arctan2(np.abs(cross), (vectors * reference).sum(-1))
    ratio = np.log(np.where(seen, reference_length, 1) / np.where(seen, length, 1)) + sizes[:, None]
    return _BonePairs(kind, seen, length, angle, ratio)


def _pose_similarity(pairs: _BonePairs) -> tuple[Float[np.ndarray, " frames"], Float[np.ndarray, " frames"]]:
    """How far each frame holds the reference's pose, 0..1; and its weight among the frames that are most like it."""
    body = pairs.seen & ~np.isin(pairs.kind, [list(BONES).index(name) for name in HEAD])
    weight = body * pairs.length  # the direction of a bone that points at the camera says little
    middle = (weight * pairs.log_ratio).sum(1) / weight.sum(1).clip(1e-9)
    # Foreshortened here but not there.
    uneven = np.maximum(np.abs(pairs.log_ratio - middle[:, None]) - 2 * SPREAD, 0)
    error = (weight * (pairs.angle**2 + uneven**2)).sum(1) / weight.sum(1).clip(1e-9)
    enough = body.sum(1) >= 6
    trust = np.exp(-error / (2 * SAME_DIRECTION**2)) * enough
    # Frames that show too little of a person are like nothing; their error is 0.
    worse = np.where(enough, error - error[enough].min(initial=np.inf), np.inf)
    return trust, np.exp(-worse / (2 * CLOSEST_DIRECTION**2))


def _ratios_in_same_pose(
    pairs: _BonePairs,
    likeness: Float[np.ndarray, " frames"],
    sizes: Float[np.ndarray, " frames"],
    true: Float[np.ndarray, " bones"],
) -> tuple[Float[np.ndarray, " bones"], Float[np.ndarray, " bones"]]:
    """What the frames most like the reference say: a logarithmic ratio for every kind of bone, and how surely those
    frames measure it (0..1: 0 where it points at the camera)."""
    weight = likeness[:, None] * pairs.seen * pairs.length
    shown = pairs.length / np.exp(true[pairs.kind] + sizes[:, None])  # 1: sideways, 0: pointing at the camera
    total, ratio, shown = (
        np.array([values[:, pairs.kind == kind].sum() for kind in range(len(BONES))])
        for values in (weight, weight * pairs.log_ratio, weight * shown)
    )
    return ratio / total.clip(1e-9), np.clip(shown / total.clip(1e-9) / SIDEWAYS, 0, 1)
