"""Recorded runs of the PyTorch peer, replayed from the picture to the video: every array it left behind.

`tests/golden/README.md` says what the files hold. The whole model runs here as it does when sampling.
"""

import contextlib
import functools
import json
import pathlib
import re
import runpy
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

pytestmark = pytest.mark.compiles

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
weights = runpy.run_path(str(GOLDEN / "weights.py"))

# Compiles three times faster than the default, and the arithmetic is the same.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

TRACED = (TimestepEmbedding, ResnetBlock2D, Transformer2DModel, MotionModule, Downsample2D, Upsample2D)
INPUTS = {"ref_image_u8", "pose_images_u8", "latents_init", "meta_json"}
# Kind of array -> its keys, and the tolerance: largest difference relative to the largest value. What comes after
# the guidance gets more, because its scale of 3.5 multiplies the rounding of both halves.
KINDS = {
    "inputs of the encoders": (r"clip_pixel_values|ref_image_tensor", 1e-6),
    "CLIP embedding": (r"clip_image_embeds", 1e-5),
    "VAE moments": (r"vae_moments_mean|ref_latents", 1e-5),
    "pose features": (r"pose_fea", 1e-5),
    "ReferenceNet's layers": (r"trace/reference/.*", 1e-5),
    "reference bank": (r"bank/.*", 1e-5),
    "denoising UNet's layers": (r"trace/denoising/.*", 1e-5),
    "schedule": (r"scheduler/.*|step\d+/timestep", 1e-5),
    "window predictions": (r"step\d+/win\d+/pred", 1e-5),
    "guided predictions": (r"step\d+/noise_pred", 3e-5),
    "latents": (r"step\d+/latents_out|latents_final", 3e-5),
    "video": (r"video", 3e-5),
}


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
def model(version: str) -> AnimateAnyone:
    specs = json.loads((GOLDEN / "specs.json").read_text())
    files = {"denoising_unet": f"denoising_unet_{version}"}
    files |= {name: name for name in ("reference_unet", "pose_guider", "image_encoder", "vae")}
    parts = {part: weights["state_dict"](name, specs) for part, name in files.items()}
    graphdef, abstract = abstract_model(model_config(CONFIG["inference"][version]))
    params = {}
    for part, state_dict in parts.items():
        params |= from_torch(match_part(state_dict, part, abstract, with_motion=part == "denoising_unet"))
    return merge_model(graphdef, jax.tree.map(jnp.asarray, params))


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


def replay(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the peer's arrays, ours), both by the file's keys and in its layout."""
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    meta = json.loads(str(golden["meta_json"]))
    version = CONFIG["inference"][meta["version"]]
    whole = model(meta["version"])
    options = SamplingConfig(
        meta["steps"], meta["guidance"], meta["context_frames"], meta["context_overlap"], True, blend="flat"
    )
    ours = {}

    # Once per video
    picture = golden["ref_image_u8"]
    clip = jnp.asarray(clip_pixels(picture, CONFIG["image_encoder"]["image_size"])[None])
    image = (jnp.asarray(picture, jnp.float32) / 127.5 - 1)[None]
    poses = jnp.asarray(golden["pose_images_u8"], jnp.float32)[None] / 255
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
        prediction, layers = denoise(whole, x, t, conditioning, pose[:, frames[0]])
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
    ours["video"] = channels_first(decode(whole, x[0])[None])
    return golden, {key: np.asarray(array) for key, array in ours.items()}


@pytest.fixture(scope="module", params=["single", "long", "v1"])
def run(request):
    return replay(request.param)


def errors(run: tuple[dict, dict], pattern: str) -> dict[str, float]:
    golden, ours = run
    result = {}
    for key in golden:
        if re.fullmatch(pattern, key):
            assert ours[key].shape == golden[key].shape, key
            difference = np.abs(ours[key].astype(np.float64) - golden[key]).max()
            result[key] = float(difference / max(np.abs(golden[key]).max(), 1e-30))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_peer(run, kind):
    pattern, tolerance = KINDS[kind]  # only one run recorded the layers; the next test sees that no array is left out
    assert {key: error for key, error in errors(run, pattern).items() if not error < tolerance} == {}


def test_every_recorded_array_is_compared(run):
    golden, _ = run
    patterns = "|".join(pattern for pattern, _ in KINDS.values())
    assert {key for key in golden if not re.fullmatch(patterns, key)} == INPUTS


def test_the_weights_are_the_peers():
    checksums = json.loads((GOLDEN / "checksums.json").read_text())
    for name, expected in checksums.items():
        assert weights["checksum"](weights["state_dict"](name)) == expected, name
