"""Every layout becomes ours: the original single file against diffusers' own conversion of the same file."""

import gzip
import json
import pathlib
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from animate_jax.checkpoints import checkpoint
from animate_jax.config import ModelConfig
from animate_jax.errors import UserError
from animate_jax.torch_weights import key_layouts
from animate_jax.torch_weights.exporting import folder_config, unet_config
from animate_jax.torch_weights.importing import import_checkpoint
from animate_jax.torch_weights.key_layouts import identify, rename_keys

pytestmark = pytest.mark.compiles

SD15 = json.loads(gzip.decompress((pathlib.Path(__file__).parents[1] / "golden/keys/sd15.json.gz").read_bytes()))
EXTRAS = (
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "alphas_cumprod_prev",
    "logvar",
    "sqrt_one_minus_alphas_cumprod",
    "posterior_mean_coef1",
    "model_ema.decay",
    "model_ema.num_updates",
)


def ldm_unet(key, layers):
    """The original name of a diffusers UNet key."""
    outer = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    module, _, leaf = key.rpartition(".")
    if module in outer:
        return f"{outer[module]}.{leaf}"
    side, level, kind, layer, rest = re.fullmatch(
        r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", key
    ).groups()
    if kind == "resnets":
        module, _, leaf = rest.rpartition(".")
        rest = f"{inner[module]}.{leaf}"
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(layer)}.{rest}"
    per, attended = layers + 1, kind == "attentions"
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{per * (int(level) + 1)}.0.op.{leaf}"
        return f"input_blocks.{per * int(level) + int(layer) + 1}.{int(attended)}.{rest}"
    if kind == "upsamplers":
        # after the resnet and, where there is one, the attention
        return f"output_blocks.{per * int(level) + layers}.{{upsampler}}.conv.{leaf}"
    return f"output_blocks.{per * int(level) + int(layer)}.{int(attended)}.{rest}"


def ldm_vae(key, levels):
    key = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", key)
    for new, old in (
        (r"encoder\.down_blocks", "encoder.down"),
        (r"\.resnets\.", ".block."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        ("group_norm", "norm"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0\.", "proj_out."),
    ):
        key = re.sub(new, old, key)
    return re.sub(r"mid_block\.block\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)


def single_file(unet, vae, model, make):
    """The original single file; `make` turns a shape and a number into a tensor."""
    file = {}
    attended = {match[1] for key in unet if (match := re.match(r"(up_blocks\.\d+)\.attentions", key))}
    for key, shape in unet.items():
        name = ldm_unet(key, model.unet.layers_per_block)
        file["model.diffusion_model." + name.format(upsampler=2 if ".".join(key.split(".")[:2]) in attended else 1)] = (
            shape
        )
    for key, shape in vae.items():
        square = "attentions.0.to_" in key and key.endswith("weight")
        file["first_stage_model." + ldm_vae(key, len(model.vae.block_out_channels))] = (
            (*shape, 1, 1) if square else shape
        )
    file = {key: make(shape, number) for number, (key, shape) in enumerate(file.items())}
    return file | {key: make((3,), 0) for key in EXTRAS}


def diffusers_conversion(file, model):
    file = dict(file)
    vae_config = folder_config("vae", model)
    return {
        "denoising_unet": convert_ldm_unet_checkpoint(file, unet_config(model)),
        "vae": convert_ldm_vae_checkpoint(file, vae_config),
    }


@pytest.mark.parametrize("standalone_vae", [False, True])
def test_the_original_single_file_equals_diffusers_conversion(torch_parts, small, standalone_vae):
    shapes = {
        part: {key: tuple(tensor.shape) for key, tensor in torch_parts[part].items()}
        for part in ("denoising_unet", "vae")
    }
    file = single_file(shapes["denoising_unet"], shapes["vae"], small.model, lambda shape, i: torch.randn(shape) + i)
    expected = diffusers_conversion(file, small.model)
    arrays = {key: tensor.numpy() for key, tensor in file.items()}
    for part in ("denoising_unet", "vae"):
        given = arrays
        if standalone_vae:
            given = {
                key.removeprefix("first_stage_model."): array
                for key, array in arrays.items()
                if key.startswith("first_stage")
            }
            given |= {"loss.logvar": np.zeros(()), "model_ema.decay": np.zeros(())}
            if part != "vae":
                continue
        kind = identify(given)
        assert kind == ("vae_file" if standalone_vae else "sd1_file")
        ours, ignored = rename_keys(given, kind, part, small.model)
        assert ours.keys() == expected[part].keys() == shapes[part].keys()
        for key, tensor in expected[part].items():
            np.testing.assert_array_equal(ours[key], tensor.numpy(), err_msg=key)
        assert len(given) == len(ours) + sum(ignored.values())


def test_the_original_single_file_at_full_size():
    model = ModelConfig.sd15()

    def make(shape, i):
        return torch.empty(shape, device="meta")

    file = single_file(SD15["denoising_unet"], SD15["vae"], model, make)
    assert identify(file) == "sd1_file"
    expected = diffusers_conversion(file, model)
    for part in ("denoising_unet", "reference_unet", "vae"):
        broadcast = {key: np.broadcast_to(np.float32(i), tuple(t.shape)) for i, (key, t) in enumerate(file.items())}
        ours, ignored = rename_keys(broadcast, "sd1_file", part, model)
        assert {key: list(array.shape) for key, array in ours.items()} == SD15[part]
        assert len(file) == len(ours) + sum(ignored.values())
        if part in expected:
            assert ours.keys() == expected[part].keys()


def test_the_original_file_is_imported(torch_parts, small, tmp_path):
    shapes = {
        part: {key: tuple(tensor.shape) for key, tensor in torch_parts[part].items()}
        for part in ("denoising_unet", "vae")
    }
    file = single_file(shapes["denoising_unet"], shapes["vae"], small.model, lambda shape, i: torch.randn(shape) + i)
    torch.save({"state_dict": file, "global_step": 470000}, tmp_path / "v1-5.ckpt")
    parts = ("denoising_unet", "reference_unet", "vae")
    import_checkpoint(dict.fromkeys(parts, tmp_path / "v1-5.ckpt"), tmp_path / "ckpt", small)
    stored = checkpoint.stored_arrays(tmp_path / "ckpt")
    some = {path: leaf for path, leaf in stored.items() if path.endswith("to_q.kernel")}
    expected = diffusers_conversion(file, small.model)
    for path, array in checkpoint.read_arrays(tmp_path / "ckpt", some).items():
        part, _, key = path.partition(".")
        source = expected["vae" if part == "vae" else "denoising_unet"]
        np.testing.assert_array_equal(array.T, source[key.replace("kernel", "weight")].numpy(), err_msg=path)


@pytest.mark.parametrize("original", [False, True])
def test_controlnets_condition_embedding_begins_the_pose_guider(small, tmp_path, original):
    """As Moore-AnimateAnyone does: all but the last convolution, which begins at zero."""
    controlnet = ControlNetModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
    )
    state = controlnet.state_dict()
    source = {key.partition(".")[2]: tensor for key, tensor in state.items() if key.startswith("controlnet_cond")}
    if original:
        places = {"conv_in": 0, "blocks.0": 2, "blocks.1": 4, "conv_out": 14}
        state = {
            f"control_model.input_hint_block.{places[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor
            for key, tensor in source.items()
        }
        state |= {
            "control_model.zero_convs.0.0.weight": torch.zeros(1),
            "control_model.time_embed.0.bias": torch.ones(1),
        }
    torch.save(state, tmp_path / "control.pth")
    (report,), _ = import_checkpoint({"pose_guider": tmp_path / "control.pth"}, tmp_path / "ckpt", small)
    assert report.keys == report.used + sum(report.ignored.values()) and report.used == 6
    stored = checkpoint.read_arrays(tmp_path / "ckpt", checkpoint.stored_arrays(tmp_path / "ckpt"))
    for name in ("conv_in", "blocks.0", "blocks.1"):
        kernel = stored[f"pose_guider.{name}.kernel"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(kernel, source[f"{name}.weight"].detach().numpy())
    assert not stored["pose_guider.conv_out.kernel"].any() and not stored["pose_guider.conv_out.bias"].any()


def zeros(keys):
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}


def changed(keys, ending, axis, length):
    return {
        key: [length if i == axis and key.endswith(ending) else n for i, n in enumerate(shape)]
        for key, shape in keys.items()
    }


UNET = SD15["denoising_unet"]
WRONG = {
    "a LoRA": {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": [4, 4], "alpha": [1]},
    "a Stable Diffusion 2 UNet": changed(UNET, "attn2.to_k.weight", 1, 1024),
    "an SDXL UNet": UNET | {"add_embedding.linear_1.weight": [1280, 2816]},
    "an inpainting UNet": changed(UNET, "conv_in.weight", 1, 9),
    "an SDXL checkpoint in the original": {
        "conditioner.embedders.0.transformer.weight": [2],
        "model.diffusion_model.out.0.weight": [320],
    },
    "a Stable Diffusion 2 checkpoint in the original": {
        "cond_stage_model.model.ln_final.weight": [1024],
        "model.diffusion_model.out.0.weight": [320],
    },
    "an AnimateDiff motion module": SD15["motion_module"],
    "a VAE": SD15["vae"],
    "a CLIP image encoder": SD15["image_encoder"],
    "a CLIP text encoder": {"text_model.embeddings.token_embedding.weight": [49408, 768]},
    "a Pose Guider": SD15["pose_guider"],
    "no weight file of this family (its first key is 'layer.weight')": {"layer.weight": [2]},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named(tmp_path, small, name):
    """Only the keys and shapes count; the file itself is a few bytes."""
    torch.save({key: torch.zeros(1).expand(shape) for key, shape in WRONG[name].items()}, tmp_path / "some.pth")
    with pytest.raises(UserError) as caught:
        import_checkpoint({"denoising_unet": tmp_path / "some.pth"}, tmp_path / "ckpt", small)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'some.pth'} is {name}") and "\n" not in message
    assert "but denoising_unet needs a Stable Diffusion 1 UNet or" in message
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("denoising_unet", "unet"),
        ("reference_unet", "reference_unet"),
        ("motion_module", "motion"),
        ("vae", "vae"),
        ("pose_guider", "pose_guider"),
        ("image_encoder", "clip"),
    ],
)
def test_full_size_files_are_known(part, kind):
    assert identify(zeros(SD15[part])) == kind
    assert kind in key_layouts.ACCEPTED_KINDS[part]


def test_the_small_test_models_are_diffusers_own(torch_parts, small):
    for cls, part, config in (
        (UNet2DConditionModel, "denoising_unet", unet_config(small.model)),
        (AutoencoderKL, "vae", folder_config("vae", small.model)),
    ):
        assert cls.from_config(config).state_dict().keys() == torch_parts[part].keys()
