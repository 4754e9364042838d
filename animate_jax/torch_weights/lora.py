"""LoRA files: diffusers' `pytorch_lora_weights.safetensors`, written and read; older diffusers' and kohya's, read.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight   [rank, inputs]
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight   [outputs, rank]

"unet" is the denoising UNet; temporal layers have the names of diffusers' UNetMotionModel, and ReferenceNet, which
diffusers has not, is "reference_unet". Rank and alpha stand in the header, as peft's configuration.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from animate_jax.atomic import atomic_file
from animate_jax.config import ModelConfig
from animate_jax.errors import UserError, reading
from animate_jax.models.lora import DOWN, UNETS
from animate_jax.models.shapes import Params, parameter_shapes
from animate_jax.torch_weights.convert import to_torch
from animate_jax.torch_weights.key_layouts import animatediff_to_adapter
from animate_jax.torch_weights.read import LORA_FILE, find_file, read_metadata, read_state_dict, safetensors_header
from animate_jax.torch_weights.tensor import StateDict

PREFIXES = {"denoising_unet": "unet", "reference_unet": "reference_unet"}  # ours -> in the file
METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration in a safetensors header
_HALF = r"(.+)\.(?:lora_(A|B|down|up)|lora(?:_linear_layer)?\.(down|up))(?:\.default)?\.weight"
_TEXT_ENCODER = ("text_encoder", "lora_te")
_OTHER_WIDTHS = {1024: "Stable Diffusion 2", 2048: "SDXL"}  # of the text that cross-attention sees


@dataclasses.dataclass(frozen=True)
class LoraLayer:
    """What is added to a layer's kernel: `models.lora.product` of these three."""

    down: np.ndarray  # [inputs, rank]
    up: np.ndarray  # [rank, outputs]
    scale: float


def save_lora(folder: str | pathlib.Path, adapter: Params, scale: float, base: str) -> pathlib.Path:
    """Writes an adapter into a folder, under diffusers' name, for its `load_lora_weights`.

    Args:
        adapter: all of one rank, see `models.lora.make_adapter`.
        scale: alpha / rank.
        base: the checkpoint that it was trained beside, to be found in the file.
    """
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    for part, prefix in PREFIXES.items():
        own = {path.removeprefix(f"{part}."): array for path, array in adapter.items() if path.startswith(f"{part}.")}
        if not own:
            continue
        tensors |= {f"{prefix}.{animatediff_to_adapter(key)}": array for key, array in to_torch(own).items()}
        rank = next(array.shape[1] for path, array in own.items() if path.endswith(DOWN))
        layers = sorted(path.removesuffix(DOWN) for path in own if path.endswith(DOWN))
        peft = {
            "base_model_name_or_path": base,
            "lora_alpha": rank * scale,
            "r": rank,
            "target_modules": [animatediff_to_adapter(f"{layer}.").removesuffix(".") for layer in layers],
        }
        metadata |= {f"{prefix}.{name}": value for name, value in peft.items()}
    path = pathlib.Path(folder) / LORA_FILE
    with atomic_file(path) as file:
        header = safetensors_header(tensors, {METADATA: json.dumps(metadata, sort_keys=True)})
        file.write_bytes(b"".join([header, *(array.tobytes() for array in tensors.values())]))
    return path


def read_lora(path: str | pathlib.Path, model: ModelConfig) -> dict[str, LoraLayer]:
    """The adapters in a file, a folder or on the hub, by the layer that they change
    ("denoising_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q").

    Those of text encoders, which the model has not, are left out. Linear layers and 1x1 convolutions may be adapted.

    Raises:
        UserError: no such file, damaged, no LoRA, one of another architecture, or with parts that do not fit together.
    """
    file, state_dict = find_file(path), read_state_dict(path)
    with reading(file, "LoRA file", "take a whole copy"):
        peft = _peft_config(file)
        halves, alphas, other = _halves(state_dict)
    if not halves:
        raise UserError(f"{file}: holds no LoRA; its first key is {next(iter(state_dict))!r}")
    if other:
        kind = "a DoRA" if any(re.search("dora|magnitude", key) for key in other) else "no plain LoRA"
        raise UserError(f"{file}: is {kind} ({other[0]!r}): only pairs of lora_A and lora_B can be added")
    if text := next((width for each in halves.items() if (width := _text_width(*each)) in _OTHER_WIDTHS), None):
        raise UserError(f"{file}: is a LoRA for {_OTHER_WIDTHS[text]}: take one for Stable Diffusion 1.5")
    shapes = {path.removesuffix(".kernel"): leaf.shape for path, leaf in parameter_shapes(model).items()}
    layers = _layer_names(shapes)
    if unknown := [module for module in halves if module not in layers]:
        raise UserError(
            f"{file}: does not fit this model: {len(unknown)} of its {len(halves)} layers are not there, first "
            f"{unknown[0]!r}: take a LoRA for this checkpoint's own family"
        )
    found = {}
    for module, half in halves.items():
        layer = layers[module]
        down, up = (half.get(name) for name in "AB")
        if down is None or up is None:
            raise UserError(f"{file}: {module} has only one of lora_A and lora_B: take a whole copy")
        for tensor in (down, up):
            if len(tensor.shape) not in (2, 4) or math.prod(tensor.shape[2:]) != 1:
                raise UserError(f"{file}: {module} is {list(tensor.shape)}: only linear layers can be adapted")
        (rank, inputs), (outputs, other_rank) = down.shape[:2], up.shape[:2]
        if rank != other_rank:
            raise UserError(f"{file}: {module} has rank {rank} in lora_A and {other_rank} in lora_B: take a whole copy")
        if (inputs, outputs) != tuple(shapes[layer][-2:]):
            raise UserError(
                f"{file}: does not fit this model: {module} is {inputs} x {outputs} instead of "
                f"{' x '.join(map(str, shapes[layer][-2:]))}: take a LoRA for this checkpoint's own family"
            )
        down, up = (np.asarray(tensor).reshape(tensor.shape[:2]).T.astype(np.float32) for tensor in (down, up))
        if not (np.isfinite(down).all() and np.isfinite(up).all()):
            raise UserError(f"{file}: {module} holds numbers that are not finite: take a whole copy")
        with reading(file, "LoRA file", "take a whole copy"):
            alpha = float(np.asarray(alphas[module]).reshape(())) if module in alphas else None
            found[layer] = LoraLayer(down, up, _scale(peft, module, rank, alpha))
    return found


def _halves(state_dict: StateDict) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
    """Module -> {"A": tensor, "B": tensor}; module -> alpha; and keys that are neither."""
    halves: dict[str, dict[str, Any]] = {}
    alphas, other = {}, []
    for key, tensor in state_dict.items():
        if key.startswith(_TEXT_ENCODER):
            continue
        name = key.removeprefix("base_model.model.")
        name = re.sub(r"\.processor\.(to_\w+?)_lora\.", r".\1.lora.", name).replace(".to_out.lora.", ".to_out.0.lora.")
        if match := re.fullmatch(_HALF, name):
            half = {"down": "A", "up": "B"}.get(which := match[2] or match[3], which)
            halves.setdefault(match[1], {})[half] = tensor
        elif name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = tensor
        else:
            other.append(key)
    return halves, alphas, other


def _text_width(module: str, half: Mapping[str, Any]) -> int | None:
    """The width of the text that the module looks at, if it does."""
    return half["A"].shape[1] if re.search(r"attn2[._]to_k$", module) and "A" in half else None


def _layer_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """What a file may call a layer -> what it is called here."""
    layers = {}
    for layer, shape in shapes.items():
        if not layer.startswith(UNETS) or len(shape) not in (2, 4) or math.prod(shape[:-2]) != 1:
            continue
        part, _, rest = layer.partition(".")
        for name in (rest, animatediff_to_adapter(f"{rest}.").removesuffix(".")):
            layers[f"{PREFIXES[part]}.{name}"] = layer
            if part == "denoising_unet":
                layers[name] = layers["lora_unet_" + name.replace(".", "_")] = layer
    return layers


def _peft_config(file: pathlib.Path) -> dict[str, Any]:
    metadata = read_metadata(file) if file.suffix == ".safetensors" else {}
    return json.loads(metadata[METADATA]) if METADATA in metadata else {}


def _scale(peft: Mapping[str, Any], module: str, rank: int, alpha: float | None) -> float:
    """alpha / rank, as diffusers finds it: in the header, else beside the tensors, else 1."""
    part, _, name = module.partition(".")
    part, name = (f"{part}.", name) if f"{part}.lora_alpha" in peft else ("", module)
    if f"{part}lora_alpha" in peft:
        patterns = peft.get(f"{part}alpha_pattern") or {}
        own = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
        alpha = float(next(own, peft[f"{part}lora_alpha"]))
        scale = alpha / (math.sqrt(rank) if peft.get(f"{part}use_rslora") else rank)
    else:
        scale = 1.0 if alpha is None else alpha / rank
    if not math.isfinite(scale):
        raise ValueError(f"alpha is {alpha}")
    return scale
