"""The shadow at a person's feet: taken off the floor where the picture has it, and cast again where the feet go."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32

from animate_jax.pose.inpaint import Mask, Picture, diffused, hidden, textured, without_person
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.size import person_size

ANKLES = 10, 13
FOOT = 0.4  # lengths of the torso around an ankle: the foot is there
BESIDE, BELOW, ABOVE = 0.9, 0.5, 0.2  # and so far around it its shadow on the floor
SOFTNESS = 0.012  # image heights over which the floor's light is compared, less on a floor of
TEXTURE = 3.0  # levels of texture and fewer, but at least the share
SHARPEST = 0.2
COARSE = 24  # pixels of the torso of the picture in which they are looked for
FADE = 0.25  # lengths of the torso over which it ends
SOLE = 0.12  # lengths of the torso around a foot in which the floor that is still
UNEVEN = 3.0  # levels off is made up, too
FAINT, DARKEST = 0.03, 0.8  # shares of the light below which none is taken, and the most
ALIKE, MOSTLY = 10.0, 0.6  # levels within which their colors agree then, and in what share of the floor

Darkness = Float32[np.ndarray, "height width"]


@dataclasses.dataclass(frozen=True)
class Shadow:
    """The share of the floor's light [H, W] that the person takes, divided between the ankles that are seen."""

    darkness: dict[int, Darkness]
    keypoints: Keypoints

    def cast(self, picture: Picture, driven: Keypoints) -> Picture:
        """A picture with the shadow of a person in another pose (one frame): each foot's goes with it, weaker where
        the foot is raised, and all of them up and down with the lower foot."""
        height, width = picture.shape[:2]
        seen = [ankle for ankle in self.darkness if driven.body_confidence[ankle] >= MIN_CONFIDENCE]
        if not seen:
            return picture
        own, moved = (keypoints.body * (width, height) for keypoints in (self.keypoints, driven))
        lowest, size = moved[seen, 1].max(), person_size(self.keypoints, height, width)
        down = lowest - own[seen, 1].max()
        dark = np.zeros((height, width), np.float32)
        for ankle in seen:
            shift = np.array([[1, 0, moved[ankle, 0] - own[ankle, 0]], [0, 1, down]], np.float32)
            near = max(1 - (lowest - moved[ankle, 1]) / size, 0)
            dark += np.float32(near) * cv2.warpAffine(
                self.darkness[ankle], shift, (width, height), borderMode=cv2.BORDER_REPLICATE
            )
        rows = np.flatnonzero(dark.any(1))
        if not len(rows):
            return picture
        result, part = picture.copy(), np.s_[rows[0] : rows[-1] + 1]
        result[part] = np.round(picture[part] * (1 - dark[part].clip(0, 1))[..., None])
        return result


def without_shadow(picture: Picture, mask: Mask, keypoints: Keypoints) -> tuple[Picture, Shadow | None]:
    """The picture without the person, as `inpaint.without_person`, and without the shadow at its feet, and that shadow.
    None where what is dark there is none: a shadow darkens all colors alike."""
    person, floor = hidden(mask) > 0, near_feet(mask, keypoints) > 0
    if not (floor & ~person).any():
        return without_person(picture, mask), None
    made = textured(picture, person | floor).astype(np.float32)
    rows, columns = np.flatnonzero(floor.any(1)), np.flatnonzero(floor.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    made, seen, person, floor = made[box], picture[box], person[box], floor[box]
    beside = floor & ~person

    def smooth(image):
        return cv2.GaussianBlur(image, (0, 0), softness) + 1.0

    def continued(image):  # under the feet
        return diffused(image, person.astype(np.uint8))

    softness = SOFTNESS * len(picture)
    texture = np.median(np.abs(made + 1 - smooth(made))[beside])
    softness *= np.clip(texture / TEXTURE, SHARPEST, 1)
    dark, lit = smooth(continued(seen)), smooth(made)
    light = dark.mean(-1) / lit.mean(-1)
    alike = np.abs(dark - light[..., None] * lit).max(-1) < ALIKE
    if alike[beside].mean() < MOSTLY:
        return without_person(picture, mask), None
    size = min(person_size(keypoints, *mask.shape), max(mask.shape))
    inside = cv2.distanceTransform(floor.astype(np.uint8), cv2.DIST_L2, 5)
    darkness = np.zeros(mask.shape, np.float32)
    darkness[box] = (inside / (FADE * size)).clip(0, 1) * alike * (1 - light - FAINT).clip(0, DARKEST)
    darkness = cv2.GaussianBlur(darkness, (0, 0), softness)
    bright = np.round(picture / (1 - darkness)[..., None]).clip(0, 255).astype(np.uint8)
    sole = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(SOLE * size) + 1,) * 2)
    touched = (cv2.dilate(person.astype(np.uint8), sole) > 0) & floor & alike
    uneven = np.abs(smooth(continued(bright[box])) - lit).mean(-1) > UNEVEN
    whole = mask.copy()
    whole[box][touched & uneven] = 255
    return without_person(bright, whole), Shadow(_of_each_foot(darkness, keypoints), keypoints)


def near_feet(mask: Mask, keypoints: Keypoints) -> Mask:
    """The floor around a person's feet, 255 inside."""
    full = mask.shape
    scale = min(COARSE / max(person_size(keypoints, *full), 1), 1)  # large reaches take long
    height, width = (max(round(side * scale), 1) for side in full)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    size, ankles = person_size(keypoints, height, width), np.zeros_like(mask)
    for ankle in ANKLES:
        if keypoints.body_confidence[ankle] >= MIN_CONFIDENCE:
            place = (keypoints.body[ankle] * (width, height)).round().astype(int).tolist()
            cv2.circle(ankles, place, round(FOOT * size), (255,), cv2.FILLED)
    beside, below, above = (round(reach * size) for reach in (BESIDE, BELOW, ABOVE))
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * beside + 1, below + above + 1))
    wide = cv2.dilate(np.minimum(mask, ankles), around, anchor=(beside, below))
    return np.where(cv2.resize(wide, full[::-1]) > 127, np.uint8(255), np.uint8(0))


def _of_each_foot(darkness: Darkness, keypoints: Keypoints) -> dict[int, Darkness]:
    """A shadow divided between the ankles, the nearer one of which has more of it."""
    height, width = darkness.shape
    y, x = np.ogrid[:height, :width]
    seen = [ankle for ankle in ANKLES if keypoints.body_confidence[ankle] >= MIN_CONFIDENCE]
    places = keypoints.body[seen] * (width, height)
    near = np.stack([1 / ((x - place[0]) ** 2 + (y - place[1]) ** 2 + 1) for place in places])
    shares = (near / near.sum(0)).astype(np.float32)
    return {ankle: darkness * share for ankle, share in zip(seen, shares, strict=True)}
