"""The shadow at a person's feet is found, taken off the floor, and goes with the feet."""

import dataclasses

import cv2
import numpy as np
import pytest

from animate_jax.pose.inpaint import without_person
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.shadow import ANKLES, without_shadow
from animate_jax.pose.warp import capsules
from tests.pose.test_warp import BODY

SIZE = 256, 192
FLOOR = np.float32([150, 180, 120])


def person(body=BODY, confidence=1.0):
    points = (body / np.float32([96, 128]) * np.float32([1, 0.8])).astype(np.float32)
    return dataclasses.replace(Keypoints.empty(), body=points, body_confidence=np.full(18, confidence, np.float32))


def moved(right=0.0, down=0.0, joints: slice | list[int] = slice(None)):
    body = BODY.copy()
    body[joints] += np.float32([right, down])
    return person(body)


def shaded(darkness, color=(1.0, 1.0, 1.0)):
    """A person on a floor, which a soft shadow around its feet darkens: picture, mask, and the floor alone."""
    mask = capsules(person(), *SIZE)
    feet = person().body[list(ANKLES)].mean(0) * SIZE[::-1]
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    dark = darkness * np.exp(-(((x - feet[0]) / 22) ** 2 + ((y - feet[1] - 4) / 8) ** 2) / 2)
    ground = FLOOR * (1 - dark[..., None] * np.float32(color))
    picture = np.where(mask[..., None] > 0, np.float32([250, 30, 30]), ground)
    return picture.round().astype(np.uint8), mask, dark


def found(picture, mask):
    made, shadow = without_shadow(picture, mask, person())
    assert shadow is not None
    return made, shadow


def off(picture, wanted):
    return np.abs(picture.astype(float) - wanted).max(-1)


def test_the_shadow_leaves_the_floor_with_the_person():
    picture, mask, dark = shaded(0.5)
    made, _ = found(picture, mask)
    there = dark > 0.1
    assert off(picture, FLOOR)[there & (mask == 0)].mean() > 40
    assert off(made, FLOOR)[there].mean() < 8
    assert off(without_person(picture, mask), FLOOR)[there].mean() > 25
    np.testing.assert_array_equal(made[:120, :40], picture[:120, :40])


def test_it_is_cast_where_it_was():
    picture, mask, dark = shaded(0.5)
    made, shadow = found(picture, mask)
    again = shadow.cast(made, person())
    beside = (dark > 0.05) & (cv2.dilate(mask, np.ones((9, 9))) == 0)
    assert off(again, picture)[beside].max() < 12
    below, floor = (dark > 0.05) & (mask > 0), FLOOR * (1 - dark[..., None])  # it goes on below the feet
    assert off(again, floor)[below].mean() < 0.6 * off(made, floor)[below].mean()


def test_it_goes_with_the_feet():
    picture, mask, _ = shaded(0.5)
    made, shadow = found(picture, mask)
    cast = shadow.cast(made, moved(right=12.0, down=4.0))  # of the 96x128 pixels of BODY: 24 and 6.4 here
    center = np.average(np.argwhere(off(cast, made) > 10), axis=0)
    before = np.average(np.argwhere(off(shadow.cast(made, person()), made) > 10), axis=0)
    np.testing.assert_allclose(center - before, [6.4, 24], atol=1.5)


def test_a_raised_foot_casts_less():
    picture, mask, _ = shaded(0.5)
    made, shadow = found(picture, mask)
    darkness = [
        off(shadow.cast(made, moved(down=-raised, joints=[ANKLES[0]])), made).sum() for raised in (0.0, 10.0, 60.0)
    ]
    assert darkness[0] > 1.1 * darkness[1] > 1.1 * darkness[2] > 0


def test_nobody_casts_none():
    picture, mask, _ = shaded(0.5)
    made, shadow = found(picture, mask)
    assert shadow.cast(made, person(confidence=0.0)) is made


@pytest.mark.parametrize("what", ["color", "no feet", "a picture"])
def test_what_is_no_shadow_stays(what):
    picture, mask, dark = shaded(0.5, (1.0, -0.4, 1.0) if what == "color" else (1.0, 1.0, 1.0))
    keypoints = person(confidence=0.0) if what == "no feet" else person()
    if what == "a picture":
        noise = np.random.default_rng(0).integers(0, 256, (32, 24, 3)).astype(np.uint8)
        picture = np.where(mask[..., None] > 0, picture, cv2.resize(noise, SIZE[::-1]))
    made, shadow = without_shadow(picture, mask, keypoints)
    beside = (dark > 0.2) & (cv2.dilate(mask, np.ones((13, 13))) == 0)
    if what == "color":
        assert off(made, picture)[beside].max() < 8
    else:
        assert shadow is None
        np.testing.assert_array_equal(made, without_person(picture, mask))
