"""The program, from flags to a report, with the small test model."""

import dataclasses
import json
from unittest.mock import MagicMock

import numpy as np
import pytest

from animate_jax.commands import evaluate
from animate_jax.commands.evaluate import main
from animate_jax.errors import UserError
from animate_jax.evaluation import clips, i3d, scores
from animate_jax.perceptual import lpips
from animate_jax.pose.keypoints import Keypoints
from animate_jax.presets import find_preset
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.write import write_video

pytestmark = pytest.mark.compiles


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No packaged weights, and a detector that finds everybody in the middle."""

    def missing(*_):
        raise UserError("not installed")

    def detect(frames):
        body = np.full((len(frames), 18, 2), 0.5, np.float32)
        body[:, [2, 5], 1], body[:, [8, 11], 1] = 0.3, 0.6
        confidence = np.ones((len(frames), 18), np.float32)
        return dataclasses.replace(Keypoints.empty(len(frames)), body=body, body_confidence=confidence)

    for module in (lpips, i3d):
        monkeypatch.setattr(module, "load", missing)
    for module in (clips, scores):
        monkeypatch.setattr(module, "detect", detect)


def videos(folder, count=3, frames=5, noise=0):
    """Still pictures that grow lighter; `noise` grows with the number of the video."""
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = rng.integers(0, 200, (64, 48, 3))
        video = np.stack([picture + 8 * i + rng.normal(0, noise * number + 1e-9, picture.shape) for i in range(frames)])
        write_video(folder / f"{number}.mp4", np.clip(video, 0, 255).astype(np.uint8), 10)
    return folder


def test_a_checkpoint_on_rendered_clips(tmp_path, micro_checkpoint, compile_fast, capsys):
    pytest.importorskip("numba")
    output = tmp_path / "report"
    flags = ["--checkpoint", str(micro_checkpoint), "--clips", "2", "--frames", "3", "--output", str(output)]
    assert main(flags) == 0
    printed = capsys.readouterr()
    assert "without LPIPS: not installed" in printed.err and "without FVD" in printed.err
    assert "| autoencoder (upper bound) |" in printed.out
    document = json.loads((output / "metrics.json").read_text())
    assert list(document["figures"]) == [
        "repeat the reference",
        "warp the reference",
        "autoencoder (upper bound)",
        "result",
        "true video",
    ]
    assert document["settings"]["clips"] == "2" and document["settings"]["steps"] == "2"
    for row in ("result", "repeat the reference", "warp the reference"):
        assert 0 < document["figures"][row]["box_psnr"]["value"] < 60
    assert len(list((output / "videos").iterdir())) == 2 and (output / "contact_sheet.png").is_file()


def test_a_lora_is_added_and_told(tmp_path, monkeypatch, capsys):
    pipeline = MagicMock(Pipeline, load_lora=MagicMock())
    pipeline.animation_config.return_value = find_preset("tiny").animation
    monkeypatch.setattr(evaluate.Pipeline, "from_pretrained", lambda name: pipeline)
    monkeypatch.setattr(evaluate, "open_clips", lambda *_, **__: [])
    evaluated = MagicMock(return_value=MagicMock(markdown="a report"))
    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    output = ["--output", str(tmp_path / "report")]
    assert main([*output, "--lora", "looks", "motion:0.5"]) == 0
    assert [call.args for call in pipeline.load_lora.call_args_list] == [("looks", 1.0), ("motion", 0.5)]
    assert evaluated.call_args.kwargs["settings"]["lora"] == "looks motion:0.5"
    assert main([*output, "--lora", "looks", "--results", "made", "--truth", "true"]) == 2
    assert "--lora: changes a checkpoint" in capsys.readouterr().err


def test_two_folders_and_the_papers_rows(tmp_path, capsys):
    videos(tmp_path / "true")
    videos(tmp_path / "made", noise=10)
    flags = [
        "--results",
        str(tmp_path / "made"),
        "--truth",
        str(tmp_path / "true"),
        "--output",
        str(tmp_path / "report"),
        "--protocol",
        "ubc_fashion",
        "--width",
        "48",
        "--height",
        "64",
    ]
    assert main(flags) == 0
    assert "Animate Anyone (paper)" in capsys.readouterr().out
    document = json.loads((tmp_path / "report" / "metrics.json").read_text())
    psnr = [document["clips"]["result"][name]["psnr"] for name in "012"]
    assert psnr == sorted(psnr, reverse=True) and psnr[0] > psnr[2] + 3
    assert "autoencoder (upper bound)" not in document["figures"]
    assert document["figures"]["result"]["psnr"]["low"] < document["figures"]["result"]["psnr"]["high"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--results", "made"], "--results and --truth: give both"),
        (["--clips", "0"], "--clips 0: must be at least 1"),
        (["--protocol", "oscars"], "--protocol oscars: choose one of ubc_fashion"),
        (["--protocol", "tiktok"], "--protocol tiktok: give it as --data DIR"),
        (["--results", "made", "--truth", "nowhere"], "nowhere: no such folder"),
        (["--results", "made", "--truth", "true", "--width", "64"], "--width and --height: give both"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "mocap_people:tset"], "no split 'tset'"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--lpips-weights", "nowhere.tar.gz"], "not installed"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, micro_checkpoint, capsys, flags, message):
    pytest.importorskip("numba")
    defaults = [] if "--checkpoint" in flags else ["--checkpoint", str(micro_checkpoint)]
    assert main([*defaults, *flags, "--output", str(tmp_path / "report")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("animate-jax evaluate: ") and message in last
    assert not list(tmp_path.iterdir())
