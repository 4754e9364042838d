"""LoRA files: ours in diffusers' own classes, theirs in ours, and files that are refused in one line."""

import json

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from animate_jax.config import LoraConfig
from animate_jax.errors import UserError
from animate_jax.models.lora import make_adapter, product
from animate_jax.models.params import abstract_model
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.torch_weights.exporting import unet_config
from animate_jax.torch_weights.lora import METADATA, read_lora, save_lora
from tests.conftest import SMALL, random_params

pytestmark = pytest.mark.compiles

EVERYWHERE = r"(denoising|reference)_unet\..*\.(to_q|to_k|to_v|to_out\.0)"
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 8 x 8
TEXT = Q.replace("attn1.to_q", "attn2.to_k")


@pytest.fixture(scope="module")
def adapter():
    fresh = make_adapter(abstract_model(SMALL.model)[1], LoraConfig(rank=3, target_modules=EVERYWHERE), 0)
    random = np.random.default_rng(0)
    return {path: random.normal(size=array.shape).astype(np.float32) for path, array in fresh.items()}


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


def write(path, tensors, metadata=None):
    safetensors.torch.save_file(
        {key: torch.as_tensor(value).clone().contiguous() for key, value in tensors.items()}, path, metadata
    )
    return path


def pair(module=f"unet.{Q}", inputs=8, outputs=8, rank=3):
    random = np.random.default_rng(1)
    down, up = random.normal(size=(rank, inputs)), random.normal(size=(outputs, rank))
    return {
        f"{module}.lora_A.weight": torch.tensor(down, dtype=torch.float32),
        f"{module}.lora_B.weight": torch.tensor(up, dtype=torch.float32),
    }


def test_a_written_file_is_read_back_bit_for_bit(adapter, tmp_path):
    found = read_lora(save_lora(tmp_path, adapter, 2.0, "tiny"), SMALL.model)
    assert {f"{layer}.lora_A.kernel" for layer in found} | {f"{layer}.lora_B.kernel" for layer in found} == set(adapter)
    for layer, lora in found.items():
        np.testing.assert_array_equal(lora.down, adapter[f"{layer}.lora_A.kernel"])
        np.testing.assert_array_equal(lora.up, adapter[f"{layer}.lora_B.kernel"])
        assert lora.scale == 2
    assert read_lora(tmp_path, SMALL.model).keys() == found.keys()  # the folder, too
    with safetensors.safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        peft = json.loads(file.metadata()[METADATA])
        keys = set(file.keys())
    assert (peft["unet.r"], peft["unet.lora_alpha"], peft["unet.base_model_name_or_path"]) == (3, 6, "tiny")
    assert f"unet.{Q}.lora_A.weight" in keys and f"reference_unet.{Q}.lora_B.weight" in keys
    # diffusers' UNetMotionModel
    assert "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_out.0.lora_A.weight" in keys


def test_diffusers_reads_our_file(adapter, params, tmp_path):
    """Its UNet, with our file loaded by peft and fused, has our merged weights."""
    pytest.importorskip("peft")
    spatial = {path: array for path, array in adapter.items() if "motion_modules" not in path}
    save_lora(tmp_path, spatial, 2.0, "small")
    unet = diffusers.UNet2DConditionModel.from_config(unet_config(SMALL.model))
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    state_dict, alphas, metadata = diffusers.StableDiffusionPipeline.lora_state_dict(
        tmp_path, return_lora_metadata=True
    )
    unet.load_lora_adapter(state_dict, prefix="unet", network_alphas=alphas, metadata=metadata)
    unet.fuse_lora(lora_scale=0.5)
    after = unet.state_dict()
    layers = [path.removesuffix(".lora_A.kernel") for path in spatial if path.endswith(".lora_A.kernel")]
    checked = 0
    for layer in layers:
        part, _, name = layer.partition(".")
        if part == "denoising_unet":
            ours = product(spatial[f"{layer}.lora_A.kernel"], spatial[f"{layer}.lora_B.kernel"], 2.0 * 0.5)
            theirs = after[f"{name}.base_layer.weight"] - before[f"{name}.weight"]
            np.testing.assert_allclose(ours.T, theirs, atol=1e-5)
            checked += 1
    assert checked == len(layers) // 2 > 0


def test_pefts_arithmetic(params, tmp_path):
    """W + scale * alpha / r * B A, in torch, for each way in which files say alpha; several add up."""
    a, b = pair().values()
    metadata = {METADATA: json.dumps({"unet.r": 3, "unet.lora_alpha": 6})}
    own = {METADATA: json.dumps({"r": 3, "lora_alpha": 1, "alpha_pattern": {"attn1.to_q": 9}, "use_rslora": True})}
    halves = {".lora.down": a, ".lora.up": b}
    files = [
        (write(tmp_path / "plain.safetensors", pair()), 1.0),
        (write(tmp_path / "peft.safetensors", pair(), metadata), 2.0),
        (write(tmp_path / "adapter.safetensors", pair(Q), own), 9 / 3**0.5),
        (write(tmp_path / "old.safetensors", {f"unet.{Q}{half}.weight": x for half, x in halves.items()}), 1.0),
        (
            write(
                tmp_path / "older.safetensors",
                {f"{Q.replace('.to_q', '.processor.to_q_lora')}{half[5:]}.weight": x for half, x in halves.items()},
            ),
            1.0,
        ),
        (
            write(
                tmp_path / "kohya.safetensors",
                {
                    f"lora_unet_{Q.replace('.', '_')}.lora_down.weight": a[..., None, None],
                    f"lora_unet_{Q.replace('.', '_')}.lora_up.weight": b[..., None, None],
                    f"lora_unet_{Q.replace('.', '_')}.alpha": torch.tensor(1.5),
                    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": a,
                },
            ),
            0.5,
        ),
    ]
    path = f"denoising_unet.{Q}.kernel"
    pipeline = Pipeline(params, SMALL)
    expected = torch.tensor(np.asarray(params[path])).T
    for index, (file, scale) in enumerate(files):
        strength = 0.3 * (index + 1)
        pipeline.load_lora(file, strength)
        expected = expected + strength * scale * (b @ a)
        np.testing.assert_allclose(np.asarray(pipeline.params[path]).T, expected, atol=1e-5, rtol=1e-5)
    assert sum(pipeline.params[path] is not array for path, array in params.items()) == 1
    pipeline.load_lora(files[0][0], scale=0.0)
    np.testing.assert_allclose(np.asarray(pipeline.params[path]).T, expected, atol=1e-5, rtol=1e-5)


def test_a_convolution_of_one_pixel_and_animatediffs_names(tmp_path):
    tensors = pair("unet.down_blocks.0.attentions.0.proj_in")
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1"
    old = f"{block}.processor.to_out_lora"
    tensors |= {key.replace("lora_A", "down").replace("lora_B", "up"): value for key, value in pair(old).items()}
    found = read_lora(write(tmp_path / "lora.safetensors", tensors), SMALL.model)
    assert sorted(found) == [
        "denoising_unet.down_blocks.0.attentions.0.proj_in",
        f"denoising_unet.{block}.to_out.0",
    ]


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"conv_in.weight": np.zeros((2, 2))}, "holds no LoRA; its first key is 'conv_in.weight'"),
        (pair("unet.down_blocks.7.to_q"), "1 of its 1 layers are not there, first 'unet.down_blocks.7.to_q'"),
        (pair(inputs=16), "is 16 x 8 instead of 8 x 8"),
        (pair(f"unet.{TEXT}", inputs=2048), "is a LoRA for SDXL"),
        (pair(f"lora_unet_{TEXT.replace('.', '_')}", inputs=1024), "Stable Diffusion 2"),
        (dict(list(pair().items())[:1]), "has only one of lora_A and lora_B"),
        ({**pair(), f"unet.{Q}.lora_B.weight": torch.zeros(8, 4)}, "has rank 3 in lora_A and 4 in lora_B"),
        ({**pair(), f"unet.{Q}.lora_magnitude_vector": torch.zeros(8)}, "is a DoRA"),
        ({**pair(), f"unet.{Q}.lokr_w1": torch.zeros(8)}, "is no plain LoRA"),
        ({**pair(), f"unet.{Q}.lora_A.weight": torch.zeros(3, 8, 3, 3)}, "only linear layers can be adapted"),
        ({**pair(), f"unet.{Q}.lora_A.weight": torch.full((3, 8), torch.nan)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tensors, message, params, tmp_path):
    pipeline = Pipeline(params, SMALL)
    file = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(UserError) as caught:
        pipeline.load_lora(file)
    assert message in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert pipeline.params is params


def test_damaged_headers_are_refused(params, tmp_path):
    for metadata in ({METADATA: "{"}, {METADATA: json.dumps({"unet.lora_alpha": "x"})}):
        with pytest.raises(UserError, match="not a readable LoRA file"):
            read_lora(write(tmp_path / "lora.safetensors", pair(), metadata), SMALL.model)
    with pytest.raises(UserError, match="no such file"):
        read_lora(tmp_path / "none.safetensors", SMALL.model)
    with pytest.raises(UserError, match="must be a finite number"):
        Pipeline(params, SMALL).load_lora(tmp_path / "lora.safetensors", float("nan"))
