"""The person cut out of a picture, and what is made up behind it.

Pictures are filled with their own texture: patches from around the hole that fit best, from coarse to fine (Wexler et
al. 2007, "Space-Time Completion of Video"; the search as in Barnes et al. 2009, "PatchMatch").
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Picture = UInt8[np.ndarray, "height width 3"]
Mask = UInt8[np.ndarray, "height width"]  # 255: the person

DIFFUSION_FALLOFF = 8.0  # of the weight of surroundings twice as far

# Lengths in image heights.
CERTAIN = 32  # levels of a detector's mask below which nobody is
OPAQUE = 96, 176  # and between which the person's share of a pixel is found to grow from none to all
CORE_MARGIN, RAMP = 0.005, 0.012  # around the mask: is made up, and from there fades into the picture
FRINGE = 0.01  # within which the colors of the person's edge are looked for
PATCH = 3  # pixels on every side of a patch's middle
LEVELS = ((2400, 4), (9600, 3), (38400, 2))  # coarse to fine: pixels of the picture, and rounds of search and vote
EXHAUSTIVE = 2400  # pixels of a picture in which every patch is compared with every other
FAR = 60.0  # squared levels per value of a patch, of one that lies a height away
SHARPNESS = 0.4  # pixels of the finest level over which neighboring patches blend at full size


def without_person(picture: Picture, mask: Mask) -> Picture:
    """The image without the person: what is behind it is made up. Every pixel that is certainly not the person's stays
    as it is."""
    share = hidden(mask)
    made = textured(picture, share > 0).astype(np.float32)
    return np.round(picture + share[..., None] * (made - picture)).astype(np.uint8)


def hidden(mask: Mask) -> Float32[np.ndarray, "height width"]:
    """The share of each pixel that is made up: 1 at the person, 0 where it is certainly not."""
    height = len(mask)
    away = cv2.distanceTransform((mask < CERTAIN).astype(np.uint8), cv2.DIST_L2, 5)
    return (1 - (away - CORE_MARGIN * height) / (RAMP * height)).clip(0, 1).astype(np.float32)


def cutout(mask: Mask) -> Mask:
    """A detector's mask with a narrower border, without what it is in doubt about."""
    low, high = OPAQUE
    return ((mask.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)


def foreground(picture: Picture, mask: Mask) -> Picture:
    """The person's own colors where its edge mixes with what is behind it (Forte 2021, "Approximate Fast Foreground
    Colour Estimation"). Where the mask is full, and far from it, the picture."""
    deviation = max(1.0, FRINGE * len(mask))
    share = (mask.astype(np.float32) / 255)[..., None]

    def mean(weight):
        total = cv2.GaussianBlur(weight, (0, 0), deviation)[..., None]
        return (cv2.GaussianBlur(picture * weight, (0, 0), deviation) + 1e-3 * picture) / (total + 1e-3)

    near, behind = mean(share), mean(1 - share)
    found = near + share * (picture - share * near - (1 - share) * behind)
    return np.where(share < 1, found.round().clip(0, 255), picture).astype(np.uint8)


def diffused(picture: Picture, hole: Mask) -> Float32[np.ndarray, "height width 3"]:
    """The image with its holes (non-zero) filled by Gaussian means of what is around them, the nearest first.

    Smooth, without the edges that inpainting draws from the rim to the middle of a large hole.
    """
    known = (hole == 0).astype(np.float32)
    colors, weights = np.zeros(picture.shape, np.float32), np.full(hole.shape, 1e-12, np.float32)
    for step in range(math.ceil(math.log2(max(hole.shape)))):
        importance = DIFFUSION_FALLOFF**-step
        colors += importance * cv2.GaussianBlur(picture * known[..., None], (0, 0), 2**step)
        weights += importance * cv2.GaussianBlur(known, (0, 0), 2**step)
    return np.where(known[..., None] > 0, picture, colors / weights[..., None]).astype(np.float32)


def textured(picture: Picture, hole: np.ndarray) -> Picture:
    """The image with its holes (non-zero) filled with patches from elsewhere in it; with `diffused` colors where too
    little of it is left."""
    hole = hole > 0
    height, width = hole.shape
    if not hole.any():
        return picture
    made = offsets = None
    rng = np.random.default_rng(0)
    for area, rounds in LEVELS:
        scale = min(1, math.sqrt(area / hole.size))
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        image = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
        missing = cv2.resize(255 * hole.astype(np.uint8), size[::-1], interpolation=cv2.INTER_AREA) > 0
        patch = np.ones((2 * PATCH + 1, 2 * PATCH + 1), np.uint8)
        usable = cv2.erode((~missing).astype(np.uint8), patch, borderValue=0) > 0
        if usable.sum() < PATCH**2:
            continue
        if made is None or offsets is None:
            made = diffused(image.round().astype(np.uint8), missing.astype(np.uint8))
        else:
            factor = np.divide(size, offsets.shape[:2])
            made = np.where(missing[..., None], cv2.resize(made, size[::-1]), image)
            nearest = cv2.resize(offsets, size[::-1], interpolation=cv2.INTER_NEAREST)
            offsets = np.round(nearest * factor).astype(np.float32)
        wanted = cv2.dilate(missing.astype(np.uint8), patch) > 0
        for _ in range(rounds):
            offsets, difference = nearest_patches(made, wanted, usable, offsets, rng)
            made = vote(made, missing, wanted, offsets, difference)
    if made is None or offsets is None:
        return diffused(picture, hole.astype(np.uint8)).round().astype(np.uint8)
    return copied(picture, hole, wanted, offsets)


def nearest_patches(
    image: Float32[np.ndarray, "height width 3"],
    wanted: np.ndarray,
    usable: np.ndarray,
    offsets: Float32[np.ndarray, "height width 2"] | None,
    rng: np.random.Generator,
) -> tuple[Float32[np.ndarray, "height width 2"], Float32[np.ndarray, "height width"]]:
    """For the patch around each wanted pixel, where (y, x from there) a usable one lies that is like it, and their mean
    squared difference. In a small image the best of all; else the best of those of the neighbors, as `offsets` has
    them, and of random ones."""
    height, width = wanted.shape
    padded = cv2.copyMakeBorder(image, PATCH, PATCH, PATCH, PATCH, cv2.BORDER_REFLECT)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * PATCH + 1, 2 * PATCH + 1), (0, 1))
    patches = windows.reshape(height, width, -1)
    rows, columns = np.nonzero(wanted)
    place, own = np.stack([rows, columns], -1), patches[rows, columns]
    far = FAR * own.shape[1] / height**2
    best, least = np.zeros_like(place), np.full(len(place), np.inf, np.float32)
    if offsets is None or height * width <= EXHAUSTIVE:
        sources = np.argwhere(usable)
        extra = math.sqrt(far) * sources.astype(np.float32)
        theirs = np.concatenate([patches[usable], extra], 1)
        mine = np.concatenate([own, math.sqrt(far) * place.astype(np.float32)], 1)
        distance = (theirs**2).sum(1) - 2 * mine @ theirs.T
        found = distance.argmin(1)
        best, least = sources[found], distance[np.arange(len(found)), found] + (mine**2).sum(1)
    else:

        def consider(source):
            inside = (source >= 0).all(1) & (source < (height, width)).all(1)
            inside[inside] = usable[tuple(source[inside].T)]
            there = np.flatnonzero(inside)
            theirs = patches[source[there, 0], source[there, 1]]
            distance = ((own[there] - theirs) ** 2).sum(1) + far * ((source[there] - place[there]) ** 2).sum(1)
            better = distance < least[there]
            least[there[better]], best[there[better]] = distance[better], source[there[better]]

        for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-3, 0), (3, 0), (0, -3), (0, 3)):
            near = (rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)
            consider(place + offsets[near].astype(int))
        everywhere = np.argwhere(usable)
        consider(everywhere[rng.integers(0, len(everywhere), len(place))])
        lost = np.isinf(least)
        best[lost] = everywhere[rng.integers(0, len(everywhere), lost.sum())]
        least[lost] = 255.0**2 * own.shape[1]
    field, difference = np.zeros((height, width, 2), np.float32), np.zeros((height, width), np.float32)
    field[wanted], difference[wanted] = best - place, least.clip(0) / own.shape[1]
    return field, difference


def vote(image, missing, wanted, offsets, difference) -> Float32[np.ndarray, "height width 3"]:
    """Every missing pixel becomes the mean of what the patches that cover it hold there; similar ones count more."""
    trust = np.where(wanted, np.exp(-difference / (2 * np.quantile(difference[wanted], 0.75) + 1.0)), 0)
    rows, columns = np.nonzero(missing)
    return _mean_of_neighbors(image, missing, rows, columns, rows, columns, offsets, trust, PATCH, PATCH / 2)


def copied(picture, hole, wanted, offsets) -> Picture:
    """The holes of the full picture, from where the patches of the finest level lie."""
    rows, columns = np.nonzero(hole)
    scale = np.divide(wanted.shape, hole.shape)
    places = (rows + 0.5) * scale[0] - 0.5, (columns + 0.5) * scale[1] - 0.5
    larger = np.round(offsets / scale.astype(np.float32))
    made = _mean_of_neighbors(
        picture.astype(np.float32), hole, rows, columns, *places, larger, wanted.astype(np.float32), 1, SHARPNESS
    )
    return made.round().clip(0, 255).astype(np.uint8)


def _mean_of_neighbors(image, hole, rows, columns, row_places, column_places, offsets, trust, reach, deviation):
    """Pixels (rows, columns) from where the patches around their places in the field of offsets say."""
    (height, width), field = image.shape[:2], offsets.shape[:2]
    middle = np.round(row_places).astype(int), np.round(column_places).astype(int)
    colors, total = np.zeros((len(rows), 3), np.float32), np.zeros((len(rows), 1), np.float32)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            y, x = (middle[0] + down).clip(0, field[0] - 1), (middle[1] + right).clip(0, field[1] - 1)
            away = (y - row_places) ** 2 + (x - column_places) ** 2
            source_y = (rows + offsets[y, x, 0]).astype(int).clip(0, height - 1)
            source_x = (columns + offsets[y, x, 1]).astype(int).clip(0, width - 1)
            weight = trust[y, x] * np.exp(-away / (2 * deviation**2)) * ~hole[source_y, source_x] + 1e-12
            colors += weight[:, None] * image[source_y, source_x]
            total += weight[:, None]
    result = image.copy()
    result[rows, columns] = colors / total
    return result
