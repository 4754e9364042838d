"""Recorded runs of the PyTorch peer, replayed from the picture to the video: every array it left behind.

`tests/golden/README.md` says what the files hold. The whole model runs here as it does when sampling.
"""

import json
import re

import numpy as np
import pytest

from tests.golden.replay import GOLDEN, replay, weights

pytestmark = pytest.mark.compiles

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
