"""Previews while training: files, metrics, and that they show the weights of their step."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.config import DataConfig, PreviewConfig, TrainConfig
from animate_jax.errors import UserError
from animate_jax.perceptual import lpips
from animate_jax.training import preview as preview_module
from animate_jax.training.preview import Preview, PreviewClip
from animate_jax.video.images import read_image
from animate_jax.video.read import read_video
from tests.conftest import MICRO

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.usefixtures("compile_fast"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.compiles,
]


def missing(*_):
    raise UserError("no weights")


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    monkeypatch.setattr(lpips, "load", missing)


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("numba")
    return TrainConfig(
        preset=MICRO,
        stage="stage1",
        output=str(tmp_path),
        data=DataConfig(num_workers=0),
        preview=PreviewConfig(every=1, clips=2, frames=4),
    )


@pytest.mark.parametrize("stage", ["stage1", "vae"])
def test_videos_sheets_and_metrics(config, micro, micro_params, tmp_path, stage):
    preview = Preview(dataclasses.replace(config, stage=stage))
    first = preview(micro_params, 5)
    assert first.keys() == {"preview/psnr", "preview/ssim", "preview/box_psnr"}
    assert all(np.isfinite(value) for value in first.values())
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["0000005.mp4", "0000005.png"]
    frames, fps = read_video(tmp_path / "previews" / "0000005.mp4")
    assert frames.shape == (4, 2 * 64, 4 * 48, 3) and fps == 10
    sheet = read_image(tmp_path / "previews" / "0000005.png")
    assert sheet.shape[0] > 2 * 64 and sheet.shape[1] > 7 * 48
    assert preview(micro_params, 6) == first  # only the weights decide
    path = "vae.decoder.conv_out.bias"
    assert preview({**micro_params, path: micro_params[path] + 1}, 7) != first


def test_no_such_split(config, micro):
    with pytest.raises(UserError):
        Preview(dataclasses.replace(config, preview=PreviewConfig(every=1, split="nowhere")))


@pytest.mark.parametrize("split, rows", [("test", 1), ("train", 2)], ids=["its own", "rendered, as it has none"])
def test_recorded_clips_that_are_held_out(config, micro, micro_params, tmp_path, monkeypatch, split, rows):
    records = pytest.importorskip("animate_jax.data.records")

    def clips(root, wanted):
        if wanted != split:
            raise UserError("no such split")
        return ["one clip"]

    def sample(clip):
        assert clip == "one clip"
        frames = np.full((4, 64, 48, 3), 200, np.uint8)
        return {
            "reference": frames[0],
            "reference_pose": frames[0],
            "frames": frames,
            "poses": frames // 2,
            "masks": frames[..., 0],
        }

    monkeypatch.setattr(records, "RecordedClips", clips)
    monkeypatch.setattr(preview_module.RecordedSamples, "__call__", lambda self, position, clip: sample(clip))
    preview = Preview(dataclasses.replace(config, data=DataConfig(root="clips", split="train", num_workers=0)))
    preview(micro_params, 5)
    frames, _ = read_video(tmp_path / "previews" / "0000005.mp4")
    assert frames.shape == (4, rows * 64, 4 * 48, 3)
    assert (abs(frames[:, :, 3 * 48 :].astype(int) - 200).max() < 20) == (split == "test")


def held_out(*_):
    random = np.random.default_rng(0)
    sides = (5, 64, 48, 3), (5, 64, 48, 3), (4, 64, 48)
    return [PreviewClip(*(random.integers(0, 256, each, np.uint8) for each in sides))]


# A process of its own, because a flag makes the devices.
RUN = """
import importlib.util, json, sys
sys.path[:0] = ["tests", "tests/training"]
import jax
from conftest import MICRO
from child import Numbers, pull
from animate_jax.config import DataConfig, MeshConfig, OptimConfig, PreviewConfig, TrainConfig
from animate_jax.perceptual import lpips
from animate_jax.parallel import rules
from animate_jax.training import preview
from animate_jax.training.loop import run

here = importlib.util.spec_from_file_location("here", "tests/training/test_preview.py")
here.loader.exec_module(module := importlib.util.module_from_spec(here))
jax.config.update("jax_disable_most_optimizations", True)
lpips.load, preview.rendered_clips, rules.MIN_SHARDED_SIZE = module.missing, module.held_out, 64
config = TrainConfig(
    preset=MICRO, stage="stage1", output=sys.argv[1],
    init=sys.argv[2], trainable=r"vae\\.quant_conv", steps=1, log_every=1,
    data=DataConfig(batch=8), optim=OptimConfig(learning_rate=0.01), mesh=MeshConfig(fsdp=2),
    preview=PreviewConfig(every=1, frames=4))
run(config, pull, Numbers(0, 1, 0, sys.stderr), preview=preview.Preview(config))
"""


def test_a_run_on_four_devices_shows_what_one_would(config, micro, micro_checkpoint, tmp_path, monkeypatch):
    four = tmp_path / "four"
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(four), str(micro_checkpoint)],
        cwd=ROOT,
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    monkeypatch.setattr(preview_module, "rendered_clips", held_out)
    one = Preview(config)(checkpoint.load(four)[0], 1)
    logged = json.loads((four / "metrics.jsonl").read_text())
    assert one == pytest.approx({name: logged[name] for name in one}, rel=1e-3) and len(one) == 3
    assert sorted(path.name for path in (four / "previews").iterdir()) == ["0000001.mp4", "0000001.png"]


def test_full_size_is_shown_in_the_dtype_it_is_trained_in(config, micro, micro_params):
    """So that a whole copy fits beside the training's state; the bias of a convolution shows what became of all."""
    preview = Preview(dataclasses.replace(config, compute_dtype="bfloat16"))
    seen = []
    preview._result = lambda pipeline, clip: seen.append(pipeline) or clip.frames[1:]
    preview(micro_params, 1)
    assert {pipeline.dtype for pipeline in seen} == {jnp.dtype("bfloat16")} and preview._pipeline.params == {}
