"""What is measured of a video, on a bright box that moves over a still background."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from animate_jax.evaluation import scores
from animate_jax.evaluation.image_quality import psnr, ssim
from animate_jax.evaluation.scores import Networks, color_drift, flicker, frame_scores, measure
from animate_jax.perceptual import lpips
from animate_jax.pose.keypoints import Keypoints

pytestmark = pytest.mark.compiles

DRIFTS = "background_drift", "person_drift"
FRAMES = 18  # more than go through in one pass


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    background = scipy.ndimage.gaussian_filter(rng.uniform(0, 255, (64, 48, 3)), (2, 2, 0))
    video = np.repeat(background.astype(np.uint8)[None], FRAMES, 0)
    for frame in range(FRAMES):
        video[frame, 10:30, 4 + frame : 14 + frame] = [250, 200, 20]
    return video


@pytest.fixture(scope="module")
def boxes():
    left = 4 + np.arange(FRAMES)
    return np.stack([left, np.full(FRAMES, 10), left + 10, np.full(FRAMES, 30)], -1)


@pytest.fixture(scope="module")
def alex():
    """Random LPIPS weights: the scores only have to pass them on."""
    rng = np.random.default_rng(0)
    convs, channels = [], 3
    for size, width in [conv for stage in lpips.STAGES["alex"] for conv in stage]:
        kernel = rng.normal(0, channels**-0.5 / size, (size, size, channels, width)).astype(np.float32)
        convs.append({"kernel": kernel, "bias": np.zeros(width, np.float32)})
        channels = width
    heads = [np.full(stage[-1][1], 1 / 64, np.float32) for stage in lpips.STAGES["alex"]]
    return {"convs": convs, "heads": heads}


def noisy(video, amount):
    noise = np.random.default_rng(1).normal(0, amount, video.shape)
    return np.clip(video + noise, 0, 255).astype(np.uint8)


def test_scores_are_means_over_all_frames(truth, boxes):
    video = noisy(truth, 8)
    got = frame_scores(video, truth, boxes, Networks())
    a, b = (jnp.asarray(x, jnp.float32) / 255 for x in (video, truth))
    for name, metric in {"psnr": psnr, "ssim": ssim}.items():
        np.testing.assert_allclose(got[name], metric(a, b).mean(), rtol=1e-5)
        np.testing.assert_allclose(got[f"box_{name}"], metric(a, b, boxes).mean(), rtol=1e-5)
    assert set(got) == {"psnr", "ssim", "l1", "box_psnr", "box_ssim", "box_l1", "disco_psnr", "disco_ssim"}


def test_worse_videos_score_worse(truth, boxes, alex):
    blurred = [scipy.ndimage.gaussian_filter(truth, (0, s, s, 0)) for s in (0.7, 2)]
    series = {
        "noise": [truth, noisy(truth, 5), noisy(truth, 20)],
        "blur": [truth, *blurred],
        "order": [truth, np.roll(truth, 1, 0), truth[::-1]],
    }
    for kind, videos in series.items():
        of = [frame_scores(np.ascontiguousarray(v), truth, boxes, Networks(alex=alex)) for v in videos]
        for name in ("psnr", "ssim", "box_psnr", "box_ssim"):
            values = [x[name] for x in of]
            assert values == sorted(values, reverse=True) and values[0] > values[-1], (kind, name, values)
        for name in ("l1", "box_l1", "lpips_alex", "box_lpips_alex"):
            values = [x[name] for x in of]
            assert values == sorted(values) and values[-1] > values[0], (kind, name, values)


def test_colors_that_wander_are_measured_where_they_wander(truth):
    masks = np.zeros(truth.shape[:3], np.uint8)
    for frame in range(FRAMES):
        masks[frame, 10:30, 4 + frame : 14 + frame] = 1
    assert color_drift(truth, masks) == pytest.approx((0, 0), abs=1e-6)
    fading = truth.astype(float)
    fading[..., 0] -= np.where(masks, 0, 0.6 * np.arange(FRAMES)[:, None, None])
    fading[..., 2] += np.where(masks, 3 * np.arange(FRAMES)[:, None, None], 0)
    fading = np.round(fading).clip(0, 255).astype(np.uint8)
    assert color_drift(fading, masks) == pytest.approx((20, 100), rel=0.03)
    assert color_drift(fading[::3], masks[::3], step=3) == pytest.approx((20, 100), rel=0.06)
    masks[3] = 0  # a frame without a person
    assert color_drift(fading, masks)[1] == pytest.approx(100, rel=0.03)
    assert np.isnan(color_drift(fading, np.zeros_like(masks))[1])
    assert np.isnan(color_drift(fading, np.ones_like(masks))[0])
    assert np.isnan(color_drift(fading[:1], masks[:1])).all()


def test_flicker_is_what_changes_where_nothing_should(truth):
    assert flicker(truth, truth) == 0
    brightness = truth.copy()
    brightness[::2] = np.clip(brightness[::2].astype(int) + 3, 0, 255)
    assert flicker(brightness, truth) == pytest.approx(3, rel=0.05)
    assert flicker(np.repeat(truth[:1], FRAMES, 0), truth) == 0
    assert np.isnan(flicker(truth[:1], truth[:1]))
    panning = np.stack([np.roll(noisy(truth[0], 60), i, 1) for i in range(3)])
    assert flicker(panning, panning) < 3 or np.isnan(flicker(panning, panning))


def test_measure_asks_every_network(truth, boxes, monkeypatch):
    seen = {}

    def remember(name, video):
        seen[name] = video.shape
        return np.full((len(video), 3), 7.0)

    found = dataclasses.replace(Keypoints.empty(FRAMES), body_confidence=np.ones((FRAMES, 18), np.float32))
    monkeypatch.setattr(scores, "detect", lambda video: found)
    networks = Networks(video_features=lambda x: remember("videos", x), frame_features=lambda x: remember("frames", x))
    masks = np.zeros(truth.shape[:3], np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 255
    got = measure(noisy(truth, 5), truth, masks, found, networks)
    assert {k: v.shape for k, v in got.features.items()} == {
        "fvd": (1, 3),
        "box_fvd": (1, 3),
        "frames": (FRAMES, 3),
        "box_frames": (FRAMES, 3),
    }
    assert seen["videos"] == (1, 16, 20, 10 + FRAMES - 1, 3)  # one box around all
    assert seen["frames"] == (FRAMES, 56, 32, 3)
    assert got.scores["found"] == 1 and "psnr" in got.scores
    assert set(measure(truth, truth, masks, found, Networks()).scores) == {
        "found",
        "pck_10",
        "pck_20",
        "flicker",
        *DRIFTS,
    }
