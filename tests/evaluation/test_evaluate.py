"""The loop over clips, called as a notebook does."""

import dataclasses
import json

import numpy as np
import pytest

from animate_jax.evaluation import scores
from animate_jax.evaluation.clips import EvalClip
from animate_jax.evaluation.evaluate import evaluate
from animate_jax.evaluation.report import REPEATED, RESULT, WARPED
from animate_jax.pose.keypoints import Keypoints


@pytest.fixture
def clip(monkeypatch):
    """A person in the middle, whose result is nearer to the truth than its reference is."""
    body = np.full((4, 18, 2), 0.5, np.float32)
    body[:, [2, 5], 1], body[:, [8, 11], 1] = 0.3, 0.6
    body[:, :, 0] += np.linspace(-0.1, 0.1, 18)
    keypoints = dataclasses.replace(Keypoints.empty(4), body=body, body_confidence=np.ones((4, 18), np.float32))
    monkeypatch.setattr(scores, "detect", lambda video: keypoints[1 : 1 + len(video)])
    masks = np.zeros((4, 64, 48), np.uint8)
    masks[:, 16:48, 12:36] = 1
    frames = np.random.default_rng(0).integers(50, 200, (4, 64, 48, 3)).astype(np.uint8)
    return EvalClip("dance", 10.0, frames[0], frames[1:], masks, keypoints, result=frames[1:] + np.uint8(5))


def test_results_are_measured_and_reported(clip, tmp_path):
    evaluation = evaluate([clip], tmp_path / "report", settings={"made": "by hand"})
    assert set(evaluation.estimates) == {REPEATED, WARPED, RESULT, "true video"}
    psnr = evaluation.clips[RESULT]["dance"].scores["psnr"]
    assert psnr == pytest.approx(20 * np.log10(255 / 5), rel=1e-5)
    assert evaluation.estimates[RESULT]["psnr"].value == psnr > evaluation.estimates[REPEATED]["psnr"].value
    document = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert document["figures"][RESULT]["psnr"]["value"] == psnr
    assert document["settings"] == {"clips": "1", "made": "by hand"}
    assert (tmp_path / "report" / "metrics.md").read_text() == evaluation.markdown


def test_without_a_pipeline_there_must_be_results(clip, tmp_path):
    with pytest.raises(ValueError, match="dance: without a pipeline, clips must have results"):
        evaluate([dataclasses.replace(clip, result=None)], tmp_path / "report")
    assert not list(tmp_path.iterdir())
