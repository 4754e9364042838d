"""Several people, one of whom is followed."""

import dataclasses

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.track import Detection, track_person

HEIGHT, WIDTH = 240, 320
RED, BLUE = np.array([200, 30, 30]), np.array([30, 30, 200])
SHAPE = np.random.default_rng(0).uniform(-0.5, 0.5, (18, 2)) * (0.4, 1)


def pose(x, size=0.5, shape=SHAPE) -> Keypoints:
    body = ((shape * size * HEIGHT + (x * WIDTH, 0.5 * HEIGHT)) / (WIDTH, HEIGHT)).astype(np.float32)
    return dataclasses.replace(Keypoints.empty(), body=body, body_confidence=np.ones(18, np.float32))


def scene(*people):
    """Those found in a frame in which each (x, size, color) stands; the first given stands in front."""
    frame = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    for x, size, color in reversed(people):
        left, right = (int(np.clip(WIDTH * x + s * 0.2 * size * HEIGHT, 0, WIDTH)) for s in (-1, 1))
        frame[:, left:right] = color
    return [Detection.from_pose(pose(x, size), frame) for x, size, _ in people]


def middles(keypoints: Keypoints):
    return np.where(
        keypoints.body_confidence.any(-1),
        keypoints.body[..., 0].mean(-1) - (SHAPE[:, 0].mean() * 0.5 * HEIGHT / WIDTH),
        np.nan,
    )


def crossing(frames=21, hidden=0, colors=(RED, BLUE)):
    """Two of one size walk through each other; around the middle the second is not found for some frames."""
    steps = np.linspace(0.2, 0.8, frames)
    people = [scene((x, 0.5, colors[0]), (1.03 - x, 0.5, colors[1])) for x in steps]
    for frame in range((frames - hidden) // 2, (frames - hidden) // 2 + hidden):
        people[frame] = people[frame][:1]
    return steps, people


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hidden", [0, 1, 5])
@pytest.mark.parametrize("colors", [(RED, BLUE), (RED, RED)])
def test_nobody_trades_places_when_two_cross(hidden, colors, seed):
    steps, people = crossing(hidden=hidden, colors=colors)
    order = np.random.default_rng(seed)
    people = [[found[i] for i in order.permutation(len(found))] for found in people]
    np.testing.assert_allclose(middles(track_person(people, "1")), steps, atol=1e-3)
    second = middles(track_person(people, "2"))
    seen = ~np.isnan(second)
    assert seen.sum() == len(steps) - hidden
    np.testing.assert_allclose(second[seen], (1.03 - steps)[seen], atol=1e-3)


def test_clothes_tell_two_apart_who_turn_back():
    """They meet, stand in one place for a moment, and go back to where they came from."""
    steps = np.concatenate([np.linspace(0.2, 0.45, 10), np.linspace(0.45, 0.2, 10)])
    people = [scene((x, 0.5, RED), (1 - x, 0.5, BLUE)) for x in steps]
    people[9:11] = [people[9][:1], people[10][:1]]
    np.testing.assert_allclose(middles(track_person(people, "1")), steps, atol=1e-3)


@pytest.mark.parametrize("person, place", [("largest", 0.9), ("center", 0.6), ("1", 0.2), ("2", 0.6), ("3", 0.9)])
def test_the_choice(person, place):
    people = [scene((0.6, 0.4, RED), (0.9, 0.6, BLUE), (0.2, 0.5, RED))] * 3
    chosen = track_person(people, person)
    expected = pose(place, {0.9: 0.6, 0.6: 0.4, 0.2: 0.5}[place])
    for frame in range(3):
        np.testing.assert_array_equal(chosen.body[frame], expected.body)


def test_the_third_may_come_later():
    late = [scene((0.2, 0.5, RED), (0.5, 0.5, BLUE))] * 2 + [
        scene((0.2, 0.5, RED), (0.5, 0.5, BLUE), (0.8, 0.5, RED))
    ] * 2
    chosen = track_person(late, "3")
    assert chosen.body_confidence.any(-1).tolist() == [False, False, True, True]


def test_somebody_who_comes_back_alone_is_taken_up_again():
    people = [scene((0.2, 0.5, RED)), [], [], scene((0.9, 0.5, RED)), scene((0.9, 0.5, RED))]
    np.testing.assert_allclose(middles(track_person(people)), [0.2, np.nan, np.nan, 0.9, 0.9], atol=1e-3)


def test_nobody_and_nothing():
    assert not track_person([[], []]).body_confidence.any()
    assert len(track_person([])) == 0
    assert Detection.from_pose(Keypoints.empty(), np.zeros((4, 4, 3), np.uint8)) is None


@pytest.mark.parametrize("person", ["", "0", "-1", "left", "1.5"])
def test_impossible_choices_name_the_flag(person):
    with pytest.raises(UserError, match=r"^--person .*: must be largest, center, or a number from 1"):
        track_person([[]], person)


def test_a_person_who_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"^--person 4: no more than 2 people are seen in any frame"):
        track_person(crossing()[1], "4")
