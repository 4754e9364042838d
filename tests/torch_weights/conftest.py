"""A family of PyTorch files at a tiny size, made by diffusers' and transformers' own classes where they exist."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIP

from animate_jax.checkpoints import checkpoint
from animate_jax.config import Preset
from animate_jax.models.params import abstract_model
from animate_jax.torch_weights.convert import to_torch
from animate_jax.torch_weights.exporting import folder_config, position_tables, unet_config
from tests.conftest import SMALL


def random_state(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict without zeros or equal tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator) / max(value.shape[-1], 1) ** 0.5 + 0.1
        if value.is_floating_point()
        else value
        for key, value in module.state_dict().items()
    }


def _motion_state(preset: Preset, seed: int = 7, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """AnimateDiff's keys, with its position tables."""
    abstract = abstract_model(preset.model)[1]
    leaves = {path: leaf for path, leaf in abstract.items() if checkpoint.part_of(path) == "motion_module"}
    random = np.random.default_rng(seed)
    params = {
        path.removeprefix("denoising_unet."): random.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in leaves.items()
    }
    tables = position_tables(leaves, preset.model.unet.motion_max_length)
    return {key: torch.from_numpy(array).to(dtype) for key, array in (to_torch(params) | tables).items()}


@pytest.fixture(scope="session")
def small() -> Preset:
    return SMALL


@pytest.fixture(scope="session")
def torch_parts() -> dict[str, dict[str, torch.Tensor]]:
    """Part -> state dict, as in PyTorch files."""
    model = SMALL.model
    unet = UNet2DConditionModel.from_config(unet_config(model))
    reference = {
        key: value for key, value in random_state(unet, 1).items() if not key.startswith(("conv_norm_out", "conv_out"))
    }
    encoder = CLIPVisionConfig(hidden_act="quick_gelu", **dataclasses.asdict(model.image_encoder))
    cond = ControlNetModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
    ).controlnet_cond_embedding
    return {
        "denoising_unet": random_state(unet, 0),
        "reference_unet": reference,
        "motion_module": _motion_state(SMALL),
        "pose_guider": random_state(cond, 2),
        "vae": random_state(AutoencoderKL.from_config(folder_config("vae", model)), 3),
        "image_encoder": random_state(CLIP(encoder), 4),
    }


@pytest.fixture
def moore_directory(tmp_path, torch_parts):
    """`pretrained_weights/` of Moore-AnimateAnyone."""
    root = tmp_path / "pretrained_weights"
    (root / "sd-vae-ft-mse").mkdir(parents=True)
    (root / "image_encoder").mkdir()
    for part in ("denoising_unet", "reference_unet", "motion_module", "pose_guider"):
        torch.save(torch_parts[part], root / f"{part}.pth")
    torch.save(torch_parts["vae"], root / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin")
    torch.save(torch_parts["image_encoder"], root / "image_encoder" / "pytorch_model.bin")
    return root


@pytest.fixture(scope="session")
def motion_state():
    """AnimateDiff's keys for any preset."""
    return _motion_state
