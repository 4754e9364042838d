"""The program: four commands, and bad input as one line with status 2."""

import pytest
import torch
from safetensors.torch import save_file

from animate_jax.checkpoints import checkpoint
from animate_jax.commands import train
from animate_jax.commands.weights import main
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.torch_weights.families import find_files

pytestmark = pytest.mark.compiles


@pytest.fixture
def small_presets(small, monkeypatch):
    monkeypatch.setattr("animate_jax.presets.presets", lambda: {"moore": small, "paper": small})


def test_import_export_inspect(moore_directory, small_presets, tmp_path, capsys):
    (moore_directory / "sd-vae-ft-mse").rename(tmp_path / "somewhere else")
    ckpt = str(tmp_path / "ckpt")
    assert main(["import", "moore", "--directory", str(moore_directory), "--output", ckpt]) == 0
    assert f"{ckpt}: preset small; still missing: vae (--vae)" in capsys.readouterr().out
    assert main(["inspect", ckpt]) == 0
    assert "missing: vae" in capsys.readouterr().out
    assert main(["import", "--vae", str(tmp_path / "somewhere else"), "--output", ckpt]) == 0  # of the same family
    assert "missing" not in capsys.readouterr().out
    assert main(["inspect", ckpt]) == 0
    out = capsys.readouterr().out
    assert "preset 'small'" in out and "motion_module:" in out and "missing" not in out
    assert main(["export", "moore", ckpt, "--output", str(tmp_path / "out")]) == 0
    assert "motion_module.pth: " in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out" / "motion_module.pth")]) == 0
    out = capsys.readouterr().out
    assert "an AnimateDiff motion module (v2, 32 frames)" in out and "float32" in out and "fills: motion_module" in out
    checkpoint.load(ckpt)


def test_names_of_checkpoints_are_inspected(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["inspect", "tiny"]) == 0
    assert "preset 'tiny-warp'" in capsys.readouterr().out
    assert main(["inspect", "moore"]) == 2  # and 10 GB are not downloaded for it
    assert capsys.readouterr().err.endswith("moore: is not here: animate-jax weights fetch moore\n")


@pytest.mark.filterwarnings("ignore:no hands in any frame")
def test_what_was_imported_makes_a_video(moore_directory, small_presets, tmp_path):
    assert main(["import", "moore", "--directory", str(moore_directory), "--output", str(tmp_path / "ckpt")]) == 0
    animation = Pipeline.from_pretrained(tmp_path / "ckpt")(
        EXAMPLE / "reference.png", EXAMPLE / "driving.mp4", frames=2, progress=False
    )
    assert animation.frames.shape == (2, 64, 64, 3) and animation.frames.std() > 1


@pytest.mark.slow
def test_the_commands_of_the_training_page(moore_directory, small_presets, tmp_path, capfd):
    """Stable Diffusion's UNet and VAE and CLIP, nothing else, then stage 1 and stage 2."""
    pytest.importorskip("numba")
    unet, vae, clip = (str(moore_directory / name) for name in ("denoising_unet.pth", "sd-vae-ft-mse", "image_encoder"))
    sd15, runs = str(tmp_path / "sd15"), [str(tmp_path / "stage1"), str(tmp_path / "stage2")]
    assert main(["import", "sd15", "--unet", unet, "--vae", vae, "--image-encoder", clip, "--output", sd15]) == 0
    capfd.readouterr()
    small = ["--size", "64", "64", "--steps", "1", "--data.batch", "1", "--data.num-workers", "0"]
    assert train.main(["stage1", "--init", sd15, "--output", runs[0], *small]) == 0
    said = capfd.readouterr().err
    assert f"{sd15}: has no motion_module, pose_guider: starting fresh" in said and "step 1 of 1, loss " in said
    assert train.main(["stage2", "--init", runs[0], "--output", runs[1], "--data.frames", "2", *small]) == 0
    assert checkpoint.load(runs[1])[1].schedule == checkpoint.read_preset(checkpoint.find(sd15)).schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "moore", "--output", "{}/ckpt"], "nothing to import"),
        (
            ["import", "--directory", "{}", "--output", "{}/ckpt"],
            "which family of files is it? Give one of sd15",
        ),
        (["import", "--vae", "{}/vae.pth", "--output", "{}/ckpt"], "which family of files is it? Give one of sd15"),
        (["import", "moore", "--directory", "{}/none", "--output", "{}/ckpt"], "no such directory"),
        (["import", "sd15", "--unet", "{}/lora.safetensors", "--output", "{}/ckpt"], "is a LoRA, but denoising_unet"),
        (["import", "sd15", "--unet", "{}/text.pth", "--output", "{}/ckpt"], "not a readable torch file"),
        (["import", "sd15", "--unet", "{}/cut.safetensors", "--output", "{}/ckpt"], "it is truncated"),
        (["import", "sd15", "--vae", "{}", "--output", "{}/ckpt"], "a folder without weights"),
        (["import", "sd15", "--vae", "{}/lora.safetensors", "--preset", "sdxl", "--output", "{}/c"], "choose one of"),
        (["export", "moore", "{}/none", "--output", "{}/out"], "no such checkpoint"),
        (["inspect", "{}/none.pth"], "no such file"),
        (["verify", "{}/none", "--against", "{}/none"], "no such directory"),
    ],
)
def test_bad_input_is_one_line(small_presets, tmp_path, capsys, arguments, message):
    save_file({"up.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    save_file({"weight": torch.zeros(400)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    (tmp_path / "text.pth").write_text("no weights")
    before = sorted(tmp_path.iterdir())
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_of_stable_diffusion(moore_directory, tmp_path):
    root = tmp_path / "sd"
    root.mkdir()
    for name in ("unet", "vae", "image_encoder"):
        (root / name).mkdir()
    assert find_files(root, "sd15") == {
        "vae": root / "vae",
        "image_encoder": root / "image_encoder",
        "denoising_unet": root / "unet",
        "reference_unet": root / "unet",
    }
    assert find_files(moore_directory, "moore").keys() == {
        "denoising_unet",
        "reference_unet",
        "motion_module",
        "pose_guider",
        "vae",
        "image_encoder",
    }
