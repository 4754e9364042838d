"""Replays the golden runs from the picture to the video with our model, as it runs when sampling: every array that the
PyTorch peer left behind, and ours. Needs nothing of pytest: `benchmarks/accelerator.py` replays them on accelerators.
"""

import contextlib
import functools
import json
import pathlib
import runpy
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from animate_jax.config import (
    ImageEncoderConfig,
    ModelConfig,
    PoseGuiderConfig,
    SamplingConfig,
    ScheduleConfig,
    UNetConfig,
    VAEConfig,
)
from animate_jax.diffusion import samplers, sampling_loop
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.diffusion.windows import windows
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.embeddings import TimestepEmbedding, timestep_embedding
from animate_jax.models.params import abstract_model, merge_model
from animate_jax.models.reference_net import ReferenceNet
from animate_jax.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from animate_jax.models.spatial import Transformer2DModel
from animate_jax.models.temporal import MotionModule
from animate_jax.torch_weights.convert import from_torch
from animate_jax.torch_weights.importing import match_part
from animate_jax.video.clip_image import clip_pixels

GOLDEN = pathlib.Path(__file__).parent
CONFIG = json.loads((GOLDEN / "config.json").read_text())
weights = runpy.run_path(str(GOLDEN / "weights.py"))


def jit(function):
    """On a CPU without optimization: compiles three times faster, and the arithmetic is the same."""

    @functools.cache
    def compiled():
        fast = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=fast)

    return lambda *inputs: compiled()(*inputs)


TRACED = (TimestepEmbedding, ResnetBlock2D, Transformer2DModel, MotionModule, Downsample2D, Upsample2D)


def model_config(version: dict) -> ModelConfig:
    unet, motion = CONFIG["unet"], version["unet_additional_kwargs"]
    vae, clip, pose = CONFIG["vae"], CONFIG["image_encoder"], CONFIG["pose_guider"]
    return ModelConfig(
        UNetConfig(
            in_channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            block_out_channels=tuple(unet["block_out_channels"]),
            attention_levels=tuple("CrossAttn" in name for name in unet["down_block_types"]),
            layers_per_block=unet["layers_per_block"],
            num_attention_heads=unet["attention_head_dim"],
            cross_attention_dim=unet["cross_attention_dim"],
            norm_num_groups=unet["norm_num_groups"],
            motion_max_length=motion["motion_module_kwargs"]["temporal_position_encoding_max_len"],
            motion_mid_block=motion["motion_module_mid_block"],
            motion_num_attention_heads=motion["motion_module_kwargs"]["num_attention_heads"],
            pool_norm_over_frames=not motion.get("use_inflated_groupnorm", False),
        ),
        VAEConfig(
            latent_channels=vae["latent_channels"],
            block_out_channels=tuple(vae["block_out_channels"]),
            layers_per_block=vae["layers_per_block"],
            norm_num_groups=vae["norm_num_groups"],
        ),
        ImageEncoderConfig(
            **{name: value for name, value in clip.items() if name not in ("hidden_act", "num_channels")}
        ),
        PoseGuiderConfig(tuple(pose["block_out_channels"]), pose["conditioning_embedding_channels"]),
    )


def schedule_config(version: dict) -> ScheduleConfig:
    settings = version["noise_scheduler_kwargs"]
    return ScheduleConfig(
        settings["beta_start"],
        settings["beta_end"],
        settings["beta_schedule"],
        settings.get("rescale_betas_zero_snr", False),
        "v" if settings.get("prediction_type") == "v_prediction" else "epsilon",
        settings.get("timestep_spacing", "leading"),
        settings["steps_offset"],
    )


@functools.cache
def model(version: str, dtype: str) -> AnimateAnyone:
    specs = json.loads((GOLDEN / "specs.json").read_text())
    files = {"denoising_unet": f"denoising_unet_{version}"}
    files |= {name: name for name in ("reference_unet", "pose_guider", "image_encoder", "vae")}
    parts = {part: weights["state_dict"](name, specs) for part, name in files.items()}
    graphdef, abstract = abstract_model(model_config(CONFIG["inference"][version]))
    params = {}
    for part, state_dict in parts.items():
        params |= from_torch(match_part(state_dict, part, abstract, with_motion=part == "denoising_unet"))
    return merge_model(graphdef, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params))


@contextlib.contextmanager
def tracing(parent: nnx.Module, *layers: type) -> Iterator[dict[str, jax.Array]]:
    """Collects what every layer (of these types, else a UNet's) inside of `parent` returns, by its path."""
    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(parent)}
    outputs: dict[str, jax.Array] = {}

    def traced(layer):
        original = layer.__call__

        def call(self, *inputs):
            result = original(self, *inputs)
            if id(self) in paths:
                outputs[paths[id(self)]] = result[0] if isinstance(result, tuple) else result
            return result

        return mock.patch.object(layer, "__call__", call)

    with contextlib.ExitStack() as stack:
        for layer in layers or TRACED:
            stack.enter_context(traced(layer))
        yield outputs


@jit
def condition(whole, latents, clip):
    with tracing(whole.reference_unet) as layers, tracing(whole, ReferenceNet) as lent:
        conditioning = whole.precompute_conditioning(latents, clip)
    return conditioning, lent["reference_unet"], layers


@jit
def denoise(whole, *inputs):
    with tracing(whole.denoising_unet) as layers:
        prediction = whole.denoise(*inputs)
    return prediction, layers


@jit
def prepare(whole, image, clip, poses):
    return whole.image_encoder(clip), whole.vae.encode(image)[0], whole.vae.to_latents(image), whole.pose_guider(poses)


@jit
def decode(whole, latents):
    return jnp.clip(whole.vae.to_images(latents) / 2 + 0.5, 0, 1)


def channels_first(x: jax.Array) -> np.ndarray:
    """[B, F, H, W, C] or [B, H, W, C] in the peer's layout."""
    return np.moveaxis(np.asarray(x), -1, 1)


def replay(name: str, dtype: str = "float32") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the peer's arrays, ours computed in `dtype`), both by the file's keys and in its layout."""
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    meta = json.loads(str(golden["meta_json"]))
    version = CONFIG["inference"][meta["version"]]
    whole = model(meta["version"], dtype)
    options = SamplingConfig(
        meta["steps"], meta["guidance"], meta["context_frames"], meta["context_overlap"], True, blend="flat"
    )
    ours = {}

    # Once per video
    picture = golden["ref_image_u8"]
    clip = jnp.asarray(clip_pixels(picture, CONFIG["image_encoder"]["image_size"])[None], dtype)
    image = jnp.asarray(picture.astype(np.float32) / 127.5 - 1, dtype)[None]
    poses = jnp.asarray(golden["pose_images_u8"].astype(np.float32) / 255, dtype)[None]
    token, mean, latents, pose = prepare(whole, image, clip, poses)
    ours["clip_pixel_values"], ours["clip_image_embeds"] = channels_first(clip), token
    ours["ref_image_tensor"], ours["vae_moments_mean"] = channels_first(image), channels_first(mean)
    ours["ref_latents"], ours["pose_fea"] = channels_first(latents), channels_first(pose)

    conditioning, lent, layers = condition(whole, latents, clip)
    channels = whole.reference_unet.config.block_out_channels[0]
    ours["trace/reference/time_proj"] = timestep_embedding(jnp.zeros(1), channels)
    for path, output in layers.items():
        ours[f"trace/reference/{path}"] = output[:, 0] if output.ndim == 3 else channels_first(output[:, 0])
    for path, features in lent.items():
        ours[f"bank/{path}.transformer_blocks.0"] = features
    # The peer runs ReferenceNet on an unconditional row, too, and never uses it.
    golden |= {key: golden[key][-1:] for key in golden if key.startswith(("trace/reference/", "bank/"))}

    # Every step
    schedule = make_schedule(schedule_config(version))
    chunks = windows(meta["frames"], options.window, options.overlap, options.closed_loop)
    assert chunks == meta["windows_per_step"]
    calls, steps = [], []

    def denoise_window(x, t, frames):
        prediction, layers = denoise(whole, jnp.asarray(x, dtype), t, conditioning, pose[:, frames[0]])
        prediction = prediction.astype(jnp.float32)
        if not calls:
            for path, output in layers.items():
                ours[f"trace/denoising/{path}"] = output[:, 0] if output.ndim == 3 else channels_first(output)
            ours["trace/denoising/time_proj"] = timestep_embedding(jnp.asarray(t[:, 0]), channels)
        step, window = divmod(len(calls), len(chunks))
        calls.append(ours.setdefault(f"step{step}/win{window}/pred", channels_first(prediction)))
        return prediction

    def ddim_step(schedule, prediction, x, t, count):
        x = ddim(schedule, prediction, x, t, count)
        step = len(steps)
        ours[f"step{step}/timestep"], ours[f"step{step}/noise_pred"] = t, channels_first(prediction)
        ours[f"step{step}/latents_out"] = channels_first(x)
        steps.append(t)
        return x

    ddim = samplers.ddim_step
    with mock.patch.object(samplers, "ddim_step", ddim_step):
        x = sampling_loop.sample_windowed(denoise_window, np.moveaxis(golden["latents_init"], 1, -1), schedule, options)
    ours["scheduler/timesteps"], ours["scheduler/alphas_cumprod"] = steps, schedule.alphas_cumprod
    ours["latents_final"] = channels_first(x)
    ours["video"] = channels_first(decode(whole, jnp.asarray(x[0], dtype))[None])
    ours = {key: np.asarray(array) for key, array in ours.items()}
    return golden, {key: array.astype(np.float32) if array.dtype == dtype else array for key, array in ours.items()}
