"""The temporal layer, and GroupNorm pooled over frames, against their maths written down in plain torch, fp32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from animate_jax.models.params import merge_model, split_model
from animate_jax.models.resnet import ResnetBlock2D
from animate_jax.models.temporal import MotionModule
from animate_jax.torch_weights.convert import to_torch

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

CHANNELS, HEADS, GROUPS = 64, 8, 32


def random_weights(make: Callable[[], nnx.Module]) -> tuple[nnx.Module, dict[str, torch.Tensor]]:
    """The module with random weights everywhere (a fresh one's are zero in places), and the same as torch tensors."""
    graphdef, abstract = split_model(nnx.eval_shape(make))
    random = np.random.default_rng(0)
    params = {path: 0.2 * random.standard_normal(leaf.shape, np.float32) for path, leaf in abstract.items()}
    params |= {path: 1 + array for path, array in params.items() if path.endswith("scale")}
    weights = {key: torch.from_numpy(array) for key, array in to_torch(params).items()}
    return merge_model(graphdef, jax.tree.map(jnp.asarray, params)), weights


def positional_encoding(length: int, channels: int) -> torch.Tensor:
    """Of shape [length, channels]: sin on even, cos on odd channels, as AnimateDiff builds its buffer `pe`."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2) * (-np.log(10000.0) / channels))
    table = torch.zeros(length, channels)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


def temporal_layer(x: torch.Tensor, weights: dict[str, torch.Tensor], max_length: int) -> torch.Tensor:
    """x is [B, C, F, H, W]. GroupNorm per frame, and two attentions over frames whose positions enter after the
    norm, then a GEGLU."""

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def layer_norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    root, block = "temporal_transformer", "temporal_transformer.transformer_blocks.0"
    b, c, f, h, w = x.shape
    frames = x.transpose(1, 2).reshape(b * f, c, h, w)
    frames = F.group_norm(frames, GROUPS, weights[f"{root}.norm.weight"], weights[f"{root}.norm.bias"], 1e-6)
    tokens = frames.reshape(b, f, c, h, w).permute(0, 3, 4, 1, 2).reshape(b * h * w, f, c)
    tokens = linear(f"{root}.proj_in", tokens)
    pe = positional_encoding(max_length, c)[:f]
    for i in range(2):
        attention = f"{block}.attention_blocks.{i}"
        normed = layer_norm(f"{block}.norms.{i}", tokens) + pe
        q, k, v = (
            linear(f"{attention}.to_{name}", normed).reshape(-1, f, HEADS, c // HEADS).transpose(1, 2) for name in "qkv"
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / (c // HEADS) ** 0.5, -1) @ v
        tokens = tokens + linear(f"{attention}.to_out.0", mixed.transpose(1, 2).reshape(-1, f, c))
    hidden, gate = linear(f"{block}.ff.net.0.proj", layer_norm(f"{block}.ff_norm", tokens)).chunk(2, -1)
    tokens = tokens + linear(f"{block}.ff.net.2", hidden * F.gelu(gate))
    tokens = linear(f"{root}.proj_out", tokens)
    return x + tokens.reshape(b, h, w, f, c).permute(0, 4, 3, 1, 2)


def resnet_over_frames(
    x: torch.Tensor, time: torch.Tensor, weights: dict[str, torch.Tensor], groups: int
) -> torch.Tensor:
    """AnimateDiff v1's ResNet block on [B, C, F, H, W]: GroupNorm sees all five dimensions, convolutions a frame."""

    def group_norm(name, x):
        return F.group_norm(x, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def conv(name, x):
        kernel = weights[f"{name}.weight"][:, :, None]
        return F.conv3d(x, kernel, weights[f"{name}.bias"], padding=(0, kernel.shape[3] // 2, kernel.shape[4] // 2))

    hidden = conv("conv1", F.silu(group_norm("norm1", x)))
    shift = F.linear(F.silu(time), weights["time_emb_proj.weight"], weights["time_emb_proj.bias"])
    hidden = hidden + shift[:, :, None, None, None]
    return conv("conv_shortcut", x) + conv("conv2", F.silu(group_norm("norm2", hidden)))


def error(ours, theirs: torch.Tensor) -> float:
    """Largest difference relative to the largest value; theirs is [B, C, F, H, W]."""
    theirs = theirs.permute(0, 2, 3, 4, 1).numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous()


@pytest.mark.parametrize("max_length", [24, 32], ids=["v1", "v2"])
@pytest.mark.parametrize("frames", [1, 5, 24])
def test_temporal_layer(frames, max_length):
    ours, weights = random_weights(lambda: MotionModule(CHANNELS, HEADS, GROUPS, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((2, frames, 3, 5, CHANNELS), np.float32)
    assert error(jax.jit(ours)(x), temporal_layer(channels_first(x), weights, max_length)) < 1e-5


@pytest.mark.parametrize("over_frames", [True, False], ids=["v1", "v2"])
def test_resnet_group_norm(over_frames):
    ours, weights = random_weights(lambda: ResnetBlock2D(16, 24, 12, 4, over_frames=over_frames, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(1)
    # Frames of different brightness, or pooling would hardly matter.
    x = random.standard_normal((2, 3, 6, 5, 16), np.float32) + np.arange(3, dtype=np.float32)[:, None, None, None]
    time = random.standard_normal((2, 1, 12), np.float32)
    theirs, theirs_time = channels_first(x), torch.from_numpy(time[:, 0])
    pooled = resnet_over_frames(theirs, theirs_time, weights, 4)
    per_frame = torch.cat([resnet_over_frames(frame, theirs_time, weights, 4) for frame in theirs.split(1, 2)], 2)
    result = jax.jit(ours)(x, time)
    assert error(result, pooled if over_frames else per_frame) < 1e-5
    assert error(result, per_frame if over_frames else pooled) > 1e-2


def test_a_fresh_temporal_layer_changes_nothing():
    x = jnp.ones((1, 2, 2, 2, CHANNELS))
    np.testing.assert_array_equal(MotionModule(CHANNELS, HEADS, GROUPS, rngs=nnx.Rngs(0))(x) - x, 0 * x)
