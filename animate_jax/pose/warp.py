"""Warps the reference image into a driving pose: ten body parts, each with its own affine map.

Torso: least squares over shoulders, hips and neck, regularized towards a similarity. Head: the similarity of the points
visible in both images. Eight limbs: scaled along the bone by its length, across it by the person's size. A pixel
belongs to the part in whose capsule it lies deepest; around a joint the maps of its two parts blend, so that it bends.
Similar to Siarohin et al. 2018 (deformable skip connections) and Liu et al. 2019 (Liquid Warping GAN), without learned
parts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int8, UInt8

from animate_jax.pose.inpaint import Mask, Picture, without_person
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.size import HIPS, NECK, person_size, person_sizes

SHOULDERS = [2, 5]  # right and left
TORSO_POINTS = [NECK, *SHOULDERS, *HIPS]
HEAD_POINTS, FACE_POINTS = [0, NECK, 14, 15, 16, 17], [0, 14, 15, 16, 17]
TORSO, HEAD, LIMBS, NUM_PARTS = 0, 1, slice(2, 10), 10  # numbers of the parts, and how many there are
WHOLE_LIMB = np.array([0, 1, 2, 2, 3, 3, 4, 4, 5, 5])  # of each part: the two halves of a limb belong together
# A limb: joints, radius in sizes of the person, and its extension beyond them (hands, feet) in lengths of the limb.
LIMB_PARTS = (
    (2, 3, 0.17, 0.0, 0.05), (3, 4, 0.15, 0.05, 0.45), (5, 6, 0.17, 0.0, 0.05), (6, 7, 0.15, 0.05, 0.45),
    (8, 9, 0.24, 0.1, 0.05), (9, 10, 0.19, 0.05, 0.25), (11, 12, 0.24, 0.1, 0.05), (12, 13, 0.19, 0.05, 0.25),
)  # fmt: skip
STARTS, ENDS = (np.array([limb[i] for limb in LIMB_PARTS]) for i in range(2))
TORSO_RADIUS, HEAD_RADIUS = 0.22, 0.36
TORSO_STIFFNESS = 0.5  # weight of the similarity in the torso's affine map, in sizes
ARM_IN_FRONT_DEPTH = 0.5  # largest depth of the torso when the person faces the camera: arms lie in front of it
# Where two parts blend: both, their joint, and the distance from it, in sizes, within which they do so fully.
JOINTS = (
    (TORSO, HEAD, NECK, 0.2), (TORSO, 2, 2, 0.2), (TORSO, 4, 5, 0.2), (TORSO, 6, 8, 0.3), (TORSO, 8, 11, 0.3),
    (2, 3, 3, 0.2), (4, 5, 6, 0.2), (6, 7, 9, 0.25), (8, 9, 12, 0.25),
)  # fmt: skip
BENDING = 0.2  # depths by which one of them lies deeper where its map alone counts
BEYOND = 2.0  # score of a pixel that is far from a part: more than at its edge, 1
LEAST_SHRUNK = 1 / 3  # the mean of two maps far apart would shrink what is between them; from here on it does
CONTINUED = 1.0  # lengths of a part by which it goes on straight where the one beyond it cannot be warped
CORE_DEPTH = 0.5  # depth in a limb from which the reference certainly shows it
SHARED = 0.3  # sizes around a joint in which both of its limbs may be shown by the other's pixels
CAPSULE_DEPTH = 0.38  # depth from which a pixel is in the mask made of capsules


@dataclasses.dataclass(frozen=True)
class WarpField:
    """The source position of each pixel of the driven frames.

    source: x, y in pixels of the reference (the first pixel's center is 0.5); undefined where there is no part.
    part: 0 torso, 1 head, 2..9 limbs (right and left arm, right and left leg, upper part first), -1 none.
    depth: 1 on a part's bone, falling to 0 at its edge.
    """

    source: Float[np.ndarray, "frames height width 2"]
    part: Int8[np.ndarray, "frames height width"]
    depth: Float[np.ndarray, "frames height width"]


@dataclasses.dataclass(frozen=True)
class LazyWarpedImages:
    """A reference image in other poses, warped on access: `warped[frames]` with a slice or an index array.

    Attributes:
        picture, mask: the reference image and its person's mask.
        background: the image without the person, see `inpaint.without_person`.
        reference: the person's keypoints, one frame (no leading axis).
        driven: [F] frames, fitted to the reference; frames without keypoints show only the background.
        without: numbers of parts that are left out.
        reach: in image heights. A pixel whose source lies farther than this from its own limb in the reference, as
            where an arm covers the torso, shows something else: `warped[frames]` leaves it out. None keeps it, as
            models are trained.
    """

    picture: Picture
    mask: Mask
    background: Picture
    reference: Keypoints
    driven: Keypoints
    without: tuple[int, ...] = ()
    reach: float | None = None

    def __len__(self) -> int:
        return len(self.driven)

    def select(self, frames) -> LazyWarpedImages:
        """Only those frames."""
        return dataclasses.replace(self, driven=self.driven[frames])

    def __getitem__(
        self, frames
    ) -> tuple[UInt8[np.ndarray, "f height width 3"], UInt8[np.ndarray, "f height width 2"]]:
        """The person warped into those frames, over the background; and two masks: the share of each pixel that comes
        from the person, and the warp's reliability (255: on a bone; 0: where the reference shows another part, or the
        torso or head from the other side)."""
        pictures, masks = self._warp(frames, complete=False)
        return pictures, masks[..., :2]

    def complete(self, frames) -> tuple[UInt8[np.ndarray, "f height width 3"], UInt8[np.ndarray, "f height width 3"]]:
        """As `warped[frames]`, but nothing is left out, and a third mask says what would be (0; 255: within `reach`, or
        nobody there)."""
        return self._warp(frames, complete=True)

    def _warp(self, frames, complete: bool):
        driven = self.driven[frames]
        height, width = self.mask.shape
        found = warp_field(self.reference, driven, height, width, self.without)
        turned = _facing_sign(self.reference[None]) * _facing_sign(driven) < 0
        pictures = np.repeat(self.background[None], len(driven), 0)
        masks = np.zeros((*pictures.shape[:3], 3), np.uint8)
        masks[..., 2] = 255
        for f, (source, part, depth) in enumerate(zip(found.source, found.part, found.depth, strict=True)):
            if not (inside := part >= 0).any():
                continue
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            inside, part = inside[box], part[box]
            x, y = np.ascontiguousarray(np.moveaxis(source[box], -1, 0) - np.float32(0.5))
            color = cv2.remap(self.picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            share = cv2.remap(self.mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) * inside
            if self.reach is not None:
                near = cv2.remap(self._near_limbs, x, y, cv2.INTER_NEAREST) >> WHOLE_LIMB[part] & 1
                own = cv2.GaussianBlur(np.where(inside, near, 1).astype(np.float32), (0, 0), self._reach_pixels / 4)
                masks[f][box][..., 2] = 255 * own
                if not complete:
                    share = (own * share).astype(np.uint8)
            same = cv2.remap(self._reference_part, x, y, cv2.INTER_NEAREST) == part + 1
            right = same & ~(turned[f] & (part <= HEAD))
            masks[f][box][..., :2] = np.stack([share, (255 * depth[box] * right * (share > 0)).astype(np.uint8)], -1)
            blend = (share / np.float32(255))[..., None]
            below = pictures[f][box]
            below[:] = below + blend * (color - below.astype(np.float32)) + np.float32(0.5)
        return pictures, masks

    @property
    def _reach_pixels(self) -> int:
        return max(1, round((self.reach or 0) * len(self.mask)))

    @functools.cached_property
    def _near_limbs(self) -> UInt8[np.ndarray, "height width"]:
        """The limbs within reach of each pixel of the reference, a bit for each; around a joint also the other one."""
        owner = self._owners()
        masks = [(owner == number).astype(np.uint8) for number in range(WHOLE_LIMB[-1] + 1)]
        points = self.reference.body * np.array(self.mask.shape[::-1])
        seen = self.reference.body_confidence >= MIN_CONFIDENCE
        size = person_size(self.reference, *self.mask.shape)
        for first, second, joint, _ in JOINTS:
            both = {WHOLE_LIMB[first], WHOLE_LIMB[second]}
            for number in both if len(both) > 1 and seen[joint] else ():
                center, radius = points[joint].round().astype(int).tolist(), round(SHARED * size)
                masks[number] = cv2.circle(masks[number], center, radius, (1,), cv2.FILLED)
        side = 2 * self._reach_pixels + 1
        circle = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        near = (np.asarray(cv2.dilate(mask, circle), np.uint8) << number for number, mask in enumerate(masks))
        return np.bitwise_or.reduce([*near])

    def _owners(self) -> Int8[np.ndarray, "height width"]:
        """The whole limb that each pixel of the reference shows: grown from around the bones until they meet at an edge
        of the picture (watershed). -1: none."""
        found = warp_field(self.reference, self.reference[None], *self.mask.shape)
        part, depth = found.part[0], found.depth[0]
        limb = np.array([*WHOLE_LIMB, -1])[part]
        torso = cv2.erode(((limb == 0) & (depth > 0.45)).astype(np.uint8), np.ones((3, 3), np.uint8))
        core = np.where(limb == 0, torso > 0, depth > CORE_DEPTH) & (self.mask > 127)
        outside = cv2.dilate(self.mask, np.ones((5, 5))) < 8
        seeds = np.where(outside, NUM_PARTS, np.where(core, limb + 1, 0)).astype(np.int32)
        grown = cv2.watershed(np.ascontiguousarray(self.picture), seeds)
        return np.where(grown == NUM_PARTS, limb, grown - 1).astype(np.int8)

    @functools.cached_property
    def _reference_part(self) -> UInt8[np.ndarray, "height width"]:
        """The part of each pixel of the reference, counted from 1; 0: none."""
        return (warp_field(self.reference, self.reference[None], *self.mask.shape).part[0] + 1).astype(np.uint8)


class WarpedImages(NamedTuple):
    """The values of `LazyWarpedImages`, computed in advance."""

    background: UInt8[np.ndarray, "h w 3"]
    images: UInt8[np.ndarray, "f h w 3"]
    masks: UInt8[np.ndarray, "f h w 2"]

    def __getitem__(self, frames) -> tuple[np.ndarray, np.ndarray]:
        return self.images[frames], self.masks[frames]

    def select(self, frames) -> WarpedImages:
        """Only those frames."""
        return self._replace(images=self.images[frames], masks=self.masks[frames])


AnyWarpedImages = LazyWarpedImages | WarpedImages


def warp(picture: Picture, mask: Mask | None, reference: Keypoints, driven: Keypoints) -> LazyWarpedImages:
    """`LazyWarpedImages` with a background without the person; without a mask, one is made of capsules around the
    bones."""
    mask = capsules(reference, *picture.shape[:2]) if mask is None else mask
    return LazyWarpedImages(picture, mask, without_person(picture, mask), reference, driven)


def capsules(keypoints: Keypoints, height: int, width: int) -> Mask:
    """An approximate mask of a person (one frame): torso, head and limbs around the bones."""
    depth = warp_field(keypoints, keypoints[None], height, width).depth[0]
    return cv2.GaussianBlur(255 * (depth > CAPSULE_DEPTH).astype(np.uint8), (3, 3), 0.7)


def _facing_sign(keypoints: Keypoints) -> Float[np.ndarray, " frames"]:
    """1 and -1 for the two sides that a body turns to the camera, 0 where shoulders or hips are missing."""
    points = keypoints.body
    across = points[..., SHOULDERS[1], :] - points[..., SHOULDERS[0], :]
    down = points[..., HIPS, :].mean(-2) - points[..., SHOULDERS, :].mean(-2)
    seen = (keypoints.body_confidence[..., SHOULDERS + HIPS] >= MIN_CONFIDENCE).all(-1)
    return np.sign(across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]) * seen


def warp_field(
    reference: Keypoints, driven: Keypoints, height: int, width: int, without: tuple[int, ...] = ()
) -> WarpField:
    """Maps the pixels of frames of a person to a reference image of that person.

    A part is left out where one of its joints is missing in either image, and the one before it goes on straight.
    Missing hips are assumed below the shoulders.

    Args:
        reference: one frame (no leading axis), in units of the image.
        driven: [F] frames of the same body, in the same units.
        height, width: of image and frames, in pixels.
        without: numbers of parts to leave out.
    """
    size = np.array([width, height], np.float64)
    source, target = reference.body.astype(np.float64) * size, driven.body.astype(np.float64) * size
    seen = (reference.body_confidence >= MIN_CONFIDENCE) & (driven.body_confidence >= MIN_CONFIDENCE)
    source, target = np.broadcast_to(source, target.shape), np.where(seen[..., None], target, 0)
    source = np.where(seen[..., None], source, 0)
    reference_size, sizes = person_sizes(source, target, seen)
    source, target, seen = _fill_in_hips(source, target, seen)
    maps, active = _part_maps(source, target, seen, reference_size, sizes)
    active[:, list(without)] = False
    frames = len(target)
    part = np.full((frames, height, width), -1, np.int8)
    least = np.ones((frames, height, width), np.float32)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    where = np.empty((frames, height, width, 2), np.float32)
    for f in range(frames):
        scores = _rasterize(part[f], least[f], target[f], sizes[f], active[f])
        chosen = maps[f].astype(np.float32)[part[f]]  # [H, W, 2, 3]; the last part's where there is none
        straight = chosen[..., 0] * x[..., None] + chosen[..., 1] * y[..., None] + chosen[..., 2]
        where[f] = straight
        for *pair, joint, near in JOINTS:
            if active[f, pair].all():
                _bend(where[f], straight, part[f], scores, maps[f], pair, target[f, joint], near * sizes[f])
    return WarpField(where, part, 1 - least)


def _fill_in_hips(source, target, seen):
    """Assumes a position for hips that are missing in either image, by the same rule in both."""
    source, target, seen = source.copy(), target.copy(), seen.copy()
    usable = seen[:, SHOULDERS].all(-1)
    for points in (source, target):
        across = points[:, SHOULDERS[1]] - points[:, SHOULDERS[0]]
        down = 1.45 * across[:, ::-1] * (1, -1)
        away = points[:, NECK] - points[:, 0]  # from the nose
        away = np.where(seen[:, :1], away, (0.0, 1.0))
        down = np.where((down * away).sum(-1, keepdims=True) < 0, -down, down)
        for hip, other, side in ((8, 11, 0), (11, 8, 1)):
            near = points[:, other] + (2 * side - 1) * across * 0.6
            far = points[:, SHOULDERS[side]] + down
            there = seen[:, hip, None]
            points[:, hip] = np.where(there, points[:, hip], np.where(seen[:, other, None], near, far))
    seen[:, HIPS] |= usable[:, None]
    return source, target, seen


def _part_maps(source, target, seen, reference_size, sizes):
    """Every part's affine map from frame to reference, [F, 10, 2, 3], and whether the part is visible."""
    frames = len(target)
    maps, active = np.zeros((frames, 10, 2, 3)), np.zeros((frames, 10), bool)
    known = (reference_size > 1e-3) & (sizes > 1e-3)
    ratio = np.where(known, reference_size, 1) / np.where(known, sizes, 1)

    active[:, TORSO] = seen[:, TORSO_POINTS].all(-1)
    matrix, x, y = _similarity(source[:, TORSO_POINTS], target[:, TORSO_POINTS], np.ones((frames, 5)))
    residual = y - x @ matrix.swapaxes(1, 2)
    stiff = np.maximum((TORSO_STIFFNESS * sizes) ** 2, 1e-6)
    gram = x.swapaxes(1, 2) @ x + stiff[:, None, None] * np.eye(2)
    matrix = matrix + np.linalg.solve(gram, x.swapaxes(1, 2) @ residual).swapaxes(1, 2)
    maps[:, TORSO] = _affine_from(matrix, source[:, TORSO_POINTS].mean(1), target[:, TORSO_POINTS].mean(1))

    weight = seen[:, HEAD_POINTS].astype(float)
    active[:, HEAD] = (weight.sum(-1) >= 2) & seen[:, FACE_POINTS].any(-1)
    matrix, _, _ = _similarity(source[:, HEAD_POINTS], target[:, HEAD_POINTS], weight)
    means = [(p[:, HEAD_POINTS] * weight[..., None]).sum(1) / weight.sum(1).clip(1)[:, None] for p in (source, target)]
    maps[:, HEAD] = _affine_from(matrix, *means)

    active[:, LIMBS] = seen[:, STARTS] & seen[:, ENDS]
    bone, driven = source[:, ENDS] - source[:, STARTS], target[:, ENDS] - target[:, STARTS]  # [F, 8, 2]
    along, across = _bone_axes(driven)
    _, reference_across = _bone_axes(bone)
    length = np.maximum(np.linalg.norm(driven, axis=-1), 0.05 * sizes[:, None] + 1e-3)
    matrix = (bone / length[..., None])[..., :, None] * along[..., None, :]
    matrix = matrix + (reference_across * ratio[:, None, None])[..., :, None] * across[..., None, :]
    maps[:, LIMBS] = _affine_from(matrix, source[:, STARTS], target[:, STARTS])
    return maps, active & known[:, None]


def _similarity(source, target, weight):
    """The least-squares similarity target -> source: its matrix [F, 2, 2], and both sets of points, centered."""
    total = weight.sum(1).clip(1e-9)[:, None, None]
    x, y = (
        (points - (points * weight[..., None]).sum(1, keepdims=True) / total) * (weight[..., None] > 0)
        for points in (target, source)
    )
    square = (x**2).sum((1, 2))
    a = np.where(square > 1e-6, (x * y).sum((1, 2)) / square.clip(1e-6), 1)
    b = np.where(square > 1e-6, (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]).sum(1) / square.clip(1e-6), 0)
    return np.stack([np.stack([a, -b], -1), np.stack([b, a], -1)], -2), x, y


def _affine_from(matrix, source, target):
    """The affine map with that matrix that maps `target` to `source`."""
    return np.concatenate([matrix, (source - (matrix @ target[..., None])[..., 0])[..., None]], -1)


def _bone_axes(bone):
    """Unit vectors along and across bones; arbitrary ones for a bone of length 0."""
    length = np.linalg.norm(bone, axis=-1, keepdims=True)
    along = np.where(length > 1e-6, bone / length.clip(1e-6), (0.0, 1.0))
    return along, np.stack([-along[..., 1], along[..., 0]], -1)


def _bend(where, straight, part, scores, maps, pair, joint, near) -> None:
    """Adds to `where` by how much two parts' sources around their joint differ from the `straight` ones; in place."""
    height, width = part.shape
    left, top = np.floor(joint - 2 * near).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(joint + 2 * near).clip(0, (width, height)).astype(int)
    areas = np.linalg.det(maps[pair, :, :2])
    if left >= right or top >= bottom or areas.min() <= 0:
        return
    box = np.s_[top:bottom, left:right]
    first, second = (part[box] == number for number in pair)
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - joint[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - joint[1])
    # The second part's share: a half where both lie as deep, never more than that where the first one lies deeper.
    share = ((scores[pair[0]][box] - scores[pair[1]][box]) / (2 * BENDING) + 0.5).clip(0, 1)
    share = np.where(second, share.clip(min=0.5), share.clip(max=0.5))
    share = second + (share - second) * (2 - np.hypot(x, y) / np.float32(near)).clip(0, 1)

    def mean(values):
        values = values.astype(np.float32)
        return values[0] + share.reshape(*share.shape, *[1] * (values.ndim - 1)) * (values[1] - values[0])

    matrix = mean(maps[pair, :, :2])
    area = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
    matrix *= np.sqrt(mean(areas) / np.maximum(area, LEAST_SHRUNK**2 * mean(areas)))[..., None, None]
    end = mean(maps[pair, :, :2] @ joint + maps[pair, :, 2])
    bent = matrix[..., 0] * x[..., None] + matrix[..., 1] * y[..., None] + end
    where[box] += (bent - straight[box]) * (first | second)[..., None]


def _rasterize(part, least, points, size, active):
    """Assigns every pixel of a frame to the part in which it lies deepest, in place; returns the scores of each part,
    0 on its bone, 1 at its edge."""
    height, width = part.shape
    scores = {number: np.full(part.shape, BEYOND, np.float32) for number in range(NUM_PARTS)}

    def put(number, low, high, score_of) -> None:
        left, top = np.floor(low).clip(0, (width, height)).astype(int)
        right, bottom = np.ceil(high).clip(0, (width, height)).astype(int)
        if left >= right or top >= bottom:
            return
        box = np.s_[top:bottom, left:right]
        x = np.arange(left, right, dtype=np.float32) + np.float32(0.5)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
        score = scores[number][box] = score_of(x, y)
        better = score < least[box]
        np.copyto(least[box], score, where=better)
        np.copyto(part[box], np.int8(number), where=better)

    limbs = active[LIMBS]
    if active[TORSO]:
        corners = points[[2, 5, 11, 8]].astype(np.float32)
        down = corners[2:].mean(0) - corners[:2].mean(0)
        corners[2:] += CONTINUED * down * ~limbs[[6, 4], None]  # the legs
        radius = TORSO_RADIUS * size
        floor = ARM_IN_FRONT_DEPTH if corners[0, 0] < corners[1, 0] else 0.0

        def torso(x, y):
            filled = np.zeros((y.size, x.size), np.uint8)
            hull = cv2.convexHull(corners) - np.array([x[0], y.item(0)], np.float32)
            cv2.fillConvexPoly(filled, np.round(hull * 16).astype(np.int32), 1, shift=4)
            outside = cv2.distanceTransform(1 - filled, cv2.DIST_L2, 3)
            return floor + (1 - floor) * outside / np.float32(radius)

        put(TORSO, corners.min(0) - radius, corners.max(0) + radius, torso)
    for number in np.flatnonzero(limbs).tolist():
        start, end, radius, before, beyond = LIMB_PARTS[number]
        if number % 2 == 0 and not limbs[number + 1]:
            beyond = CONTINUED
        first, last = points[start], points[end]
        axis = last - first
        first, last = (first - before * axis).astype(np.float32), (last + beyond * axis).astype(np.float32)
        axis, radius = last - first, np.float32(radius * size)
        slope = axis / max(float(axis @ axis), 1e-6)

        def limb(x, y, first=first, axis=axis, slope=slope, radius=radius):
            across, down = x - first[0], y - first[1]
            along = np.clip(across * slope[0] + down * slope[1], 0, 1)
            across, down = across - along * axis[0], down - along * axis[1]
            return np.sqrt(across * across + down * down) / radius

        put(2 + number, np.minimum(first, last) - radius, np.maximum(first, last) + radius, limb)
    if active[HEAD]:
        there = [i for i in FACE_POINTS if points[i].any()]
        center = points[there].mean(0)
        if points[NECK].any():
            center = center + 0.12 * (center - points[NECK])
        center, radius = center.astype(np.float32), np.float32(HEAD_RADIUS * size)

        def head(x, y):
            return np.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2) / radius

        put(HEAD, center - radius, center + radius, head)
    return scores
