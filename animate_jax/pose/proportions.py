"""Estimates the ratios of the reference person's bone lengths to those of the person in the driving clip.

The difficulty is that there is only one image of the reference:

- In the clip, a bone's length is a high quantile over frames, of left and right together, as foreshortening only
  shortens.
- The reference image shows each bone once; a prior says how much it may be foreshortened: `_true_lengths`.
- Where the reference has the pose of a frame of the clip, its bones are foreshortened alike: `_pose_similarity`,
  `_ratios_in_same_pose`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from animate_jax.pose.keypoints import MIN_LENGTH

NOSE, NECK, HIPS = 0, 1, 18  # the midpoint of the hips is appended to the 18 body points


@dataclasses.dataclass(frozen=True)
class Bone:
    """One kind of bone.

    length: of an adult, in body heights (Drillis and Contini 1966; Winter, "Biomechanics", table 4.1).
    foreshortening: mean over images, as a logarithm.
    """

    pairs: tuple[tuple[int, int], ...]
    length: float
    foreshortening: float


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
BONE_LENGTH_STD = 0.07  # standard deviation between people of one height, as a logarithm
MAX_PULL = 0.3  # of a bone of the reference on its size: drawn figures have bones of any length
TELLING = 4  # bones of the body, from which on those of the head, large in drawings, do not tell the size
LARGE_HEAD = 0.4  # as a logarithm, from which a figure is taken for a drawn one
STRAIGHT, EVEN = 0.95, 0.1  # from which two limbs are not foreshortened: straightness, difference as a logarithm
USUAL = 0.2  # and how far the ratio of the two lengths may be from an adult's, as a logarithm
UNFORESHORTENED = 0.01  # mean foreshortening of such bones, as a logarithm
CLIP_FORESHORTENING = 0.05  # mean of the longest appearance in a clip, as a logarithm
LENGTH_QUANTILE = 0.95  # quantile over frames
SAME_POSE_ANGLE = np.radians(7)  # root mean square difference of bone directions of two people in one pose
BEST_POSE_ANGLE = np.radians(1)  # scale of the error above the best frame's at which a frame loses its weight

# Wrist and first joint of every finger of a flat hand, across and along it, up to scale: mean of 40 MakeHuman bodies.
PALM = [0, 1, 5, 9, 13, 17]
FLAT_PALM = np.array([(0.01, -0.65), (0.23, -0.30), (0.25, 0.29), (0.01, 0.28), (-0.17, 0.23), (-0.33, 0.15)])

MAX_CORRECTION = 0.3  # of a ratio by frames of the same pose, at most, as a logarithm
MEASURED_SHARE = 0.5  # of its length that is visible, from which a bone counts fully
PROPORTIONS = np.log([bone.length for bone in BONES.values()])
FORESHORTENING = np.array([bone.foreshortening for bone in BONES.values()])
SMOOTHING_STD = 3  # frames, of the window in which a person's size is smoothed

Points = Float[np.ndarray, "_ 19 2"]  # one reference, or the frames of a clip
Seen = Bool[np.ndarray, "_ 19"]


@dataclasses.dataclass(frozen=True)
class Proportions:
    """Lengths in the reference / lengths in the clip's first frame.

    bones: by kind of bone, and of "leg" and "head".
    sizes: logarithm of the person's size in each frame, which depends on the distance from the camera; 0 in the first.
    similarity: similarity of each frame's pose to the reference's, 0..1.
    """

    bones: dict[str, float]
    sizes: Float[np.ndarray, " frames"]
    similarity: Float[np.ndarray, " frames"]


def estimate_proportions(driven: Points, driven_seen: Seen, target: Points, target_seen: Seen) -> Proportions | None:
    """Ratios of the reference person's bones to those of the person in the clip; None without a visible bone in common.

    Args:
        driven, driven_seen: the clip's points in pixels, and which are visible.
        target, target_seen: the reference's.
    """
    lengths, target_lengths = _lengths(driven, driven_seen), _lengths(target, target_seen)[0]
    if not (~np.isnan(lengths).all(0) & ~np.isnan(target_lengths)).any():
        return None
    # The distance from the camera changes: lengths are reduced to the first frame's distance.
    sizes, true = np.zeros(len(driven)), PROPORTIONS
    for _ in range(3):
        longest = _quantile(lengths - sizes[:, None], LENGTH_QUANTILE)
        # A bone that always points towards the camera is longer than in any frame.
        size, build = _true_lengths(longest - PROPORTIONS, np.full(len(BONES), CLIP_FORESHORTENING))
        true = size + build + PROPORTIONS
        sizes = _smooth([_true_lengths(frame - true, FORESHORTENING)[0] for frame in lengths])

    # Both sizes are estimated from single frames by the same rule, so that its errors cancel on average.
    first = np.flatnonzero(~np.isnan(lengths).all(1))[0]
    apparent = target_lengths - true
    drawn = _has_large_head(apparent)
    foreshortening = _foreshortening(target[0], target_seen[0]) if drawn else FORESHORTENING
    size, build = _true_lengths(apparent, foreshortening, person=not drawn)
    logs = size + build - sizes[first]
    sizes = sizes - sizes[first]
    pairs = _compare_bones(driven, driven_seen, target, target_seen, sizes)
    similarity, weights = _pose_similarity(pairs)
    matching, measured = _ratios_in_same_pose(pairs, weights, sizes, true)
    share = similarity.max(initial=0) * measured
    matching = logs + np.clip(matching - logs, -MAX_CORRECTION, MAX_CORRECTION)
    logs = share * matching + (1 - share) * logs
    bones = dict(zip(BONES, np.exp(logs), strict=True))
    thigh, shin = (np.exp(true[list(BONES).index(name)]) for name in ("thigh", "shin"))
    bones["head"] = np.median([bones[name] for name in HEAD])
    bones["leg"] = (bones["thigh"] * thigh + bones["shin"] * shin) / (thigh + shin)
    return Proportions({name: float(ratio) for name, ratio in bones.items()}, sizes, similarity)


def estimate_hand_ratio(
    proportions: Proportions,
    driven: Float[np.ndarray, "frames 2 21 2"],
    driven_seen: Bool[np.ndarray, "frames 2 21"],
    target: Float[np.ndarray, "2 21 2"],
    target_seen: Bool[np.ndarray, "2 21"],
) -> float:
    """Ratio of the reference person's hands to those of the person in the clip: the mean of estimates from hands and
    from forearms.

    Either alone is off by a few percent: hands are measured in one image, and not all are proportional to the arm. If
    one of the two people shows no hands, only the forearms are used.
    """
    forearm = np.log(proportions.bones["forearm"])
    sizes, target_size = _hand_sizes(driven, driven_seen) - proportions.sizes, _hand_sizes(target, target_seen)
    if np.isnan(sizes).all() or np.isnan(target_size):
        return float(np.exp(forearm))
    measured = target_size - np.nanmedian(sizes)
    return float(np.exp(forearm + np.clip(measured - forearm, -2 * MAX_CORRECTION, 2 * MAX_CORRECTION) / 2))


def _hand_sizes(
    points: Float[np.ndarray, "*frames 2 21 2"], seen: Bool[np.ndarray, "*frames 2 21"]
) -> Float[np.ndarray, "*frames"]:
    """Logarithm of the mean size of the hands, in any orientation; nan where no whole palm is visible.

    The palm is flat: the image of a rotated palm keeps its length in one direction and is foreshortened in the other,
    so that the larger singular value of the map from the flat palm is its size.
    """
    palm = points[..., PALM, :]
    to_image = np.linalg.pinv(FLAT_PALM - FLAT_PALM.mean(0)) @ (palm - palm.mean(-2, keepdims=True))
    size = np.linalg.svd(to_image, compute_uv=False)[..., 0]
    known = seen[..., PALM].all(-1) & (size > MIN_LENGTH)
    total = np.where(known, np.log(np.where(known, size, 1)), 0).sum(-1)
    return np.where(known.any(-1), total / known.sum(-1).clip(1), np.nan)


def _lengths(points: Points, seen: Seen) -> Float[np.ndarray, "frames bones"]:
    """Logarithm of the length of each kind of bone in every frame, the longer of left and right; nan if not visible."""
    result = np.full((len(points), len(BONES)), np.nan)
    for column, bone in enumerate(BONES.values()):
        for a, b in bone.pairs:
            length = np.linalg.norm(points[:, a] - points[:, b], axis=-1)
            shown = seen[:, a] & seen[:, b] & (length > MIN_LENGTH)
            result[shown, column] = np.fmax(result[shown, column], np.log(length[shown]))
    return result


def _quantile(values: Float[np.ndarray, "frames bones"], share: float) -> Float[np.ndarray, " bones"]:
    """Over the frames that show the bone; nan if none does."""
    return np.array([np.quantile(v[~np.isnan(v)], share) if (~np.isnan(v)).any() else np.nan for v in values.T])


def _smooth(values: list[float]) -> Float[np.ndarray, " frames"]:
    """Local linear regression over frames with a Gaussian window; nan is left out."""
    x, y = np.arange(len(values)), np.array(values)
    known = ~np.isnan(y)
    result = []
    for center in x:
        weight = np.where(known, np.exp(-0.5 * ((x - center) / SMOOTHING_STD) ** 2), 0) + 1e-9 * known
        mean_x, mean_y = (weight @ x / weight.sum(), weight @ np.where(known, y, 0) / weight.sum())
        spread = weight @ (x - mean_x) ** 2 + weight.sum()  # regularizes the slope where few frames support it
        slope = weight @ ((x - mean_x) * np.where(known, y - mean_y, 0)) / spread
        result.append(mean_y + slope * (center - mean_x))
    return np.array(result)


def _true_lengths(
    apparent: Float[np.ndarray, " bones"], foreshortening: Float[np.ndarray, " bones"], person: bool = True
) -> tuple[float, Float[np.ndarray, " bones"]]:
    """Splits logarithms of apparent lengths / expected lengths (nan: unknown) into the person's size and builds.

    apparent = size + build - foreshortening, where the build, a bone's deviation from the expected proportions, is
    normally distributed (`BONE_LENGTH_STD`), and the foreshortening exponentially, with the given mean. The maximum a
    posteriori estimate is build = max(apparent - size, -BONE_LENGTH_STD**2 / foreshortening): a bone that appears
    longer than expected is longer, one that appears slightly shorter is shorter, and one that appears much shorter is
    foreshortened. The size is where the builds sum to zero. Unknown builds are 0, an unknown size is nan.

    Args:
        person: otherwise it may be a drawn figure: no bone counts for more than `MAX_PULL`, and the head does not count
            beside `TELLING` other bones.
    """
    known = telling = ~np.isnan(apparent)
    if not known.any():
        return np.nan, np.zeros(len(apparent))
    least, most = -(BONE_LENGTH_STD**2) / foreshortening, np.inf
    lowest = least
    if not person:
        lowest, most = np.maximum(least, -MAX_PULL), MAX_PULL
        body = known & ~np.isin(list(BONES), ("neck", *HEAD))
        telling = body if body.sum() >= TELLING else known
    low, high = (apparent + least)[telling].min(), apparent[telling].max()
    for _ in range(50):
        size = (low + high) / 2
        pull = np.clip(apparent - size, lowest, most)[telling].sum()
        low, high = (size, high) if pull > 0 else (low, size)
    return size, np.where(known, np.maximum(np.nan_to_num(apparent) - size, least), 0)


def _has_large_head(apparent: Float[np.ndarray, " bones"]) -> bool:
    """Whether the head is as large, beside the body, as in drawings; arguments as in `_true_lengths`."""
    head = np.isin(list(BONES), ("neck", *HEAD)) & ~np.isnan(apparent)
    body = ~head & ~np.isnan(apparent)
    if not head.any() or body.sum() < TELLING:
        return False
    size, _ = _true_lengths(np.where(body, apparent, np.nan), FORESHORTENING)
    return bool(np.median(apparent[head]) - size > LARGE_HEAD)


def _foreshortening(points: Float[np.ndarray, "19 2"], seen: Bool[np.ndarray, " 19"]) -> Float[np.ndarray, " bones"]:
    """Mean foreshortening of each kind of bone in one picture, as a logarithm: arms or legs that are straight and
    equally long on both sides do not point at the camera."""
    result = FORESHORTENING.copy()
    for names in (("upper arm", "forearm"), ("thigh", "shin")):
        upper, lower = (np.array(BONES[name].pairs) for name in names)
        if not (seen[upper].all() and seen[lower].all()):
            continue
        lengths = np.linalg.norm([points[pairs[:, 1]] - points[pairs[:, 0]] for pairs in (upper, lower)], axis=-1)
        whole = np.linalg.norm(points[lower[:, 1]] - points[upper[:, 0]], axis=-1)
        if lengths.min() < MIN_LENGTH:
            continue
        even = np.abs(np.log(lengths[:, 0] / lengths[:, 1])).max() < EVEN
        usual = BONES[names[0]].length / BONES[names[1]].length
        even &= np.abs(np.log(lengths[0] / lengths[1] / usual)).max() < USUAL
        if even and (whole > STRAIGHT * lengths.sum(0)).all():
            result[[list(BONES).index(name) for name in names]] = UNFORESHORTENED
    return result


@dataclasses.dataclass(frozen=True)
class _BonePairs:
    """Every single bone (left and right are two) in every frame, compared with the reference's.

    kind: of each bone, a row of `BONES`.
    seen: whether it is visible in both.
    length: in the frame, pixels.
    angle: between the two, in radians.
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
    """Similarity of each frame's pose to the reference's, 0..1; and the frame's weight among the most similar ones."""
    body = pairs.seen & ~np.isin(pairs.kind, [list(BONES).index(name) for name in HEAD])
    weight = body * pairs.length  # the direction of a strongly foreshortened bone is unreliable
    middle = (weight * pairs.log_ratio).sum(1) / weight.sum(1).clip(1e-9)
    # Bones that are foreshortened in one of the two only.
    uneven = np.maximum(np.abs(pairs.log_ratio - middle[:, None]) - 2 * BONE_LENGTH_STD, 0)
    error = (weight * (pairs.angle**2 + uneven**2)).sum(1) / weight.sum(1).clip(1e-9)
    enough = body.sum(1) >= 6
    similarity = np.exp(-error / (2 * SAME_POSE_ANGLE**2)) * enough
    # Frames that show too few bones have an error of 0, and get no weight.
    worse = np.where(enough, error - error[enough].min(initial=np.inf), np.inf)
    return similarity, np.exp(-worse / (2 * BEST_POSE_ANGLE**2))


def _ratios_in_same_pose(
    pairs: _BonePairs,
    weights: Float[np.ndarray, " frames"],
    sizes: Float[np.ndarray, " frames"],
    true: Float[np.ndarray, " bones"],
) -> tuple[Float[np.ndarray, " bones"], Float[np.ndarray, " bones"]]:
    """The logarithmic ratio of every kind of bone, measured in the frames most similar to the reference; and the
    reliability of each, 0..1 (0: it points at the camera)."""
    weight = weights[:, None] * pairs.seen * pairs.length
    shown = pairs.length / np.exp(true[pairs.kind] + sizes[:, None])  # 1: sideways, 0: pointing at the camera
    total, ratio, shown = (
        np.array([values[:, pairs.kind == kind].sum() for kind in range(len(BONES))])
        for values in (weight, weight * pairs.log_ratio, weight * shown)
    )
    return ratio / total.clip(1e-9), np.clip(shown / total.clip(1e-9) / MEASURED_SHARE, 0, 1)
