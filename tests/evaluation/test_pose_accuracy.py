import dataclasses

import numpy as np
import pytest

from animate_jax.evaluation.pose_accuracy import JOINTS, pck
from animate_jax.pose.keypoints import BODY, Keypoints

SIZE = 200, 100  # height, width in pixels


def standing(frames=2):
    """Everybody's joints on a line 10 pixels apart, but the torso 50 pixels long."""
    body = np.zeros((frames, 18, 2), np.float32)
    body[..., 1] = np.arange(18) * 10
    for side in ("right", "left"):
        body[:, BODY.index(f"{side}_shoulder"), 1], body[:, BODY.index(f"{side}_hip"), 1] = 40, 90
    body /= np.float32(SIZE[::-1])
    return dataclasses.replace(Keypoints.empty(frames), body=body, body_confidence=np.ones((frames, 18), np.float32))


def shifted(keypoints, pixels, joints=slice(None)):
    body = keypoints.body.copy()
    body[:, joints, 0] += pixels / SIZE[1]
    return dataclasses.replace(keypoints, body=body)


def without(keypoints, joint, frames=slice(None)):
    confidence = keypoints.body_confidence.copy()
    confidence[frames, joint] = 0
    return dataclasses.replace(keypoints, body_confidence=confidence)


def test_the_threshold_is_a_part_of_the_torso():
    driven = standing()
    assert pck(driven, driven, SIZE).tolist() == [1, 1]
    assert pck(shifted(driven, 9.9), driven, SIZE, 0.2).tolist() == [1, 1]
    assert pck(shifted(driven, 10.1), driven, SIZE, 0.2).tolist() == [0, 0]
    assert pck(shifted(driven, 5.1), driven, SIZE, 0.1).tolist() == [0, 0]
    assert pck(shifted(driven, 11, [JOINTS[0]]), driven, SIZE) == pytest.approx(1 - 1 / len(JOINTS))


def test_a_joint_that_is_not_found_is_wrong_and_one_not_driven_does_not_count():
    driven, joint = standing(), BODY.index("left_wrist")
    assert pck(without(driven, joint), driven, SIZE) == pytest.approx(1 - 1 / len(JOINTS))
    assert pck(shifted(driven, 50, [joint]), without(driven, joint), SIZE).tolist() == [1, 1]


def test_without_a_driven_person_there_is_no_value():
    driven = standing()
    found = pck(driven, without(driven, slice(None), 0), SIZE)
    assert np.isnan(found[0]) and found[1] == 1
    assert np.isnan(pck(driven, Keypoints.empty(2), SIZE)).all()


def test_eyes_and_ears_do_not_count():
    driven = standing()
    assert pck(shifted(driven, 90, [14, 15, 16, 17]), driven, SIZE).tolist() == [1, 1]
