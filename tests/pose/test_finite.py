"""No number that leaves this room is NaN or infinite, whatever keypoints come in."""

import dataclasses
import warnings

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.align import ALIGN_METHODS, align_motion, crop_box
from animate_jax.pose.draw import STYLES, draw
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.smooth import smooth
from animate_jax.pose.track import Detection, track_person

pytestmark = pytest.mark.compiles

CANVASES = (400, 300), (240, 320), (1, 16), (4096, 256)
STANDING = np.array([
    (0.50, 0.15), (0.50, 0.25), (0.42, 0.25), (0.38, 0.38), (0.36, 0.50), (0.58, 0.25), (0.62, 0.38), (0.64, 0.50),
    (0.45, 0.52), (0.45, 0.70), (0.45, 0.88), (0.55, 0.52), (0.55, 0.70), (0.55, 0.88), (0.48, 0.13), (0.52, 0.13),
    (0.46, 0.14), (0.54, 0.14),
])  # fmt: skip
ARMS_UP = STANDING.copy()
ARMS_UP[[3, 4, 6, 7]] = (0.34, 0.14), (0.30, 0.02), (0.66, 0.14), (0.70, 0.02)


def pose(body) -> Keypoints:
    frames = body.shape[:-2]
    body_confidence = np.ones((*frames, 18), np.float32)
    return dataclasses.replace(Keypoints.empty(*frames), body=body.astype(np.float32), body_confidence=body_confidence)


def odd(random: np.random.Generator, *frames: int) -> Keypoints:
    """Somebody, with what a damaged file or a detector in trouble may hold."""
    body = STANDING + random.normal(0, random.choice([0, 0.01, 0.1, 3]), (*frames, 18, 2))
    hands, face = (body[..., :1, :] + random.normal(0, 0.02, (*frames, n, 2)) for n in (42, 68))
    arrays = {"body": body, "hands": hands.reshape(*frames, 2, 21, 2), "face": face}
    for name, points in list(arrays.items()):
        confidence = np.ones(points.shape[:-1])
        kinds = random.choice(["one place", "one line", "nowhere", "lost points", "lost frames", "far", "tiny"], 2)
        chosen = random.random(confidence.shape) < random.choice([0.05, 0.5, 1])
        rows = chosen[..., :1] if name != "hands" else chosen[..., :1, :1]
        if "one place" in kinds:
            points[chosen] = 0.5
        if "one line" in kinds:
            points[..., 0] = 0.5
        if "tiny" in kinds:
            points *= random.choice([1e-6, 1e-38, 1e-45])
        if "far" in kinds:
            points[chosen] = random.choice([1e6, -1e20, 3e38, -3e38], points[chosen].shape)
        if "nowhere" in kinds:
            points[chosen] = random.choice([np.nan, np.inf, -np.inf])
        if "lost points" in kinds:
            confidence[chosen] = 0
        if "lost frames" in kinds:
            confidence = np.where(rows, 0, confidence)
        arrays |= {name: points.astype(np.float32), f"{name}_confidence": confidence.astype(np.float32)}
    return Keypoints(**arrays)


def finite(keypoints: Keypoints) -> bool:
    return all(np.isfinite(getattr(keypoints, name)).all() for name in Keypoints.names())


@pytest.mark.parametrize("method", ALIGN_METHODS)
def test_alignments(method):
    """And what they make can be drawn."""
    for seed in range(80):
        random = np.random.default_rng(seed)
        canvas, other = (CANVASES[index] for index in random.permutation(4)[:2])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = align_motion(odd(random, int(random.integers(1, 6))), canvas, odd(random), other, method)
            assert finite(result), seed
            draw(result, 64, 48, str(random.choice([*STYLES])))


def test_smoothing_tracking_and_cutting():
    frame = np.zeros((48, 64, 3), np.uint8)
    for seed in range(80):
        random = np.random.default_rng(seed)
        clip, canvas = odd(random, 5), CANVASES[seed % len(CANVASES)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert finite(smooth(clip, canvas, 10.0)), seed
            found = [Detection.from_pose(clip[index], frame) for index in range(5)]
            assert finite(track_person([[one] if one else [] for one in found])), seed
            assert np.isfinite(crop_box(clip[0], canvas, 0.75)).all(), seed


@pytest.mark.parametrize("lost", [0, 7, 20])
@pytest.mark.parametrize("seen", [slice(None), slice(0, 8)], ids=["whole", "cut at the waist"])
def test_one_frame_without_anybody_changes_nothing_else(lost, seen):
    """In a clip that never holds the reference's pose."""
    clip = pose(STANDING + 0.002 * np.arange(21)[:, None, None])
    reference = pose(ARMS_UP)
    hidden = np.ones(18, bool)
    hidden[seen] = False
    reference.body_confidence[hidden] = 0
    whole = align_motion(clip, (320, 240), reference, (320, 240), "bones")
    clip.body[lost], clip.body_confidence[lost] = 0, 0
    result = align_motion(clip, (320, 240), reference, (320, 240), "bones")
    others = np.arange(21) != lost
    # Where the person first stands is where the reference stands: a step later when the first frame is lost.
    shift = (whole.body - result.body)[others].mean((0, 1)) if lost == 0 else 0
    np.testing.assert_allclose((result.body + shift)[others], whole.body[others], atol=0.01)


def test_bounded_leaves_what_is_in_order():
    clip = pose(STANDING[None])
    for name in Keypoints.names():
        np.testing.assert_array_equal(getattr(clip.bounded(), name), getattr(clip, name))
        assert getattr(clip.bounded(), name).dtype == np.float32


@pytest.mark.parametrize("style", STYLES)
def test_points_that_are_nowhere_are_not_drawn_in_silence(style):
    clip = pose(STANDING[None])
    clip.body[0, 3] = np.nan
    with pytest.raises(UserError, match=r"1 of 18 body points are nowhere .*confidence 0"):
        draw(clip, 64, 48, style)
    clip.body_confidence[0, 3] = 0
    draw(clip, 64, 48, style)


@pytest.mark.parametrize("style", STYLES)
def test_points_without_measure_are_drawn_at_once(style):
    clip = pose(STANDING[None])
    clip.body[0, ::2] = 3e38
    draw(clip, 4096, 256, style)
