from pathlib import Path

import cv2
import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose import litert
from animate_jax.pose.detect import _fix_left_right_swaps, detect, require_person, segment
from animate_jax.pose.keypoints import BODY, LEFT_RIGHT, Keypoints
from animate_jax.video.images import read_image

# Eileen Collins, NASA, public domain. Where the points are was read off the picture, as fractions of it.
ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"
TRUTH = {
    "nose": (0.44, 0.24), "right_eye": (0.40, 0.21), "left_eye": (0.47, 0.21),
    "right_shoulder": (0.21, 0.44), "left_shoulder": (0.60, 0.49),
}  # fmt: skip


HEAD = {name: TRUTH[name] for name in ("nose", "right_eye", "left_eye")}  # safe however small the person is


@pytest.fixture(scope="module")
def astronaut():
    return read_image(ASTRONAUT)


def assert_found(keypoints, truth=TRUTH, atol=0.06):
    for name, position in truth.items():
        assert keypoints.body_confidence[BODY.index(name)] > 0.5, name
        np.testing.assert_allclose(keypoints.body[BODY.index(name)], position, atol=atol, err_msg=name)


def test_finds_the_astronaut(astronaut):
    keypoints = detect(astronaut[None])[0]
    assert_found(keypoints)
    neck = keypoints.body[[BODY.index("right_shoulder"), BODY.index("left_shoulder")]].mean(0)
    np.testing.assert_allclose(keypoints.body[BODY.index("neck")], neck, atol=1e-5)


def test_the_mask_holds_the_person(astronaut):
    pose = detect(astronaut[None])[0]
    mask = segment(astronaut, pose)
    height, width = mask.shape
    assert mask.shape == astronaut.shape[:2] and mask.dtype == np.uint8 and 0.1 < (mask > 127).mean() < 0.7
    x, y = (pose.body[[0, 1, 2, 5]] * (width, height)).astype(int).T  # nose, neck, shoulders
    assert mask[y, x].min() > 127 and mask[: height // 10, : width // 10].max() < 50
    assert segment(np.zeros_like(astronaut), pose) is None


def test_what_the_picture_does_not_show_is_missing(astronaut):
    keypoints = detect(astronaut[None])[0]
    for name in ("right_knee", "left_knee", "right_ankle", "left_ankle"):
        assert keypoints.body_confidence[BODY.index(name)] == 0, name
    assert not keypoints.hands_confidence.any()
    assert not keypoints.face_confidence.any()


def test_positions_follow_size_and_shape_of_the_picture(astronaut):
    """Enlarged fourfold and set into a wide picture: the same places of the same person."""
    large = cv2.resize(astronaut, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    wide = np.pad(large, ((0, 0), (0, large.shape[1]), (0, 0)))
    assert_found(detect(wide[None])[0], {name: (x / 2, y) for name, (x, y) in HEAD.items()}, atol=0.04)


def test_follows_a_moving_person_and_finds_them_again(astronaut):
    """The person moves to the right, disappears for two frames and comes back."""
    wide = np.pad(astronaut, ((0, 0), (0, 64), (0, 0)))
    shifts = [0, 12, 24, 36, None, None, 48]
    frames = [np.zeros_like(wide) if shift is None else np.roll(wide, shift, axis=1) for shift in shifts]
    finished = []
    keypoints = detect(iter(frames), finished.append)
    assert finished == [1, 2, 3, 4, 5, 6, 7]
    for shift, pose in zip(shifts, keypoints, strict=True):
        if shift is None:
            assert not pose.body_confidence.any()
        else:
            assert_found(pose, {name: ((384 * x + shift) / 448, y) for name, (x, y) in HEAD.items()}, atol=0.04)


def test_the_larger_of_two_people_is_chosen(astronaut):
    small = cv2.resize(astronaut, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    small = np.pad(small, ((0, 192), (0, 0), (0, 0)))
    right = {name: ((x + 0.5) / 1.5, y) for name, (x, y) in HEAD.items()}
    left = {name: (x / 1.5, y) for name, (x, y) in HEAD.items()}
    assert_found(detect(np.concatenate([small, astronaut], 1)[None])[0], right, atol=0.04)
    assert_found(detect(np.concatenate([astronaut, small], 1)[None])[0], left, atol=0.04)


def test_nobody_there_is_an_error_naming_the_file():
    keypoints = detect(np.full((2, 120, 90, 3), 127, np.uint8))
    assert len(keypoints) == 2
    with pytest.raises(UserError, match=r"^walk\.mp4: no person found: .*$"):
        require_person(keypoints, "walk.mp4")
    assert len(detect(iter([]))) == 0


def test_nothing_is_printed(astronaut, capfd):
    litert._interpreter.cache_clear()
    detect(astronaut[None])
    assert capfd.readouterr() == ("", "")


def test_present_people_satisfy_require_person(astronaut):
    require_person(detect(astronaut[None]), "picture.jpg")


def walk(frames=12):
    """A person seen from the front who drifts to the right."""
    body = np.tile(np.float32([0.5, 0.5]), (frames, 18, 1))
    for sign, row in [(-1, 0), (1, 1)]:
        for pair in LEFT_RIGHT:
            body[:, pair[row], 0] += sign * 0.1
    body[:, [2, 5], 1], body[:, [8, 11], 1] = 0.3, 0.6
    body[:, :, 0] += 0.01 * np.arange(frames, dtype=np.float32)[:, None]
    empty = Keypoints.empty(frames)
    return Keypoints(
        body, np.ones_like(empty.body_confidence), *(getattr(empty, name) for name in Keypoints.names()[2:])
    )


def exchanged(keypoints, frames):
    order = np.arange(18)
    for right, left in LEFT_RIGHT:
        order[[right, left]] = left, right
    body = keypoints.body.copy()
    body[frames] = body[frames][:, order]
    return Keypoints(body, *(getattr(keypoints, name) for name in Keypoints.names()[1:]))


@pytest.mark.parametrize("frames", [[], [4], [0], [11], [3, 4, 5, 9]])
def test_sides_exchanged_for_a_few_frames_are_put_right(frames):
    np.testing.assert_array_equal(_fix_left_right_swaps(exchanged(walk(), frames), (200, 100, 3)).body, walk().body)


def test_a_person_who_turns_round_keeps_changing_sides():
    """The shoulders pass through each other: left and right change places for good, no mistake."""
    frames = walk(9)
    turn = np.cos(np.linspace(0, np.pi, 9, dtype=np.float32))[:, None]
    body = frames.body.copy()
    body[..., 0] = 0.5 + (walk(1).body[..., 0] - 0.5) * turn
    turning = Keypoints(body, *(getattr(frames, name) for name in Keypoints.names()[1:]))
    np.testing.assert_array_equal(_fix_left_right_swaps(turning, (200, 100, 3)).body, body)
