"""The Pose Guider against the same stack of convolutions in torch, random weights, fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from animate_jax.config import PoseGuiderConfig
from animate_jax.models.params import merge_model, split_model
from animate_jax.models.pose_guider import PoseGuider
from animate_jax.torch_weights.convert import to_torch

pytestmark = pytest.mark.compiles

# The peers' widths, and the small model's form.
CONFIGS = [PoseGuiderConfig(), PoseGuiderConfig(block_out_channels=(4, 8, 12), conditioning_channels=20)]


def random_weights(config: PoseGuiderConfig) -> tuple[PoseGuider, dict[str, torch.Tensor]]:
    graphdef, abstract = split_model(nnx.eval_shape(lambda: PoseGuider(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    params = {
        path: random.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(max(leaf.size // leaf.shape[-1], 4)))
        for path, leaf in abstract.items()
    }
    weights = {key: torch.from_numpy(array) for key, array in to_torch(params).items()}
    return merge_model(graphdef, jax.tree.map(jnp.asarray, params)), weights


def stack(x: torch.Tensor, weights: dict[str, torch.Tensor], blocks: int) -> torch.Tensor:
    layers = [("conv_in", 1), *((f"blocks.{i}", 1 + i % 2) for i in range(blocks))]
    for name, stride in layers:
        x = F.silu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=1))
    return F.conv2d(x, weights["conv_out.weight"], weights["conv_out.bias"], padding=1)


@pytest.mark.parametrize("config", CONFIGS, ids=["sd15", "three levels"])
@pytest.mark.parametrize("size", [(64, 48), (50, 30)], ids=["even", "odd"])
def test_features(config, size):
    ours, weights = random_weights(config)
    pose = np.random.default_rng(1).uniform(0, 1, (2, 3, *size, 3)).astype(np.float32)
    theirs = stack(torch.from_numpy(pose.reshape(-1, *size, 3)).permute(0, 3, 1, 2), weights, len(ours.blocks))
    features = jax.jit(ours)(pose)
    expected = theirs.permute(0, 2, 3, 1).numpy().reshape(features.shape)
    assert np.abs(features - expected).max() / np.abs(expected).max() < 1e-5


def test_a_fresh_pose_guider_changes_nothing():
    small = PoseGuiderConfig(block_out_channels=(2, 4), conditioning_channels=4)
    assert not PoseGuider(small, rngs=nnx.Rngs(0))(jnp.ones((1, 8, 8, 3))).any()
