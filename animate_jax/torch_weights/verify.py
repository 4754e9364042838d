"""Runs the same random inputs through a checkpoint and through PyTorch, part by part: diffusers' and transformers'
classes, filled from the peers' files by torch's own loading, not by ours. Needs torch, diffusers and transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from animate_jax.checkpoints import checkpoint
from animate_jax.config import ModelConfig
from animate_jax.errors import UserError, reading
from animate_jax.models.image_encoder import CLIPVisionModelWithProjection
from animate_jax.models.params import Params, PresplitRngs, merge_model, split_model
from animate_jax.models.pose_guider import PoseGuider
from animate_jax.models.reference_net import ReferenceNet
from animate_jax.models.temporal import MotionModule
from animate_jax.models.unet import UNet
from animate_jax.models.vae import AutoencoderKL
from animate_jax.torch_weights import key_layouts
from animate_jax.torch_weights.exporting import folder_config, unet_config
from animate_jax.torch_weights.importing import Files
from animate_jax.torch_weights.read import find, read

Outputs = dict[str, np.ndarray]


def verify(source: str | pathlib.Path, files: Files, size: int = 8) -> dict[str, float]:
    """Part -> largest difference, relative to the largest value PyTorch gives, of any output compared.

    Args:
        files: part -> file or folder in diffusers' or the peers' layout, see `families.locate`.
        size: latent pixels of a side (UNets).

    Raises:
        UserError: no checkpoint, a part is missing or unknown to PyTorch, or torch is not installed.
    """
    try:
        import diffusers  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"verify runs the files in PyTorch: install torch, diffusers, transformers ({error})"
        ) from error
    source = checkpoint.find(source)
    model = checkpoint.read_preset(source).model
    stored = checkpoint.stored_arrays(source)
    worst = {}
    for part, path in files.items():
        leaves = {key: leaf for key, leaf in stored.items() if checkpoint.part_of(key) == part}
        if not leaves:
            raise UserError(f"{source}: lacks {part}, which {path} holds: import it first")
        read(path)  # refuses what is damaged or hostile, before torch sees it
        with reading(find(path), "file for torch", "convert it to .safetensors"):
            state_dict = _torch_load(find(path))
            kind = key_layouts.identify(state_dict)
        if kind not in ("unet", "reference_unet", "motion", "motion_adapter", "pose_guider", "vae", "clip"):
            raise UserError(f"{path} is {key_layouts.KINDS[kind]}: verify reads the diffusers or the peers' layout")
        arrays = {
            key.partition(".")[2]: jnp.asarray(array, jnp.float32)
            for key, array in checkpoint.read_some(source, leaves).items()
        }
        with torch.no_grad():
            theirs, ours = _CHECKS[part](model, state_dict, arrays, size)
        del state_dict
        worst[part] = max(
            float(np.abs(ours[name].astype(np.float64) - value).max() / np.abs(value).max())
            for name, value in theirs.items()
        )
    return worst


def _torch_load(path: pathlib.Path) -> dict[str, Any]:
    """The file as torch reads it, independent of our reader where torch has one."""
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".json":
        return {key: torch.from_numpy(np.asarray(tensor)).float() for key, tensor in read(path).items()}
    loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, mmap=True)
    while isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    return {key.removeprefix("module."): value.float() for key, value in loaded.items() if hasattr(value, "shape")}


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def _ours(build: Callable[[PresplitRngs], nnx.Module], arrays: Params, call: Callable[..., Any], *inputs: Any) -> Any:
    graphdef = split_model(nnx.eval_shape(lambda: build(PresplitRngs(jax.random.key(0)))))[0]
    run = jax.jit(lambda arrays, *inputs: call(merge_model(graphdef, arrays), *inputs),
                  compiler_options={"xla_backend_optimization_level": 0})  # fmt: skip
    return jax.tree.map(np.asarray, run(arrays, *inputs))


def _theirs(module: Any, state_dict: dict[str, Any]) -> Any:
    module.load_state_dict(state_dict, strict=True, assign=True)
    return module.eval()


@contextlib.contextmanager
def _meta():
    """Modules are built without memory; the files' tensors become their parameters."""
    import torch

    with torch.device("meta"):
        yield


def _first(x: np.ndarray) -> np.ndarray:
    """Channels last -> first."""
    return np.moveaxis(x, -1, 1)


def _unet(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    """The spatial layers: one frame, no reference, one token."""
    import torch
    from diffusers import UNet2DConditionModel

    head = "conv_out.weight" in state_dict
    with _meta():
        unet = UNet2DConditionModel.from_config(unet_config(model))
        if not head:
            unet.conv_norm_out = unet.conv_out = torch.nn.Identity()
    _theirs(unet, state_dict)
    lent, theirs, hooks = {}, {}, []
    for name, module in unet.named_modules():
        if name.endswith("transformer_blocks.0.norm1"):
            name = name.removesuffix(".transformer_blocks.0.norm1")
            hooks.append(module.register_forward_hook(lambda _m, _i, output, name=name: theirs.update({name: output})))
    x, token = _random(2, size, size, model.unet.in_channels), _random(2, model.unet.cross_attention_dim)
    time = np.float32([7, 941])
    out = unet(torch.from_numpy(_first(x).copy()), torch.from_numpy(time), torch.from_numpy(token)[:, None]).sample
    theirs = {name: value.numpy() for name, value in theirs.items()}
    config = dataclasses.replace(model.unet, position_embedding=False)

    def call(net: UNet, x: jax.Array, time: jax.Array, token: jax.Array) -> Any:
        if isinstance(net, ReferenceNet):
            return None, net(x, time, token)
        prediction, lent, _ = net(x[:, None], time[:, None], net.condition(token), temporal=False)
        return prediction[:, 0], {path: tokens[:, 0] for path, tokens in lent.items()}

    kind = UNet if "conv_out.kernel" in arrays else ReferenceNet
    build = (lambda rngs: ReferenceNet(config, rngs=rngs)) if kind is ReferenceNet else (
        lambda rngs: UNet(config, motion=False, rngs=rngs))  # fmt: skip
    prediction, lent = _ours(build, arrays, call, x, time, token)
    if prediction is not None and head:
        theirs["prediction"], lent["prediction"] = out.numpy(), _first(prediction)
    return theirs, lent


def _motion(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    """diffusers' motion module, made to normalise each frame by itself as AnimateDiff and Moore do."""
    import torch
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    class PerFrame(torch.nn.GroupNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, F, H, W]
            return torch.stack([super(PerFrame, self).forward(frame) for frame in x.unbind(2)], 2)

    config, frames, pixels = model.unet, min(model.unet.motion_max_length, 24), 4
    paths = sorted({match for key in arrays if (match := key.partition(".temporal_transformer.")[0])})
    theirs, ours = {}, {}
    adapter = {key_layouts.animatediff_to_adapter(key_layouts.adapter_to_animatediff(key)): value
               for key, value in state_dict.items() if not key.endswith(".pe")}  # fmt: skip
    for path in paths:
        channels = arrays[f"{path}.temporal_transformer.norm.scale"].shape[0]
        heads, groups = config.motion_num_attention_heads, config.motion_norm_num_groups
        module = AnimateDiffTransformer3D(
            num_attention_heads=heads, in_channels=channels, attention_head_dim=channels // heads,
            norm_num_groups=groups, activation_fn="geglu", attention_bias=False, positional_embeddings="sinusoidal",
            num_positional_embeddings=config.motion_max_length, double_self_attention=True,
        )  # fmt: skip
        module.norm = PerFrame(groups, channels, eps=1e-6)
        state = {key.removeprefix(f"{path}."): value for key, value in adapter.items() if key.startswith(f"{path}.")}
        if wrong := module.load_state_dict(state, strict=False).unexpected_keys:
            raise UserError(f"{path} has keys that diffusers does not know: {', '.join(wrong[:3])}")
        x = _random(1, frames, pixels, pixels, channels)
        flat = torch.from_numpy(np.ascontiguousarray(_first(x[0])))  # [F, C, H, W]
        theirs[path] = module.eval()(flat, num_frames=frames).numpy()
        own = {key.removeprefix(f"{path}."): value for key, value in arrays.items() if key.startswith(f"{path}.")}
        build = lambda rngs, n=channels: MotionModule(n, heads, groups, rngs=rngs)  # noqa: E731, B023
        ours[path] = _first(_ours(build, own, lambda module, x: module(x), x)[0])
    return theirs, ours


def _pose_guider(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int
                 ) -> tuple[Outputs, Outputs]:  # fmt: skip
    import torch
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    config = model.pose_guider
    with _meta():
        module = ControlNetConditioningEmbedding(config.conditioning_channels, 3, config.block_out_channels)
    _theirs(module, state_dict)
    x = _random(2, 64, 48, 3)
    theirs = module(torch.from_numpy(_first(x).copy())).numpy()
    ours = _ours(lambda rngs: PoseGuider(config, rngs=rngs), arrays, lambda module, x: module(x), x)
    return {"features": theirs}, {"features": _first(ours)}


def _vae(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    import torch
    from diffusers import AutoencoderKL as Theirs

    with _meta():
        vae = Theirs.from_config(folder_config("vae", model))
    current = {key_layouts.names.current_key(key): value for key, value in state_dict.items()}
    # The oldest files store the attention of the VAE as 1x1 convolutions.
    square = {key for key, value in current.items() if "attentions.0.to_" in key and value.ndim == 4}
    _theirs(vae, {key: value[:, :, 0, 0] if key in square else value for key, value in current.items()})
    images, latents = np.tanh(_random(1, 64, 48, 3)), _random(1, size, size, model.vae.latent_channels)
    mean = vae.encode(torch.from_numpy(_first(images).copy())).latent_dist.mean.numpy()
    decoded = vae.decode(torch.from_numpy(_first(latents).copy())).sample.numpy()
    call = lambda vae, images, latents: (vae.encode(images)[0], vae.decode(latents))  # noqa: E731
    ours = _ours(lambda rngs: AutoencoderKL(model.vae, rngs=rngs), arrays, call, images, latents)
    return {"mean": mean, "decoded": decoded}, {"mean": _first(ours[0]), "decoded": _first(ours[1])}


def _clip(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    import torch
    from transformers import CLIPVisionConfig
    from transformers import CLIPVisionModelWithProjection as Theirs

    config = model.image_encoder
    clip = Theirs(CLIPVisionConfig(hidden_act="quick_gelu", **dataclasses.asdict(config)))
    wanted = {key: value for key, value in state_dict.items() if key.startswith(("vision_model.", "visual_pro"))}
    absent = clip.load_state_dict(wanted, strict=False, assign=True).missing_keys
    if absent := [key for key in absent if not key.endswith("position_ids")]:
        raise UserError(f"image_encoder: transformers misses {', '.join(absent[:3])}")
    x = _random(2, config.image_size, config.image_size, 3)
    theirs = clip.eval()(torch.from_numpy(_first(x).copy())).image_embeds.numpy()
    build = lambda rngs: CLIPVisionModelWithProjection(config, rngs=rngs)  # noqa: E731
    return {"embedding": theirs}, {"embedding": _ours(build, arrays, lambda module, x: module(x), x)}


_CHECKS = {
    "denoising_unet": _unet, "reference_unet": _unet, "motion_module": _motion, "pose_guider": _pose_guider,
    "vae": _vae, "image_encoder": _clip,
}  # fmt: skip
