"""What is on the device while a video is denoised."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from animate_jax.config import LoraConfig, ModelConfig
from animate_jax.models.lora import make_adapter
from animate_jax.models.params import abstract_model
from animate_jax.pose.draw import draw
from animate_jax.sampling import pipeline as pipeline_module
from animate_jax.sampling.denoiser import CONDITIONING_ONLY, device_memory, held_on_host
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.torch_weights.lora import save_lora
from tests.sampling.test_pipeline import waving

GB = 10**9
ROOT = pathlib.Path(__file__).parents[2]


def test_large_weights_leave_small_devices():
    shapes = abstract_model(ModelConfig.sd15())[1]
    for memory in (16 * GB, 12 * GB):
        left = held_on_host(shapes, "bfloat16", memory)
        assert left == {path for path in shapes if path.startswith(CONDITIONING_ONLY)}
    assert sum(2 * shapes[path].size for path in left) > 2.3 * GB
    assert held_on_host(shapes, "bfloat16", 24 * GB) == set()
    assert held_on_host(shapes, "float32", 24 * GB) == left
    assert held_on_host(shapes, "float32", None) == set()
    assert device_memory() is None  # of a CPU


@pytest.mark.compiles
def test_conditioning_networks_are_off_the_device_while_denoising(
    micro, micro_params, micro_checkpoint, monkeypatch, compile_fast
):
    picture = np.random.default_rng(0).integers(0, 256, (micro.frames.height, micro.frames.width, 3), np.uint8)
    keypoints = waving(5)
    sizes, videos = {}, {}
    for memory in (None, 1000):
        monkeypatch.setattr(pipeline_module, "device_memory", lambda memory=memory: memory)
        before = live_bytes()
        pipeline = Pipeline.from_pretrained(micro_checkpoint)
        options = pipeline.animation_config()
        size = options.height, options.width, options.pose_style
        seen = []
        for _ in range(2):  # the second call finds everything again
            conditioning = pipeline.precompute_conditioning(picture, draw(keypoints[0], *size), options)
            poses = np.stack([draw(keypoints[i], *size) for i in range(5)])
            latents = pipeline.sample(
                conditioning,
                poses,
                options,
                progress=False,
                callback=lambda *_, seen=seen, before=before: seen.append(live_bytes() - before),
            )
            videos.setdefault(memory, []).append(pipeline.decode(latents))
            del conditioning
        sizes[memory] = max(seen)
        del pipeline
    expected = sum(array.nbytes for path, array in micro_params.items() if path.startswith(CONDITIONING_ONLY))
    assert expected > 0.2 * sum(array.nbytes for array in micro_params.values())
    assert sizes[None] - sizes[1000] == expected
    for video in (*videos[None][1:], *videos[1000]):
        np.testing.assert_array_equal(video, videos[None][0])


@pytest.fixture(params=["float32", "bfloat16"])
def held(request, micro_checkpoint, monkeypatch):
    """A pipeline some of whose weights are in host memory, and one with all on the device."""
    whole = Pipeline.from_pretrained(micro_checkpoint, dtype=request.param)
    monkeypatch.setattr(pipeline_module, "device_memory", lambda: 1000)
    held = Pipeline.from_pretrained(micro_checkpoint, dtype=request.param)
    assert {path for path, array in held.params.items() if isinstance(array, np.ndarray)} == on_host(held)
    return held, whole


def on_host(pipeline) -> set[str]:
    return {path for path in pipeline.params if path.startswith(CONDITIONING_ONLY)}


def test_a_lora_of_weights_in_host_memory(held, tmp_path):
    """They stay there, in their dtype, and have the same numbers as on the device."""
    pipeline, whole = held
    adapter = make_adapter(whole.params, LoraConfig(rank=2, target_modules=r".*attn1\.to_q"), seed=0)
    random = np.random.default_rng(0)
    adapter = {path: random.normal(size=array.shape).astype(np.float32) for path, array in adapter.items()}
    file = save_lora(tmp_path, adapter, 0.5, "micro")
    before = pipeline.params
    for each in (pipeline, whole):
        each.load_lora(file, 0.7)
    changed = {path for path in before if pipeline.params[path] is not before[path]}
    assert {path.split(".")[0] for path in changed} == {"denoising_unet", "reference_unet"}
    for path, array in pipeline.params.items():
        assert isinstance(array, np.ndarray) == (path in on_host(pipeline)) and array.dtype == before[path].dtype
        np.testing.assert_array_equal(array, whole.params[path])
        assert not (path in changed and np.array_equal(array, before[path]))


def test_weights_in_host_memory_are_saved(held, tmp_path):
    pipeline, whole = held
    pipeline.save_pretrained(tmp_path / "mine")
    again = Pipeline.from_pretrained(tmp_path / "mine", dtype=whole.dtype)
    assert again.params.keys() == whole.params.keys()
    for path, array in whole.params.items():
        np.testing.assert_array_equal(again.params[path], array)


MOVED = """
import sys
import jax
import numpy as np
from animate_jax.sampling import pipeline as module
from animate_jax.sampling.denoiser import CONDITIONING_ONLY

jax.config.update("jax_disable_most_optimizations", True)
first, second = jax.devices()
picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
whole = module.Pipeline.from_pretrained(sys.argv[1])
expected = whole.encode(picture)
module.device_memory = lambda: 1000
pipeline = module.Pipeline.from_pretrained(sys.argv[1])
assert pipeline.encode(picture).devices() == {first}
assert pipeline.to(second) is pipeline
for path, array in pipeline.params.items():
    if path.startswith(CONDITIONING_ONLY):
        assert isinstance(array, np.ndarray), path
    else:
        assert array.devices() == {second}, path
latents = pipeline.encode(picture)
assert latents.devices() == {second}, latents.devices()
np.testing.assert_array_equal(latents, expected)
"""


@pytest.mark.compiles
def test_weights_in_host_memory_work_on_the_device_moved_to(micro_checkpoint):
    """In a process with two devices: also the encoder, all of whose weights are in host memory."""
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_cpu_use_fusion_emitters=false",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", MOVED, str(micro_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | flags)
    assert done.returncode == 0, done.stderr[-4000:]


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())
