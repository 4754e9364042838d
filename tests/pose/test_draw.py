import time
from pathlib import Path

import numpy as np
import pytest

from animate_jax.pose.draw import COLORS, LIMBS, draw
from animate_jax.pose.keypoints import BODY, Keypoints

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "pose").glob("*.npz"))


def golden(path=GOLDEN[0]):
    with np.load(path) as file:
        arrays = dict(file)
    keypoints = Keypoints(
        body=arrays["body"],
        body_confidence=arrays["visible"].astype(np.float64),
        hands=arrays["hands"],
        hands_confidence=(arrays["hands"] >= 0).all(-1).astype(np.float64),
        face=arrays["face"],
        face_confidence=np.ones(68),
    )
    return keypoints, arrays


def standing():
    """A person from the front: the right side on the left of the picture."""
    points = {
        "nose": (0.5, 0.15), "neck": (0.5, 0.25),
        "right_eye": (0.46, 0.12), "left_eye": (0.54, 0.12), "right_ear": (0.42, 0.14),
        "left_ear": (0.58, 0.14),
        "right_shoulder": (0.38, 0.25), "right_elbow": (0.3, 0.4), "right_wrist": (0.25, 0.52),
        "left_shoulder": (0.62, 0.25), "left_elbow": (0.7, 0.4), "left_wrist": (0.75, 0.52),
        "right_hip": (0.42, 0.55), "right_knee": (0.42, 0.75), "right_ankle": (0.42, 0.95),
        "left_hip": (0.58, 0.55), "left_knee": (0.58, 0.75), "left_ankle": (0.58, 0.95),
    }  # fmt: skip
    keypoints = Keypoints.empty()
    keypoints.body[:] = [points[name] for name in BODY]
    keypoints.body_confidence[:] = 1
    return keypoints


def with_missing(keypoints, *names):
    keypoints = Keypoints(*(getattr(keypoints, name).copy() for name in Keypoints.names()))
    for name in names:
        keypoints.body_confidence[BODY.index(name)] = 0.1
    return keypoints


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("style", ["moore", "musepose"])
def test_equals_the_peers_picture(path, style):
    keypoints, arrays = golden(path)
    np.testing.assert_array_equal(draw(keypoints, *arrays[style].shape[:2], style), arrays[style])


def test_paper_is_moore_without_the_face():
    keypoints, arrays = golden()
    faceless = Keypoints(*(getattr(keypoints, name) for name in Keypoints.names()[:-1]), np.zeros(68))
    paper = draw(keypoints, 512, 384, "paper")
    np.testing.assert_array_equal(paper, draw(faceless, 512, 384, "moore"))
    assert (paper != arrays["moore"]).any()


@pytest.mark.parametrize("style", ["paper", "moore", "musepose", "tiny"])
def test_points_that_are_missing_are_not_drawn(style):
    assert not draw(Keypoints.empty(2), 64, 48, style).any()
    whole = draw(standing(), 128, 96, style)
    cut = draw(with_missing(standing(), "left_wrist"), 128, 96, style)
    differs = np.argwhere((whole != cut).any(-1)) / (128, 96)
    assert len(differs)
    assert differs.min(0)[0] > 0.35  # only the left lower arm: from elbow to wrist
    assert differs.min(0)[1] > 0.65
    assert differs.max(0)[0] < 0.57


@pytest.mark.parametrize("style", ["paper", "moore", "musepose", "tiny"])
def test_frames_are_drawn_independently(style):
    frames = Keypoints.stack([standing(), Keypoints.empty(), standing().flipped()])
    pictures = draw(frames, 64, 48, style)
    assert (pictures.shape, pictures.dtype) == ((3, 64, 48, 3), np.uint8)
    for index in range(3):
        np.testing.assert_array_equal(pictures[index], draw(frames[index], 64, 48, style))


def test_points_far_outside_the_picture_are_harmless():
    for style in ("paper", "musepose", "tiny"):
        draw(standing().affine((100, 100), (-50, -50)), 64, 48, style)
        assert not draw(standing().affine((1, 1), (3, -4)), 64, 48, style).any()


def test_tiny_draws_each_limb_in_its_colour_and_shows_the_sides():
    """Seen at the middle of limbs that no other limb covers; mirroring trades the sides' colors."""
    picture = draw(standing(), 128, 96, "tiny")
    for name, child in [
        ("right_elbow", "right_wrist"),
        ("left_elbow", "left_wrist"),
        ("left_knee", "left_ankle"),
    ]:
        limb = LIMBS.index((BODY.index(name), BODY.index(child)))
        x, y = (standing().body[[BODY.index(name), BODY.index(child)]].mean(0) * (96, 128)).astype(int)
        np.testing.assert_array_equal(picture[y, x], COLORS[limb])
    np.testing.assert_array_equal(draw(standing().flipped(), 128, 96, "tiny"), picture)
    assert (picture[:, ::-1] != picture).any()


def test_tiny_limbs_have_the_stated_thickness_and_soft_edges():
    """A vertical limb, 3.2 of 128 pixels wide, wherever it stands between the pixels."""
    for shift in (0, 0.3 / 96, 0.7 / 96):
        picture = draw(standing().affine((1, 1), (shift, 0)), 128, 96, "tiny")
        row = picture[108, 50:].astype(float).sum(-1) / sum(COLORS[LIMBS.index((12, 13))])
        np.testing.assert_allclose(row.sum(), 3.2, atol=0.02)
        assert ((row > 0.02) & (row < 0.98)).any()
    double = draw(standing(), 256, 192, "tiny")[216, 100:].astype(float).sum(-1) / sum(COLORS[LIMBS.index((12, 13))])
    np.testing.assert_allclose(double.sum(), 6.4, atol=0.02)


def test_tiny_leaves_out_hands_and_face():
    keypoints, _ = golden()
    body = Keypoints.empty()
    body.body[:], body.body_confidence[:] = keypoints.body, keypoints.body_confidence
    np.testing.assert_array_equal(draw(keypoints, 128, 96, "tiny"), draw(body, 128, 96, "tiny"))


def test_tiny_is_fast_enough_for_loading_data():
    """At least 500 frames per second of one processor; the best of several runs, others may disturb."""
    frames = Keypoints.stack([standing()] * 20)
    draw(frames, 128, 96, "tiny")
    best = np.inf
    for _ in range(5):
        begin = time.process_time()
        draw(frames, 128, 96, "tiny")
        best = min(best, time.process_time() - begin)
    assert 20 / best >= 500
