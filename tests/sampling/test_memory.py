"""What is on the device while a video is denoised."""

import jax
import numpy as np
import pytest

from animate_jax.config import ModelConfig
from animate_jax.models.params import abstract_model
from animate_jax.pose.draw import draw
from animate_jax.sampling import pipeline as pipeline_module
from animate_jax.sampling.denoiser import CONDITIONING_ONLY, device_memory, held_on_host
from animate_jax.sampling.pipeline import Pipeline
from tests.sampling.test_pipeline import waving

GB = 10**9


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


def live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())
