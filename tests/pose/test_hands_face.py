"""Hands and faces found offline: where they are, whose side they are, and none where there is none."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from animate_jax.data.mocap_people.scene import MocapPeople
from animate_jax.pose.detect import _fix_left_right_swaps, detect
from animate_jax.pose.hands_face import estimate_face, estimate_hand
from animate_jax.pose.keypoints import LEFT_RIGHT, Keypoints
from animate_jax.video.images import read_image

ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"
# iBUG 300-W points of her face, read off the picture as fractions of it.
FACE = {
    36: (0.374, 0.197),
    45: (0.506, 0.202),
    30: (0.439, 0.247),
    8: (0.435, 0.354),
    48: (0.392, 0.273),
    54: (0.481, 0.277),
}


@pytest.fixture(scope="module")
def astronaut():
    return read_image(ASTRONAUT)


def test_the_astronauts_face(astronaut):
    found = detect(astronaut[None], face=True)[0]
    assert found.face_confidence.min() > 0.9
    for point, place in FACE.items():
        np.testing.assert_allclose(found.face[point], place, atol=0.02, err_msg=str(point))
    assert not found.hands_confidence.any()  # not asked for


def test_a_followed_face_is_the_face(astronaut):
    """The second frame starts from the first one's points instead of the detector."""
    still = detect(np.stack([astronaut] * 2), face=True)
    np.testing.assert_allclose(still.face[1], still.face[0], atol=0.01)


def test_hands_that_the_picture_cuts_off_are_not_found(astronaut):
    found = detect(astronaut[None], hands=True)[0]
    assert not found.hands_confidence.any() and not found.face_confidence.any()


@pytest.fixture(scope="module")
def rendered():
    """A person seen from the front with both hands in the picture."""
    people = MocapPeople("test_both", seed=8, height=768, width=576)
    clip = people.clip(2, 8, [0, 1])
    assert (clip.keypoints.hands_confidence > 0).all()
    return clip


def test_hands_of_a_rendered_person(rendered):
    """Within a tenth of the torso of the renderer's own joints, each hand on its own side."""
    found, size = detect(rendered.frames, hands=True), np.float32((576, 768))
    true = rendered.keypoints
    torso = np.linalg.norm((true.body[:, 1] - (true.body[:, 8] + true.body[:, 11]) / 2) * size, axis=-1)
    assert found.hands_confidence.all()
    error = np.linalg.norm((found.hands - true.hands) * size, axis=-1).mean(-1) / torso[:, None]
    assert error.max() < 0.1, error


def test_sides_are_exchanged_with_their_hands():
    frames = 9
    body = np.tile(np.float32([0.5, 0.5]), (frames, 18, 1))
    for right, left in LEFT_RIGHT:
        body[:, right, 0], body[:, left, 0] = 0.4, 0.6
    body[:, [2, 5], 1], body[:, [8, 11], 1] = 0.3, 0.6
    empty = Keypoints.empty(frames)
    hands = empty.hands.copy()
    hands[:, 0], hands[:, 1] = 0.6, 0.4
    poses = dataclasses.replace(empty, body=body, body_confidence=np.ones((frames, 18), np.float32), hands=hands)
    order = np.arange(18)
    order[np.array(LEFT_RIGHT)] = np.array(LEFT_RIGHT)[:, ::-1]
    wrong_body, wrong_hands = body.copy(), hands.copy()
    wrong_body[4], wrong_hands[4] = wrong_body[4][order], wrong_hands[4][::-1]
    mended = _fix_left_right_swaps(dataclasses.replace(poses, body=wrong_body, hands=wrong_hands), (200, 100, 3))
    np.testing.assert_array_equal(mended.hands, hands)


@pytest.mark.parametrize("place", [1e6, -1e6, 0.0])
def test_impossible_bodies_have_neither(astronaut, place):
    body, sure = np.full((33, 2), place), np.ones(33)
    assert estimate_hand(astronaut, body, sure, 0, None) is None
    assert estimate_face(astronaut, body, sure, None) is None
