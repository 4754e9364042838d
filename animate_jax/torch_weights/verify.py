"""Compares a checkpoint with PyTorch on random inputs, part by part: with diffusers' and transformers' classes, loaded
from the files by torch itself. Needs torch, diffusers and transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from animate_jax.storage import Address
from animate_jax.torch_weights import key_layouts, names
from animate_jax.torch_weights.exporting import folder_config, unet_config
from animate_jax.torch_weights.families import Files
from animate_jax.torch_weights.fetching import find_checkpoint
from animate_jax.torch_weights.read import find_file, read_state_dict

Outputs = dict[str, np.ndarray]


def verify(source: Address, files: Files, size: int = 8) -> dict[str, float]:
    """Part -> largest difference, relative to the largest value PyTorch gives, of any output compared.

    Args:
        files: part -> file or folder in diffusers' or AnimateDiff's layout, see `families.find_files`.
        size: latent pixels of a side (UNets).

    Raises:
        UserError: no checkpoint, a part is missing or unknown to PyTorch, or torch is not installed.
    """
    try:
        import diffusers  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"verify runs the files in PyTorch: pip install 'animate-jax[convert]' ({error})") from error
    folder = find_checkpoint(source)
    model = checkpoint.read_preset(folder).model
    stored = checkpoint.stored_arrays(folder)
    worst = {}
    for part, path in files.items():
        leaves = {key: leaf for key, leaf in stored.items() if checkpoint.part_of(key) == part}
        if not leaves:
            raise UserError(f"{folder}: lacks {part}, which {path} holds: import it first")
        read_state_dict(path)  # refuses what is damaged or hostile, before torch sees it
        with reading(find_file(path), "file for torch", "convert it to .safetensors"):
            state_dict = _torch_load(find_file(path))
            kind = key_layouts.identify(state_dict)
        if kind not in ("unet", "reference_unet", "motion", "motion_adapter", "pose_guider", "vae", "clip"):
            raise UserError(
                f"{path} is {key_layouts.KIND_NAMES[kind]}: verify reads diffusers' or AnimateDiff's layout"
            )
        arrays = {
            key.partition(".")[2]: jnp.asarray(array, jnp.float32)
            for key, array in checkpoint.read_arrays(folder, leaves).items()
        }
        with torch.no_grad():
            expected, ours = _CHECKS[part](model, state_dict, arrays, size)
        del state_dict
        worst[part] = max(
            float(np.abs(ours[name].astype(np.float64) - value).max() / np.abs(value).max())
            for name, value in expected.items()
        )
    return worst


def _torch_load(path: pathlib.Path) -> dict[str, Any]:
    """The file as torch reads it, independent of our reader where possible."""
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".json":
        return {key: torch.from_numpy(np.asarray(tensor)).float() for key, tensor in read_state_dict(path).items()}
    loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, mmap=True)
    while isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    return {key.removeprefix("module."): value.float() for key, value in loaded.items() if hasattr(value, "shape")}


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def _run_jax(
    build: Callable[[PresplitRngs], nnx.Module], arrays: Params, call: Callable[..., Any], *inputs: Any
) -> Any:
    graphdef = split_model(nnx.eval_shape(lambda: build(PresplitRngs(jax.random.key(0)))))[0]

    def run(arrays: Params, *inputs: Any) -> Any:
        return call(merge_model(graphdef, arrays), *inputs)

    run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    return jax.tree.map(np.asarray, run(arrays, *inputs))


def _load(module: Any, state_dict: dict[str, Any]) -> Any:
    module.load_state_dict(state_dict, strict=True, assign=True)
    return module.eval()


@contextlib.contextmanager
def _meta_device():
    """Builds modules without memory, for tensors of files as parameters."""
    import torch

    with torch.device("meta"):
        yield


def _channels_first(x: np.ndarray) -> np.ndarray:
    """[batch, ..., channels] -> [batch, channels, ...]."""
    return np.moveaxis(x, -1, 1)


def _unet(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    """The spatial layers: one frame, no reference, one token."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    has_head = "conv_out.weight" in state_dict
    with _meta_device():
        unet: Any = UNet2DConditionModel.from_config(unet_config(model))
        if not has_head:
            unet.conv_norm_out = unet.conv_out = torch.nn.Identity()
    _load(unet, state_dict)
    features = {}  # block -> what its spatial attention reads
    for name, module in unet.named_modules():
        if name.endswith("transformer_blocks.0.norm1"):
            name = name.removesuffix(".transformer_blocks.0.norm1")
            module.register_forward_hook(lambda _m, _i, output, name=name: features.update({name: output}))
    x, token = _random(2, size, size, model.unet.in_channels), _random(2, model.unet.cross_attention_dim)
    time = np.array([7, 941], np.float32)
    inputs = (torch.from_numpy(array) for array in (_channels_first(x).copy(), time, token[:, None]))
    prediction = unet(*inputs).sample.numpy()
    expected = {name: value.numpy() for name, value in features.items()}
    config = dataclasses.replace(model.unet, position_embedding=False)

    def build(rngs: PresplitRngs) -> nnx.Module:
        return UNet(config, motion=False, rngs=rngs) if "conv_out.kernel" in arrays else ReferenceNet(config, rngs=rngs)

    def call(net: UNet, x: jax.Array, time: jax.Array, token: jax.Array) -> Any:
        if isinstance(net, ReferenceNet):
            return None, net(x, time, token)
        prediction, features, _ = net(x[:, None], time[:, None], net.precompute_conditioning(token), temporal=False)
        return prediction[:, 0], {path: tokens[:, 0] for path, tokens in features.items()}

    our_prediction, ours = _run_jax(build, arrays, call, x, time, token)
    if our_prediction is not None and has_head:
        expected["prediction"], ours["prediction"] = prediction, _channels_first(our_prediction)
    return expected, ours


def _motion(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    """diffusers' motion module, made to normalize each frame by itself as AnimateDiff and Moore do."""
    import torch
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    class PerFrame(torch.nn.GroupNorm):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # [B, C, F, H, W]
            return torch.stack([super(PerFrame, self).forward(frame) for frame in input.unbind(2)], 2)

    config, frames, pixels = model.unet, min(model.unet.motion_max_length, 24), 4
    paths = sorted({match for key in arrays if (match := key.partition(".temporal_transformer.")[0])})
    expected, ours = {}, {}
    adapter = {
        key_layouts.animatediff_to_adapter(key_layouts.adapter_to_animatediff(key)): value
        for key, value in state_dict.items()
        if not key.endswith(".pe")
    }
    for path in paths:
        channels = arrays[f"{path}.temporal_transformer.norm.scale"].shape[0]
        heads, groups = config.motion_num_attention_heads, config.motion_norm_num_groups
        module = AnimateDiffTransformer3D(
            num_attention_heads=heads,
            in_channels=channels,
            attention_head_dim=channels // heads,
            norm_num_groups=groups,
            activation_fn="geglu",
            attention_bias=False,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=config.motion_max_length,
            double_self_attention=True,
        )
        module.norm = PerFrame(groups, channels, eps=1e-6)
        state = {key.removeprefix(f"{path}."): value for key, value in adapter.items() if key.startswith(f"{path}.")}
        if wrong := module.load_state_dict(state, strict=False).unexpected_keys:
            raise UserError(f"{path} has keys that diffusers does not know: {', '.join(wrong[:3])}")
        x = _random(1, frames, pixels, pixels, channels)
        flat = torch.from_numpy(np.ascontiguousarray(_channels_first(x[0])))  # [F, C, H, W]
        expected[path] = module.eval()(flat, num_frames=frames).numpy()
        params = {key.removeprefix(f"{path}."): value for key, value in arrays.items() if key.startswith(f"{path}.")}
        build = functools.partial(_build_motion_module, channels, heads, groups)
        ours[path] = _channels_first(_run_jax(build, params, lambda module, x: module(x), x)[0])
    return expected, ours


def _build_motion_module(channels: int, heads: int, groups: int, rngs: PresplitRngs) -> MotionModule:
    return MotionModule(channels, heads, groups, rngs=rngs)


def _pose_guider(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    import torch
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    config = model.pose_guider
    with _meta_device():
        module = ControlNetConditioningEmbedding(config.conditioning_channels, 3, config.block_out_channels)
    _load(module, state_dict)
    x = _random(2, 64, 48, 3)
    expected = module(torch.from_numpy(_channels_first(x).copy())).numpy()
    ours = _run_jax(lambda rngs: PoseGuider(config, rngs=rngs), arrays, lambda module, x: module(x), x)
    return {"features": expected}, {"features": _channels_first(ours)}


def _vae(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as TorchAutoencoderKL

    with _meta_device():
        vae: Any = TorchAutoencoderKL.from_config(folder_config("vae", model))
    current = {names.current_key(key): value for key, value in state_dict.items()}
    # The oldest files store the attention of the VAE as 1x1 convolutions.
    square = {key for key, value in current.items() if "attentions.0.to_" in key and value.ndim == 4}
    _load(vae, {key: value[:, :, 0, 0] if key in square else value for key, value in current.items()})
    images, latents = np.tanh(_random(1, 64, 48, 3)), _random(1, size, size, model.vae.latent_channels)
    mean = vae.encode(torch.from_numpy(_channels_first(images).copy())).latent_dist.mean.numpy()
    decoded = vae.decode(torch.from_numpy(_channels_first(latents).copy())).sample.numpy()

    def call(vae: AutoencoderKL, images: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        return vae.encode(images)[0], vae.decode(latents)

    ours = _run_jax(lambda rngs: AutoencoderKL(model.vae, rngs=rngs), arrays, call, images, latents)
    return {"mean": mean, "decoded": decoded}, {"mean": _channels_first(ours[0]), "decoded": _channels_first(ours[1])}


def _clip(model: ModelConfig, state_dict: dict[str, Any], arrays: Params, size: int) -> tuple[Outputs, Outputs]:
    import torch
    from transformers import CLIPVisionConfig
    from transformers import CLIPVisionModelWithProjection as TorchCLIP

    config = model.image_encoder
    clip = TorchCLIP(CLIPVisionConfig(hidden_act="quick_gelu", **dataclasses.asdict(config)))
    wanted = {key: value for key, value in state_dict.items() if key.startswith(("vision_model.", "visual_pro"))}
    absent = clip.load_state_dict(wanted, strict=False, assign=True).missing_keys
    if absent := [key for key in absent if not key.endswith("position_ids")]:
        raise UserError(f"image_encoder: transformers misses {', '.join(absent[:3])}")
    x = _random(2, config.image_size, config.image_size, 3)
    expected = clip.eval()(torch.from_numpy(_channels_first(x).copy())).image_embeds.numpy()

    def build(rngs: PresplitRngs) -> nnx.Module:
        return CLIPVisionModelWithProjection(config, rngs=rngs)

    return {"embedding": expected}, {"embedding": _run_jax(build, arrays, lambda module, x: module(x), x)}


_CHECKS = {
    "denoising_unet": _unet,
    "reference_unet": _unet,
    "motion_module": _motion,
    "pose_guider": _pose_guider,
    "vae": _vae,
    "image_encoder": _clip,
}
