import importlib
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from animate_jax.data.mocap_people import MocapPeople
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import BODY

pytestmark = pytest.mark.compiles

SPLITS = "train", "test_identity", "test_motion", "test_both"


@pytest.fixture(scope="module")
def people():
    return {split: MocapPeople(split, height=64, width=48) for split in SPLITS}


def test_a_clip_has_the_promised_shapes(people):
    clip = people["train"].clip(0, frames=5)
    assert clip.frames.shape == (5, 64, 48, 3) and clip.frames.dtype == np.uint8
    assert clip.mask.shape == (5, 64, 48) and clip.mask.dtype == np.uint8
    assert clip.keypoints.body.shape == (5, 18, 2) and clip.keypoints.hands.shape == (5, 2, 21, 2)
    assert not clip.keypoints.face_confidence.any()


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_index_gives_the_same_clip_and_another_index_another(people, split):
    first = people[split].clip(3, frames=3)
    again = MocapPeople(split, height=64, width=48).clip(3, frames=3)
    other = people[split].clip(4, frames=3)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.keypoints.body, again.keypoints.body)
    assert (first.identity, first.motion) == (again.identity, again.motion)
    assert np.abs(first.frames.astype(int) - other.frames).mean() > 5


def test_seeds_and_splits_differ(people):
    clips = [people[split].clip(0, frames=2).frames for split in SPLITS]
    clips.append(MocapPeople("train", seed=1, height=64, width=48).clip(0, frames=2).frames)
    for i, first in enumerate(clips):
        for second in clips[:i]:
            assert np.abs(first.astype(int) - second).mean() > 5


def test_identities_and_motions_are_held_out_whole(people):
    drawn = {split: [people[split].clip(index, frames=2) for index in range(16)] for split in SPLITS}
    identities = {split: {clip.identity for clip in clips} for split, clips in drawn.items()}
    motions = {split: {m for clip in clips for m in clip.motion.split("+")} for split, clips in drawn.items()}
    seen = identities["train"] | identities["test_motion"]
    held_out = identities["test_identity"] | identities["test_both"]
    assert not seen & held_out
    seen = motions["train"] | motions["test_identity"]
    held_out = motions["test_motion"] | motions["test_both"]
    assert not seen & held_out
    assert len(identities["train"]) > 14 and len(motions["train"]) > 6
    assert motions["test_motion"] <= {"dance_b", "kick", "cmu_01_03_tail", "boxing_tail"}


def test_held_out_takes_end_seconds_before_their_tails_begin():
    from animate_jax.data.mocap_people.motion import TAKES

    for name in ("cmu_01_03", "boxing"):
        assert TAKES[name][0] == TAKES[f"{name}_tail"][0] == name
        assert TAKES[f"{name}_tail"][1] - TAKES[name][2] >= 2
    assert TAKES["boxing_fallen"][1] - TAKES["boxing_tail"][2] > 1


def test_keypoints_lie_on_the_person():
    on, count = 0, 0
    for index in range(10):
        clip = MocapPeople("train", height=96, width=72).clip(index, frames=3)
        assert 0.02 < (clip.mask > 127).mean() < 0.8
        for points, seen in (
            (clip.keypoints.body, clip.keypoints.body_confidence),
            (clip.keypoints.hands, clip.keypoints.hands_confidence),
        ):
            inside = points[seen > 0]
            assert (inside >= 0).all() and (inside < 1).all()
            frame = np.broadcast_to(np.arange(3).reshape(-1, *[1] * (seen.ndim - 1)), seen.shape)[seen > 0]
            x, y = (inside * [72, 96]).astype(int).T
            near = np.max(
                [np.pad(clip.mask, ((0, 0), (1, 1), (1, 1)))[frame, y + i, x + j] for i in range(3) for j in range(3)],
                axis=0,
            )
            on, count = on + (near > 0).sum(), count + len(near)
    assert count > 1000 and on / count > 0.99


def test_left_and_right_are_the_persons_own():
    """Where both eyes are seen the person faces us, so her right shoulder is on the left of the picture."""
    right, left = BODY.index("right_shoulder"), BODY.index("left_shoulder")
    eyes = [BODY.index("right_eye"), BODY.index("left_eye")]
    data = MocapPeople("train", height=64, width=48)
    agree = []
    for index in range(16):
        points = data.clip(index, frames=3).keypoints
        apart = points.body[:, left, 0] - points.body[:, right, 0]
        faces_us = points.body_confidence[:, eyes].all(1) & (np.abs(apart) > 0.08)
        agree += list(apart[faces_us] > 0)
    assert len(agree) > 8 and np.mean(agree) > 0.9


@pytest.mark.parametrize(("height", "width"), [(33, 57), (101, 40), (7, 5)])
def test_any_picture_size(height, width):
    clip = MocapPeople("test_both", height=height, width=width, fps=7.5).clip(1, frames=2)
    assert clip.frames.shape == (2, height, width, 3) and clip.mask.max() > 100


def test_long_clips_and_single_frames(people):
    assert len(people["train"].clip(2, frames=90).frames) == 90
    assert len(people["train"].clip(2, frames=1).frames) == 1


def test_the_background_stands_still():
    clip = MocapPeople("train").clip(5, frames=4)
    sky = (clip.mask.max(0) == 0)[:20]
    assert sky.any()
    np.testing.assert_array_equal(clip.frames[0, :20][sky], clip.frames[3, :20][sky])


def test_an_orbiting_camera_moves_the_background_and_keeps_the_person_in_the_picture():
    clip = MocapPeople("train", orbits=1.0).clip(5, frames=12)
    sky = (clip.mask.max(0) == 0)[:20]
    assert (clip.frames[0, :20][sky] != clip.frames[-1, :20][sky]).any()
    assert (clip.mask.reshape(12, -1).max(1) > 200).all()
    assert np.array_equal(clip.frames, MocapPeople("train", orbits=1.0).clip(5, frames=12).frames)


def test_near_cameras_cut_the_legs_off():
    whole, near = (MocapPeople("train", close_ups=share).clip(5, frames=2).mask for share in (0.0, 1.0))
    assert not whole[:, -1].any() and near[:, -1].any()


def test_depth_is_there_where_the_person_is():
    clip = MocapPeople("train").clip(5, frames=2)
    np.testing.assert_array_equal(clip.depth > 0, clip.mask > 0)
    person = clip.depth[clip.depth > 0]
    assert 0.4 < person.min() and np.ptp(person) < 4  # meters


def test_an_unknown_split_is_a_user_error():
    with pytest.raises(UserError, match="test_both"):
        MocapPeople("validation")


def test_without_numba_a_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("animate_jax.data.mocap_people")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError, match=r"needs numba: pip install 'animate-jax\[data\]'"):
        importlib.import_module("animate_jax.data.mocap_people")
