"""Poses in .npy files: MusePose's, and plain arrays."""

import os

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.files import read_poses

CANVAS = (400, 300)


def musepose_frame(people=2, seed=0):
    random = np.random.default_rng(seed)
    subset = np.arange(18 * people, dtype=float).reshape(people, 18)
    subset[0, 4] = -1
    hands, faces = random.uniform(0, 1, (2 * people, 21, 2)), random.uniform(0, 1, (people, 68, 2))
    hands[people, 3], faces[0, 9] = -1, -1
    return {
        "bodies": {"candidate": random.uniform(0, 1, (18 * people, 2)), "subset": subset},
        "hands": hands,
        "faces": faces,
    }


@pytest.mark.parametrize("people", [1, 2, 3])
def test_museposes_frames_hold_their_first_person(tmp_path, people):
    frames = [musepose_frame(people, seed) for seed in range(3)]
    np.save(tmp_path / "clip.npy", np.array(frames), allow_pickle=True)
    poses, canvas = read_poses(tmp_path / "clip.npy", CANVAS)
    assert canvas == CANVAS and len(poses) == 3
    for pose, frame in zip(poses, frames, strict=True):
        np.testing.assert_allclose(pose.body, frame["bodies"]["candidate"][:18], rtol=1e-6)
        np.testing.assert_array_equal(pose.body_confidence, np.arange(18) != 4)
        np.testing.assert_allclose(pose.hands[0], frame["hands"][0], rtol=1e-6)
        np.testing.assert_allclose(pose.hands[1, 5:], frame["hands"][people, 5:], rtol=1e-6)
        assert pose.hands_confidence[1].sum() == 20 and pose.hands_confidence[1, 3] == 0
        assert pose.face_confidence.sum() == 67 and pose.face_confidence[9] == 0


def test_a_frame_without_people_is_missing(tmp_path):
    empty = {"bodies": {"candidate": np.zeros((0, 2)), "subset": np.zeros((0, 18))}, "hands": [], "faces": []}
    np.save(tmp_path / "clip.npy", np.array([musepose_frame(), empty]), allow_pickle=True)
    poses, _ = read_poses(tmp_path / "clip.npy", CANVAS)
    assert poses.body_confidence[0].any() and not poses.body_confidence[1].any()


def test_arrays_in_pixels_and_in_fractions(tmp_path):
    fractions = np.random.default_rng(0).uniform(0, 1, (4, 18, 3))
    np.save(tmp_path / "fractions.npy", fractions)
    np.save(tmp_path / "pixels.npy", fractions * (300, 400, 1))
    for name in ("fractions.npy", "pixels.npy"):
        poses, _ = read_poses(tmp_path / name, CANVAS)
        np.testing.assert_allclose(poses.body, fractions[..., :2], rtol=1e-5)
        np.testing.assert_allclose(poses.body_confidence, fractions[..., 2], rtol=1e-5)


def test_whole_bodies_with_and_without_dwposes_neck(tmp_path):
    points = np.random.default_rng(0).uniform(0.1, 1, (2, 133, 3))
    np.save(tmp_path / "133.npy", points)
    np.save(tmp_path / "134.npy", np.insert(points, 17, 0.5, axis=1))
    one, other = (read_poses(tmp_path / name, CANVAS)[0] for name in ("133.npy", "134.npy"))
    np.testing.assert_array_equal(one.body, other.body)
    np.testing.assert_allclose(one.hands[:, 1, 20], points[:, 132, :2], rtol=1e-6)
    np.testing.assert_array_equal(one.face, other.face)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARM"],)


def test_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    np.save(tmp_path / "bad.npy", np.array([{"bodies": Harmful()}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"bad\.npy: .*which may run code"):
        read_poses(tmp_path / "bad.npy", CANVAS)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((3, 17, 3)),
        np.zeros((0, 18, 3)),
        np.zeros(3),
        np.full((1, 18, 3), np.nan),
        np.array([{"a": 1}]),
        np.array(["x"]),
    ],
    ids=str,
)
def test_anything_else_is_an_error(tmp_path, content):
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match=r"bad\.npy: not a readable file of DWPose.s or MusePose.s poses"):
        read_poses(tmp_path / "bad.npy", CANVAS)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '|O'"])
def test_so_is_a_damaged_file(tmp_path, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npy: not a readable file of DWPose.s or MusePose.s poses"):
        read_poses(tmp_path / "bad.npy", CANVAS)


def test_the_canvas_must_be_given(tmp_path):
    np.save(tmp_path / "clip.npy", np.ones((1, 18, 3)))
    with pytest.raises(UserError, match=r"clip\.npy: .*--canvas WIDTH HEIGHT"):
        read_poses(tmp_path / "clip.npy")
