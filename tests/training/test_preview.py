"""Previews while training: files, metrics, and that they show the weights of their step."""

import dataclasses

import numpy as np
import pytest

from animate_jax.config import DataConfig, PreviewConfig, TrainConfig
from animate_jax.errors import UserError
from animate_jax.evaluation import lpips
from animate_jax.training import preview as preview_module
from animate_jax.training.preview import Preview
from animate_jax.video.files import read_image, read_video

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    def missing(*_):
        raise UserError("no weights")

    monkeypatch.setattr(lpips, "load", missing)


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("numba")
    return TrainConfig(
        stage="stage1", output=str(tmp_path), data=DataConfig(workers=0),
        preview=PreviewConfig(every=1, clips=2, frames=3),
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["stage1", "vae"])
def test_videos_sheets_and_metrics(config, micro, micro_params, tmp_path, stage):
    preview = Preview(dataclasses.replace(config, stage=stage), micro)
    first = preview(micro_params, 5)
    assert first.keys() == {"preview/psnr", "preview/ssim", "preview/box_psnr"}
    assert all(np.isfinite(value) for value in first.values())
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["0000005.mp4", "0000005.png"]
    frames, fps = read_video(tmp_path / "previews" / "0000005.mp4")
    assert frames.shape == (3, 2 * 64, 4 * 48, 3) and fps == 10
    sheet = read_image(tmp_path / "previews" / "0000005.png")
    assert sheet.shape[0] > 2 * 64 and sheet.shape[1] > 7 * 48
    assert preview(micro_params, 6) == first  # only the weights decide
    path = "vae.decoder.conv_out.bias"
    assert preview({**micro_params, path: micro_params[path] + 1}, 7) != first


def test_no_such_split(config, micro):
    with pytest.raises(UserError):
        Preview(dataclasses.replace(config, preview=PreviewConfig(every=1, split="nowhere")), micro)


@pytest.mark.parametrize("split, rows", [("test", 1), ("train", 2)], ids=["its own", "rendered, as it has none"])
def test_recorded_clips_that_are_held_out(config, micro, micro_params, tmp_path, monkeypatch, split, rows):
    records = pytest.importorskip("animate_jax.data.records")

    def clips(root, wanted):
        if wanted != split:
            raise UserError("no such split")
        return ["one clip"]

    def sample(clip):
        assert clip == "one clip"
        frames = np.full((3, 64, 48, 3), 200, np.uint8)
        return {"reference": frames[0], "reference_pose": frames[0], "frames": frames, "poses": frames // 2,
                "masks": frames[..., 0]}  # fmt: skip

    monkeypatch.setattr(records, "RecordedClips", clips)
    monkeypatch.setattr(preview_module, "RecordedSamples", lambda data, preset: lambda position, clip: sample(clip))
    preview = Preview(dataclasses.replace(config, data=DataConfig(root="clips", split="train", workers=0)), micro)
    preview(micro_params, 5)
    frames, _ = read_video(tmp_path / "previews" / "0000005.mp4")
    assert frames.shape == (3, rows * 64, 4 * 48, 3)
    assert (abs(frames[:, :, 3 * 48 :].astype(int) - 200).max() < 20) == (split == "test")
