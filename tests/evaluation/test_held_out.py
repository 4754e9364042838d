"""The report on held-out clips."""

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.evaluation import lpips
from animate_jax.evaluation.held_out import held_out, table
from animate_jax.evaluation.image_quality import psnr, ssim


@pytest.fixture(scope="module")
def clips():
    """Two clips of three frames: a bright box moves over a still background; the result has slight noise."""
    rng = np.random.default_rng(0)
    truths = np.repeat(rng.integers(0, 256, (2, 1, 64, 48, 3), np.uint8), 3, axis=1)
    masks = np.zeros(truths.shape[:-1], bool)
    for frame in range(3):
        masks[:, frame, 10:30, 4 + 8 * frame : 14 + 8 * frame] = True
    truths[masks] = [250, 200, 20]
    results = np.clip(truths + rng.normal(0, 4, truths.shape), 0, 255).astype(np.uint8)
    return results, truths, truths[:, 0], masks


@pytest.fixture(scope="module")
def alex():
    """Random LPIPS weights: the report only has to pass them on."""
    rng = np.random.default_rng(0)
    convs, channels = [], 3
    for size, width in [conv for stage in lpips.STAGES["alex"] for conv in stage]:
        kernel = rng.normal(0, channels**-0.5 / size, (size, size, channels, width)).astype(np.float32)
        convs.append({"kernel": kernel, "bias": np.zeros(width, np.float32)})
        channels = width
    heads = [np.full(stage[-1][1], 1 / 64, np.float32) for stage in lpips.STAGES["alex"]]
    return {"convs": convs, "heads": heads}


def test_scores_are_means_over_frames(clips):
    results, truths, references, masks = clips
    report = held_out(results, truths, references, masks)
    assert set(report["result"]) == {"psnr", "ssim", "box_psnr", "box_ssim"}
    a, b = (jnp.asarray(x, jnp.float32) / 255 for x in (results, truths))
    boxes = np.array([[4, 10, 14, 30], [12, 10, 22, 30], [20, 10, 30, 30]])
    boxes = np.broadcast_to(boxes, (2, 3, 4))
    expected = {
        "psnr": psnr(a, b), "ssim": ssim(a, b), "box_psnr": psnr(a, b, boxes), "box_ssim": ssim(a, b, boxes)
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(report["result"][name], value.mean(), rtol=1e-5)


def test_the_repeated_reference_is_worse_where_the_person_moved(clips, alex):
    results, truths, references, masks = clips
    moved = np.s_[:, 1:]
    report = held_out(results[moved], truths[moved], references, masks[moved], alex, "alex")
    trivial, ours = report["repeat the reference"], report["result"]
    assert trivial["psnr"] < ours["psnr"] and trivial["box_psnr"] < ours["box_psnr"]
    assert trivial["box_lpips"] > trivial["lpips"] > 0
    still = np.s_[:, [0, 0]]  # on its own frame the reference is the truth
    report = held_out(results[still], truths[still], references, masks[still], alex, "alex")
    perfect = report["repeat the reference"]
    assert perfect["psnr"] == perfect["box_psnr"] == pytest.approx(100)
    assert max(perfect["lpips"], perfect["box_lpips"]) < 1e-9


def test_table():
    rows = {
        "repeat the reference": {"psnr": 19.184, "box_psnr": 15.4, "ssim": 0.7681, "lpips": 0.2154},
        "ours": {"psnr": 21.8, "box_psnr": 18.756, "ssim": 0.7, "lpips": 0.3},
    }
    assert table(rows) == (
        "|  | PSNR | SSIM | LPIPS | box PSNR |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| repeat the reference | 19.18 | 0.768 | 0.215 | 15.40 |\n"
        "| ours | 21.80 | 0.700 | 0.300 | 18.76 |\n"
    )
