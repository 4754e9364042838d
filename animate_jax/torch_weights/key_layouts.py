"""Identifies a state dict by its keys, and renames them to ours.

Read: diffusers (also the VAE's old attention names), the original single file of Stable Diffusion ("LDM"),
AnimateDiff's motion modules and diffusers' MotionAdapter, ControlNet in both layouts, CLIP with or without its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from animate_jax import limits
from animate_jax.config import ModelConfig
from animate_jax.torch_weights import names
from animate_jax.torch_weights.tensor import StateDict, Tensor

UNETS = ("denoising_unet", "reference_unet")
KIND_NAMES = {  # kind -> in an error message or a report
    "lora": "a LoRA",
    "sd1_file": "a Stable Diffusion 1 checkpoint in the original single-file layout",
    "sd2_file": "a Stable Diffusion 2 checkpoint in the original single-file layout",
    "sdxl_file": "an SDXL checkpoint in the original single-file layout",
    "unet": "a Stable Diffusion 1 UNet",
    "unet_sd2": "a Stable Diffusion 2 UNet",
    "unet_sdxl": "an SDXL UNet",
    "unet_inpainting": "an inpainting UNet",
    "unet_motion": "a Stable Diffusion UNet with motion modules",
    "reference_unet": "a ReferenceNet (a Stable Diffusion UNet without its output convolution)",
    "motion": "an AnimateDiff motion module",
    "motion_sdxl": "an AnimateDiff motion module for SDXL",
    "motion_adapter": "a motion module in diffusers' MotionAdapter layout",
    "controlnet": "a ControlNet",
    "controlnet_file": "a ControlNet in the original layout",
    "pose_guider": "a Pose Guider",
    "vae": "a VAE",
    "vae_file": "a VAE in the original layout",
    "clip": "a CLIP image encoder",
    "clip_unprojected": "a CLIP image encoder without its projection",
    "clip_text": "a CLIP text encoder",
    "unknown": "no weight file of this family",
}
ACCEPTED_KINDS = {  # part -> the kinds of file that hold it
    "denoising_unet": ("unet", "unet_motion", "sd1_file"),
    "reference_unet": ("reference_unet", "unet", "sd1_file"),
    "motion_module": ("motion", "motion_adapter"),
    "pose_guider": ("pose_guider", "controlnet", "controlnet_file"),
    "image_encoder": ("clip",),
    "vae": ("vae", "vae_file", "sd1_file"),
}
PARTS = tuple(ACCEPTED_KINDS)

# Keys that are no weights of the part: reason -> regular expression. Every other key must be a weight.
_IGNORED_RENAMED = {"tables computed here": names.BUFFERS}  # of the renamed keys
_IGNORED = {  # kind -> of the file's own keys
    "sd1_file": {
        "text encoder": r"^(cond_stage_model|text_encoder)\.",
        "moving averages": r"^model_ema\.",
        "noise schedule": r"^(betas|alphas_cumprod(_prev)?|(sqrt|log)_.*alphas_cumprod|posterior_.*|logvar|"
        r"scale_factor|lvlb_weights)$",
        "training losses": r"^first_stage_model\.loss\.",
    },
    "vae_file": {"moving averages": r"^model_ema\.", "training losses": r"^(first_stage_model\.)?loss\."},
    "clip": {"text half": r"^(text_model\.|text_projection\.|logit_scale$)"},
    "controlnet": {
        "ControlNet's copy of the UNet": r"^(conv_in|time_embedding|down_blocks|mid_block|controlnet_\w+_blocks?)\.",
        "output convolution, which begins at zero": r"^controlnet_cond_embedding\.conv_out\.",
    },
    "controlnet_file": {
        "ControlNet's copy of the UNet": r"^(control_model\.)?(time_embed|input_blocks|middle_block|zero_convs|"
        r"middle_block_out)\.",
        "output convolution, which begins at zero": r"^(control_model\.)?input_hint_block\.14\.",
        "Stable Diffusion": r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.",
    },
}


def identify(state_dict: Mapping[str, Any]) -> str:
    """One of `KIND_NAMES`, from keys and shapes alone.

    Raises:
        ValueError: a distinctive tensor has fewer dimensions than in any file.
    """
    keys = state_dict.keys()

    def has(*endings: str) -> bool:
        return all(any(key.endswith(ending) for key in keys) for ending in endings)

    def starts(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in keys)

    def width(ending: str) -> int | None:
        """Input channels of a layer: the length of its second axis."""
        return next((_length(state_dict, key, 1) for key in keys if key.endswith(ending)), None)

    if any("lora" in key.lower() for key in keys):
        return "lora"
    if has("input_hint_block.0.weight"):
        return "controlnet_file"
    if starts("conditioner.") or starts("model.diffusion_model.label_emb."):
        return "sdxl_file"
    if starts("model.diffusion_model."):
        return "sd2_file" if starts("cond_stage_model.model.") or width("attn2.to_k.weight") == 1024 else "sd1_file"
    if starts("controlnet_cond_embedding."):
        return "controlnet"
    motion = [key for key in keys if "motion_modules." in key]
    if "conv_in.weight" in keys and "time_embedding.linear_1.weight" in keys:
        context = width("attn2.to_k.weight")
        if starts("add_embedding.") or context == 2048:
            return "unet_sdxl"
        if context == 1024:
            return "unet_sd2"
        if _length(state_dict, "conv_in.weight", 1) in (8, 9):
            return "unet_inpainting"
        if motion:
            return "unet_motion"
        return "unet" if "conv_out.weight" in keys else "reference_unet"
    if norms := [key for key in motion if key.endswith("norm.weight")]:
        widest = max(_length(state_dict, key, 0) for key in norms)
        if widest == 1280 and not starts("down_blocks.3."):
            return "motion_sdxl"
        return "motion" if any(".temporal_transformer." in key for key in motion) else "motion_adapter"
    if has("decoder.conv_in.weight", "encoder.conv_in.weight"):
        return "vae_file" if has("decoder.mid.block_1.conv1.weight") else "vae"
    if has("vision_model.embeddings.class_embedding"):
        return "clip" if "visual_projection.weight" in keys else "clip_unprojected"
    if has("text_model.embeddings.token_embedding.weight"):
        return "clip_text"
    if {"conv_in.weight", "blocks.0.weight", "conv_out.weight"} <= keys:
        return "pose_guider"
    return "unknown"


def _length(state_dict: Mapping[str, Any], key: str, axis: int) -> int:
    shape = tuple(state_dict[key].shape)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{key} is {list(shape)}, which has too few dimensions")
    return int(shape[axis])


def describe(state_dict: Mapping[str, Any], kind: str) -> str:
    """Its entry in `KIND_NAMES`, and a motion module's version."""
    if kind not in ("motion", "motion_adapter"):
        return KIND_NAMES[kind]
    mid, length = motion_facts(state_dict)
    version = "v2" if mid else "v1" if length == 24 else "v3"
    return f"{KIND_NAMES[kind]} ({version}{f', {length} frames' if length else ''})"


def motion_facts(state_dict: Mapping[str, Any]) -> tuple[bool, int | None]:
    """(whether it has a middle block, longest window in frames or None if unknown).

    Raises:
        ValueError: no window can be so long.
    """
    lengths = {_length(state_dict, key, -2) for key in state_dict if key.endswith((".pe", "pos_embed.pe"))}
    if not all(1 <= length <= limits.MOTION_FRAMES for length in lengths):
        raise ValueError(f"its position tables have not 1 to {limits.MOTION_FRAMES} rows")
    return any(key.startswith("mid_block.motion_modules.") for key in state_dict), max(lengths, default=None)


def rename_keys(state_dict: StateDict, kind: str, part: str, model: ModelConfig) -> tuple[StateDict, dict[str, int]]:
    """The tensors of one part under diffusers' keys (AnimateDiff's for temporal layers), and how many keys were
    ignored, by reason.

    Unknown keys stay as they are, so that `match_keys` reports them.
    """
    rename = _renaming(kind, part, model)
    ignored_before, ignored_after = dict(_IGNORED.get(kind, {})), dict(_IGNORED_RENAMED)
    if part == "reference_unet":
        ignored_after["output convolution, which ReferenceNet has not"] = names.HEAD
    if kind == "sd1_file":
        other = r"^first_stage_model\." if part in UNETS else r"^model\.diffusion_model\."
        ignored_before["other parts of the file"] = other
    result: dict[str, Tensor | np.ndarray] = {}
    ignored: dict[str, int] = {}
    for key, tensor in state_dict.items():
        renamed = rename(key)
        reasons = [reason for reason, pattern in ignored_before.items() if re.search(pattern, key)]
        reasons += [reason for reason, pattern in ignored_after.items() if re.search(pattern, renamed)]
        if reasons:
            ignored[reasons[0]] = ignored.get(reasons[0], 0) + 1
            continue
        if part == "vae" and "attentions.0.to_" in renamed and renamed.endswith("weight") and len(tensor.shape) > 2:
            tensor = _as_linear(tensor)
        # Two names of one weight are kept, so that `match_keys` reports them.
        result[key if renamed in result else renamed] = tensor
    if kind.startswith("controlnet"):
        guider = model.pose_guider
        shape = (guider.conditioning_channels, guider.block_out_channels[-1], 3, 3)
        result |= {"conv_out.weight": np.zeros(shape, np.float32), "conv_out.bias": np.zeros(shape[:1], np.float32)}
    return result, ignored


def _as_linear(weight: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """A 1x1 convolution's weight [out, in, 1, 1] as [out, in]."""
    return weight.squeeze(2) if isinstance(weight, Tensor) else weight[(..., *[0] * (weight.ndim - 2))]


def _renaming(kind: str, part: str, model: ModelConfig) -> Callable[[str], str]:
    if part in UNETS:
        if kind == "sd1_file":
            return lambda key: _ldm_unet(key, model.unet.layers_per_block + 1)
        return adapter_to_animatediff
    if part == "motion_module":
        return adapter_to_animatediff
    if part == "vae":
        return lambda key: names.current_key(_ldm_vae(key, len(model.vae.block_out_channels)))
    if kind == "controlnet":
        return lambda key: key.removeprefix("controlnet_cond_embedding.")
    if kind == "controlnet_file":
        return _ldm_hint
    return lambda key: key


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP_LEVEL = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def _ldm_unet(key: str, per_level: int) -> str:
    """`per_level`: resnets of an up block, which is also the number of entries of a down block with its downsampler."""
    if not key.startswith("model.diffusion_model."):
        return key
    name = key.removeprefix("model.diffusion_model.")
    module, _, leaf = name.rpartition(".")
    if module in _TOP_LEVEL:
        return f"{_TOP_LEVEL[module]}.{leaf}"
    if not (match := re.fullmatch(r"(input|output|middle)_blocks?\.(\d+)\.(.+)", name)):
        return key
    side, index, rest = match[1], int(match[2]), match[3]
    if side == "middle":
        if index == 1:
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{index // 2}.{_rename_module(rest, _RESNET)}"
    entry, _, rest = rest.partition(".")
    level, layer = divmod(index - (side == "input"), per_level)
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    if entry == "0":
        return f"{block}.resnets.{layer}.{_rename_module(rest, _RESNET)}"
    return f"{block}.attentions.{layer}.{rest}"


def _rename_module(rest: str, table: dict[str, str]) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{table.get(module, module)}.{leaf}"


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _ldm_vae(key: str, levels: int) -> str:
    name = key.removeprefix("first_stage_model.")
    name = re.sub(r"\bnorm_out\.", "conv_norm_out.", name) if re.match(r"(en|de)coder\.norm_out\.", name) else name
    name = name.replace(".nin_shortcut.", ".conv_shortcut.")
    name = re.sub(r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", name)
    attention = re.search(r"\.mid\.attn_1\.(\w+)\.", name)
    if attention:
        layer = _VAE_ATTENTION.get(attention[1], attention[1])
        name = name.replace(attention[0], f".mid_block.attentions.0.{layer}.")
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up_blocks.{levels - 1 - int(match[1])}.", name)
    return re.sub(r"^(decoder\.up_blocks\.\d+)\.block\.", r"\1.resnets.", name).replace(".upsample.", ".upsamplers.0.")


def _ldm_hint(key: str) -> str:
    """ControlNet's hint block is a sequence in which every second entry is an activation."""
    match = re.fullmatch(r"(?:control_model\.)?input_hint_block\.(\d+)\.(\w+)", key)
    if not match:
        return key
    index = int(match[1]) // 2
    return f"conv_in.{match[2]}" if index == 0 else f"blocks.{index - 1}.{match[2]}"


_ADAPTER = {
    "attn1": "attention_blocks.0",
    "attn2": "attention_blocks.1",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "ff_norm",
    "pos_embed": "pos_encoder",
}


def adapter_to_animatediff(key: str) -> str:
    """diffusers' MotionAdapter names as AnimateDiff's; other keys stay as they are."""
    if ".motion_modules." not in key or ".temporal_transformer." in key:
        return key
    key = re.sub(r"(\.motion_modules\.\d+)\.", r"\1.temporal_transformer.", key)
    return re.sub(r"(?<=transformer_blocks\.0\.)(\w+)(?=\.)", lambda match: _ADAPTER.get(match[0], match[0]), key)


def animatediff_to_adapter(key: str) -> str:
    """The inverse of `adapter_to_animatediff`."""
    for adapter, animatediff in _ADAPTER.items():
        key = key.replace(f"transformer_blocks.0.{animatediff}.", f"transformer_blocks.0.{adapter}.")
    return key.replace(".temporal_transformer.", ".")
