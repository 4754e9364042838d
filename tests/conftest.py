"""The model of the presets' own classes at a size that compiles in seconds, and a checkpoint of it."""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import gc
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

from animate_jax import storage
from animate_jax.checkpoints import checkpoint
from animate_jax.config import (
    DataConfig,
    FrameConfig,
    ImageEncoderConfig,
    ModelConfig,
    PoseGuiderConfig,
    Preset,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
    UNetConfig,
    VAEConfig,
)
from animate_jax.models.params import Params, abstract_model

MICRO = Preset(
    "micro",
    ModelConfig(
        unet=UNetConfig(
            in_channels=4,
            out_channels=4,
            block_out_channels=(8,),
            attention_levels=(False,),
            layers_per_block=1,
            num_attention_heads=2,
            cross_attention_dim=8,
            norm_num_groups=4,
            position_embedding=True,
            motion_max_length=8,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
        ),
        vae=VAEConfig(
            latent_channels=4, block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0
        ),
        image_encoder=ImageEncoderConfig(
            image_size=16,
            patch_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=8,
        ),
        pose_guider=PoseGuiderConfig(block_out_channels=(4, 4, 8), conditioning_channels=8),
        reference_pose_guider=True,
    ),
    ScheduleConfig(prediction="x0"),
    FrameConfig(48, 64, fps=10.0, pose_style="tiny"),
    SamplingConfig(steps=2, guidance=2.0, window=4, overlap=1, shared_noise=True),
)


# Somebody standing upright with spread arms: x, y of OpenPose's 18 points.
STANDING = np.array([
    (0.50, 0.12), (0.50, 0.22), (0.42, 0.22), (0.32, 0.28), (0.22, 0.30), (0.58, 0.22), (0.68, 0.28), (0.78, 0.30),
    (0.45, 0.52), (0.44, 0.72), (0.44, 0.92), (0.55, 0.52), (0.56, 0.72), (0.56, 0.92),
    (0.48, 0.10), (0.52, 0.10), (0.46, 0.11), (0.54, 0.11),
], np.float32)  # fmt: skip

# The model of the PyTorch implementations at such a size: two levels, attention in one of them.
SMALL = dataclasses.replace(
    MICRO,
    name="small",
    model=dataclasses.replace(
        MICRO.model,
        unet=UNetConfig(
            block_out_channels=(8, 16),
            attention_levels=(True, False),
            num_attention_heads=2,
            cross_attention_dim=12,
            norm_num_groups=4,
            motion_max_length=32,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
        ),
        vae=VAEConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4),
        image_encoder=dataclasses.replace(MICRO.model.image_encoder, projection_dim=12),
        pose_guider=PoseGuiderConfig(block_out_channels=(4, 8), conditioning_channels=8),
        reference_pose_guider=False,
    ),
    schedule=ScheduleConfig(),
    frames=FrameConfig(64, 64),
    sampling=SamplingConfig(steps=2, window=24),
)


def using(config: TrainConfig, preset: Preset) -> TrainConfig:
    """The run with another preset."""
    return dataclasses.replace(config, preset=preset)


def training(data: DataConfig, preset: Preset) -> TrainConfig:
    """A run that reads this data."""
    return TrainConfig(stage="stage1", output="", preset=preset, data=data)


def pytest_configure(config):
    """All processes of a run, workers and those that tests start, keep what they compile in one folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="animate_jax-tests-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module")
def compile_fast():
    """What is compiled here need not run fast. Without the emitters of fusions, unoptimized code compiles twice as fast
    again; JAX has an option for that in each call of `jit` alone."""

    def options(*args, env_options_overrides=None, **named):
        overrides = {"xla_cpu_use_fusion_emitters": False} | (env_options_overrides or {})
        return get_compile_options(*args, env_options_overrides=overrides, **named)

    get_compile_options = compiler.get_compile_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def leave_no_programs():
    """Traced programs are kept only where a test asks for it, and compiled ones while there is memory."""
    yield
    storage._programs = None
    if resident_bytes() > MEMORY:
        release()
    if resident_bytes() > MEMORY:
        jax.clear_caches()
        release()


MEMORY = 1_800_000_000  # bytes that a worker may begin a file with


def resident_bytes() -> int:
    """The memory of this process; 0 where Linux does not say."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def release() -> None:
    """Gives back what compiling took: glibc keeps freed memory, half a gigabyte for a small model's gradient."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def micro() -> Preset:
    return MICRO


@pytest.fixture(scope="session")
def micro_copying() -> Preset:
    """`micro`, with the warped reference as a condition."""
    unet = dataclasses.replace(MICRO.model.unet, appearance="warp")
    return dataclasses.replace(MICRO, model=dataclasses.replace(MICRO.model, unet=unet))


@pytest.fixture(scope="session")
def micro_params() -> Params:
    """Random parameters of a sensible size. None is zero, so poses and neighboring frames change the result."""
    return random_params(MICRO)


def random_params(preset: Preset) -> Params:
    random = np.random.default_rng(0)
    params = {}
    for path, leaf in abstract_model(preset.model)[1].items():
        array = random.normal(size=leaf.shape)
        if path.endswith("kernel"):
            array /= np.sqrt(array[..., 0].size)
        else:
            array = 0.1 * array + path.endswith("scale")
        params[path] = jnp.asarray(array, leaf.dtype)
    return params


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory, micro_params) -> pathlib.Path:
    path = tmp_path_factory.mktemp("checkpoints") / "micro"
    checkpoint.save(path, micro_params, MICRO)
    return path


def pytest_ignore_collect(collection_path, config):
    """What `-m` leaves out as a whole file is not even imported: imports were a third of `make quick`."""
    if "not compiles" in config.option.markexpr and collection_path.match("test_*.py"):
        marks = collection_path.read_text().partition("\npytestmark = ")[2].partition("\n\n")[0]
        return "pytest.mark.compiles" in marks or None


def pytest_collection_modifyitems(items):
    """Files that compile go first, so that short ones fill both workers' time at the end."""
    compiling = {item.path for item in items if item.get_closest_marker("compiles")}
    items.sort(key=lambda item: item.path not in compiling)
