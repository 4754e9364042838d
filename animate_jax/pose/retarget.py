"""Carries a driving motion over to the reference's body: its proportions, its size and its place.

A bone of the result is a bone of the driving frame times one ratio per kind of bone (thigh, forearm, ...), the tree
put together anew from the hips outwards. That is exact for two bodies that hold the same joint angles before the
same far camera. What is hard is to know the ratios from one picture of the reference:

- Over the clip a bone's length is a high quantile, left and right together, for foreshortening only shortens.
- The reference shows each bone once. By how much it may be foreshortened says a prior: `_true_ratios`.
- Where the reference holds a pose of the clip, its bones are as foreshortened as those: `_same_pose`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from animate_jax.pose.align import SEEN, SHORTEST, Canvas, align_global, align_musepose, align_none, pixels
from animate_jax.pose.keypoints import Keypoints

Alignment = Literal["none", "global", "musepose", "bones"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)

NOSE, NECK, HIPS = 0, 1, 18  # the middle of the hips is put after the 18 body points
ANKLES, WRISTS = [10, 13], [7, 4]  # wrists of the left and the right hand


@dataclasses.dataclass(frozen=True)
class _Bone:
    """One kind of bone.

    length: of an adult, in statures (Drillis and Contini 1966; Winter, "Biomechanics", table 4.1).
    shortening: how much a picture of somebody shortens it, on average, as a logarithm.
    """

    pairs: tuple[tuple[int, int], ...]
    length: float
    shortening: float


BONES = {
    "spine": _Bone(((HIPS, NECK),), 0.288, 0.04),
    "shoulders": _Bone(((2, 5),), 0.22, 0.2),
    "hips": _Bone(((8, 11),), 0.11, 0.2),
    "upper arm": _Bone(((2, 3), (5, 6)), 0.186, 0.1),
    "forearm": _Bone(((3, 4), (6, 7)), 0.146, 0.2),
    "thigh": _Bone(((8, 9), (11, 12)), 0.245, 0.06),
    "shin": _Bone(((9, 10), (12, 13)), 0.246, 0.06),
    "neck": _Bone(((NOSE, NECK),), 0.12, 0.1),
    "eyes": _Bone(((14, 15),), 0.037, 0.2),
    "ears": _Bone(((16, 17),), 0.085, 0.2),
    "temples": _Bone(((14, 16), (15, 17)), 0.05, 0.4),
}
HEAD = "eyes", "ears", "temples"
SPREAD = 0.07  # of bone lengths between people of one stature, as a logarithm
CLIP_SHORTENING = 0.05  # of the longest that a whole clip shows
LONGEST = 0.95  # quantile over frames
SAME_DIRECTION = np.radians(7)  # how far bones of two people in one pose differ, root mean square
CLOSEST_DIRECTION = np.radians(1)  # how much worse than the best another frame may fit
TREE = (
    (2, NECK, "shoulders"), (5, NECK, "shoulders"), (8, HIPS, "hips"), (11, HIPS, "hips"),
    (3, 2, "upper arm"), (6, 5, "upper arm"), (4, 3, "forearm"), (7, 6, "forearm"),
    (9, 8, "thigh"), (12, 11, "thigh"), (10, 9, "shin"), (13, 12, "shin"),
    (NOSE, NECK, "neck"), (14, NOSE, "head"), (15, NOSE, "head"), (16, 14, "head"), (17, 15, "head"),
)  # fmt: skip

DISAGREEMENT = 0.3  # of the two ways to know a ratio, at most, as a logarithm
SIDEWAYS = 0.5  # share of its length from which a bone is surely measured
PROPORTIONS = np.log([bone.length for bone in BONES.values()])
SHORTENING = np.array([bone.shortening for bone in BONES.values()])
SAME_DISTANCE = 0.05  # of sizes, as a logarithm
ON_FLOOR = 0.5  # quantile over frames at one distance
NEIGHBOURS = 3  # standard deviation, in frames, of the neighbourhood that tells how near a person is

Points = Float[np.ndarray, "_ 19 2"]  # one reference, or the frames of a clip
Seen = Bool[np.ndarray, "_ 19"]


@dataclasses.dataclass(frozen=True)
class _Ratios:
    """Lengths in the reference / lengths in the clip's first frame.

    bones: by kind of bone, and of "leg" and "head".
    sizes: of the person in each frame by distance from the camera, logarithms, 0 in the first frame.
    trust: how far each frame holds the reference's pose, 0..1.
    """

    bones: dict[str, float]
    sizes: Float[np.ndarray, " frames"]
    trust: Float[np.ndarray, " frames"]


def bring(
    driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas, alignment: Alignment = "bones"
) -> Keypoints:
    """Puts a driving motion into the reference's picture.

    Args:
        driving: [F] frames, in units of `driving_canvas` (height, width).
        reference: one frame (no leading axis), in units of `canvas`.
        canvas: the picture to be made.
        alignment: "bones": `retarget`; "global", "musepose": what MimicMotion and MusePose do; "none": not at all.

    Returns:
        [F] keypoints in units of `canvas`; every number is finite, whatever the inputs hold.
    """
    functions = {"none": align_none, "global": align_global, "musepose": align_musepose, "bones": retarget}
    return functions[alignment](driving.bounded(), driving_canvas, reference.bounded(), canvas)


def retarget(driving: Keypoints, driving_canvas: Canvas, reference: Keypoints, canvas: Canvas) -> Keypoints:
    """The driving motion with the reference's bones; arguments as `bring`. Confidences stay what they were.

    The first frame stands where the reference stands, feet on its ground; ways are scaled with the legs. With no
    bone in common the motion is fitted into the canvas as it is.
    """
    driven, driven_seen = _points(pixels(driving, driving_canvas), driving.body_confidence > SEEN)
    target, target_seen = _points(pixels(reference, canvas)[None], reference.body_confidence[None] > SEEN)
    found = _ratios(driven, driven_seen, target, target_seen)
    root = HIPS if driven_seen[:, HIPS].mean() > 0.5 * driven_seen[:, NECK].mean() else NECK
    if found is None or not driven_seen[:, root].any():
        return align_none(driving, driving_canvas, reference, canvas)

    ratios = found.bones
    spine = (NECK, HIPS, "spine") if root == HIPS else (HIPS, NECK, "spine")
    before = _filled(driven, driven_seen, root, (spine, *TREE))
    after = before * ratios["leg"]
    for child, parent, bone in (spine, *TREE):
        after[:, child] = after[:, parent] + ratios[bone] * (before[:, child] - before[:, parent])
    feet = driven_seen[:, ANKLES].any(), target_seen[0, ANKLES].any()
    if all(feet):  # unequal ratios of thigh and shin would lift the feet, or sink them
        after[..., 1] += (_lowest(before) * ratios["leg"] - _lowest(after))[:, None]

    anchor = next(p for p in (HIPS, NECK, *range(18)) if target_seen[0, p] and driven_seen[:, p].any())
    first = int(np.argmax(driven_seen[:, anchor]))
    shift = target[0, anchor] - after[first, anchor]
    if all(feet):
        # The floor is where the feet are most of the time, unless the reference is in the air just so.
        heights = _lowest(after)
        near = np.abs(found.sizes - found.sizes[first]) < SAME_DISTANCE
        floor = np.quantile(heights[near], ON_FLOOR)
        floor += found.trust[first] * (heights[first] - floor)
        shift[1] = _lowest(target, target_seen)[0] - floor
    after = after + shift

    own_size, size = np.array(driving_canvas[::-1]), np.array(canvas[::-1])
    place = lambda points: (points / size).astype(np.float32)  # noqa: E731
    hands = after[:, WRISTS, None] + ratios["forearm"] * (driving.hands * own_size - before[:, WRISTS, None])
    face = after[:, [NOSE]] + ratios["head"] * (driving.face * own_size - before[:, [NOSE]])
    return dataclasses.replace(driving, body=place(after[:, :18]), hands=place(hands), face=place(face))


def _points(body: Float[np.ndarray, "frames 18 2"], seen: Bool[np.ndarray, "frames 18"]) -> tuple[Points, Seen]:
    hips = [8, 11]
    return (
        np.concatenate([body, body[:, hips].mean(1, keepdims=True)], 1).astype(np.float64),
        np.concatenate([seen, seen[:, hips].all(1, keepdims=True)], 1),
    )


def _ratios(driven: Points, driven_seen: Seen, target: Points, target_seen: Seen) -> _Ratios | None:
    """None when the two show no bone in common."""
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
    trust, share, matching = _same_pose(driven, driven_seen, target, target_seen, sizes, true)
    matching = logs + np.clip(matching - logs, -DISAGREEMENT, DISAGREEMENT)
    logs = share * matching + (1 - share) * logs
    bones = dict(zip(BONES, np.exp(logs), strict=True))
    thigh, shin = (np.exp(true[list(BONES).index(name)]) for name in ("thigh", "shin"))
    bones["head"] = np.median([bones[name] for name in HEAD])
    bones["leg"] = (bones["thigh"] * thigh + bones["shin"] * shin) / (thigh + shin)
    return _Ratios({name: float(ratio) for name, ratio in bones.items()}, sizes, trust)


def _lengths(points: Points, seen: Seen) -> Float[np.ndarray, "frames bones"]:
    """Logarithm of the longest of each kind of bone in every frame; nan where none is seen."""
    result = np.full((len(points), len(BONES)), np.nan)
    for column, bone in enumerate(BONES.values()):
        for a, b in bone.pairs:
            length = np.linalg.norm(points[:, a] - points[:, b], axis=-1)
            shown = seen[:, a] & seen[:, b] & (length > SHORTEST)
            result[shown, column] = np.fmax(result[shown, column], np.log(length[shown]))
    return result


def _quantile(values: Float[np.ndarray, "frames bones"], share: float) -> Float[np.ndarray, " bones"]:
    """Over the frames that show the bone; nan where none does."""
    return np.array([np.quantile(v[~np.isnan(v)], share) if (~np.isnan(v)).any() else np.nan for v in values.T])


def _smooth(values: list[float]) -> Float[np.ndarray, " frames"]:
    """Straight lines fitted to the neighbourhood of each frame; nan is left out."""
    x, y = np.arange(len(values)), np.array(values)
    known = ~np.isnan(y)
    result = []
    for center in x:
        weight = np.where(known, np.exp(-0.5 * ((x - center) / NEIGHBOURS) ** 2), 0) + 1e-9 * known
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


def _same_pose(
    driven: Points, driven_seen: Seen, target: Points, target_seen: Seen,
    sizes: Float[np.ndarray, " frames"], true: Float[np.ndarray, " bones"],
) -> tuple[Float[np.ndarray, " frames"], Float[np.ndarray, " bones"], Float[np.ndarray, " bones"]]:  # fmt: skip
    """How far each frame holds the reference's pose, how far to trust it for a bone (0..1), and what it says.

    That is a logarithmic ratio for every bone, from the frames most like the reference.
    """
    a, b = np.array([pair for bone in BONES.values() for pair in bone.pairs]).T
    kinds = np.array([index for index, bone in enumerate(BONES.values()) for _ in bone.pairs])
    vectors, reference = driven[:, b] - driven[:, a], target[:, b] - target[:, a]
    length, own_length = (np.linalg.norm(v, axis=-1) for v in (vectors, reference))
    seen = driven_seen[:, a] & driven_seen[:, b] & target_seen[:, a] & target_seen[:, b]
    seen &= (length > SHORTEST) & (own_length > SHORTEST)
    cross = vectors[..., 0] * reference[..., 1] - vectors[..., 1] * reference[..., 0]
    angle = np.arctan2(np.abs(cross), (vectors * reference).sum(-1))
    body = seen & ~np.isin(kinds, [list(BONES).index(name) for name in HEAD])
    weight = body * length  # the direction of a bone that points at the camera says little
    ratio = np.log(np.where(seen, own_length, 1) / np.where(seen, length, 1)) + sizes[:, None]
    middle = (weight * ratio).sum(1) / weight.sum(1).clip(1e-9)
    uneven = np.maximum(np.abs(ratio - middle[:, None]) - 2 * SPREAD, 0)  # foreshortened here but not there
    error = (weight * (angle**2 + uneven**2)).sum(1) / weight.sum(1).clip(1e-9)
    enough = body.sum(1) >= 6
    trust = np.exp(-error / (2 * SAME_DIRECTION**2)) * enough
    # Frames that show too little of a person are like nothing; their error is 0.
    worse = np.where(enough, error - error[enough].min(initial=np.inf), np.inf)
    likeness = np.exp(-worse / (2 * CLOSEST_DIRECTION**2))
    weight = likeness[:, None] * seen * length
    shown = length / np.exp(true[kinds] + sizes[:, None])  # 1: sideways, 0: pointing at the camera
    total, ratio, shown = (
        np.array([values[:, kinds == kind].sum() for kind in range(len(BONES))])
        for values in (weight, weight * ratio, weight * shown)
    )
    share = trust.max(initial=0) * np.clip(shown / total.clip(1e-9) / SIDEWAYS, 0, 1)
    return trust, share, ratio / total.clip(1e-9)


def _filled(points: Points, seen: Seen, root: int, tree) -> Points:
    """Puts points that are not seen where their bone was in the frames around; never seen ones at their parent."""
    frames = np.arange(len(points))
    filled = points.copy()

    def between(values: Float[np.ndarray, "frames 2"], known: Bool[np.ndarray, " frames"]) -> Float[np.ndarray, "f 2"]:
        if not known.any():
            return np.zeros_like(values)
        return np.stack([np.interp(frames, frames[known], values[known, axis]) for axis in range(2)], -1)

    filled[:, root] = between(points[:, root], seen[:, root])
    for child, parent, _ in tree:
        vector = points[:, child] - filled[:, parent]
        filled[:, child] = filled[:, parent] + between(vector, seen[:, child])
    return filled


def _lowest(points: Points, seen: Seen | None = None) -> Float[np.ndarray, " frames"]:
    """Height in the picture of the foot that stands, changing smoothly from one foot to the other."""
    y = points[:, ANKLES, 1]
    if seen is not None:
        y = np.where(seen[:, ANKLES], y, -np.inf)
    softness = 0.1 * np.linalg.norm(points[:, NECK] - points[:, HIPS], axis=-1).clip(1e-6)[:, None]
    share = np.exp((y - y.max(1, keepdims=True)) / softness)
    return (share * np.where(np.isinf(y), 0, y)).sum(1) / share.sum(1)
