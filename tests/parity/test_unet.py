"""UNet and ReferenceNet against diffusers' UNet2DConditionModel, random weights, fp32; and the two guided halves."""

import dataclasses
from collections.abc import Callable

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from animate_jax.config import UNetConfig
from animate_jax.models.params import PresplitRngs, merge_model, split_model
from animate_jax.models.reference_net import ReferenceNet
from animate_jax.models.unet import UNet
from animate_jax.torch_weights import names
from animate_jax.torch_weights.convert import from_torch, match_keys

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

# Stable Diffusion's shape (three levels with attention, one without), and the shipped small model's.
FOUR_LEVELS = UNetConfig(
    block_out_channels=(16, 32, 32, 48),
    layers_per_block=1,
    num_attention_heads=4,
    cross_attention_dim=24,
    norm_num_groups=8,
)
TWO_LEVELS = UNetConfig(
    in_channels=16,
    out_channels=16,
    block_out_channels=(24, 40),
    attention_levels=(True, True),
    layers_per_block=1,
    num_attention_heads=1,
    cross_attention_dim=24,
    norm_num_groups=8,
    motion_num_attention_heads=1,
    motion_norm_num_groups=8,
)


def torch_unet(config: UNetConfig) -> diffusers.UNet2DConditionModel:
    """diffusers' module with random weights; norms, which start as identities, are made random too."""
    torch.manual_seed(0)
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention_levels]
    up = ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in config.attention_levels]
    model = diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=down,
        up_block_types=up[::-1],
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval().requires_grad_(False)


def load(module: nnx.Module, theirs: diffusers.UNet2DConditionModel, ignore: str = names.BUFFERS):
    """Our module (as nnx.eval_shape gives it) with diffusers' weights."""
    graphdef, abstract = split_model(module)
    state_dict = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    return merge_model(graphdef, jax.tree.map(jnp.asarray, from_torch(match_keys(state_dict, abstract, ignore))))


def jax_unet(config: UNetConfig, theirs: diffusers.UNet2DConditionModel) -> UNet:
    return load(nnx.eval_shape(lambda: UNet(config, motion=False, rngs=PresplitRngs(jax.random.key(0)))), theirs)


def error(ours, theirs) -> float:
    """Largest difference relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def to_torch(x: np.ndarray) -> torch.Tensor:
    """[rows, frames, H, W, C] as diffusers wants it: [rows * frames, C, H, W]."""
    return torch.from_numpy(np.moveaxis(x.reshape(-1, *x.shape[2:]), -1, 1).copy())


def forward(model, x, timesteps, conditioning, pose=None):
    return model(x, timesteps, conditioning, pose)[0]


# Compiles three times faster than the default, and the arithmetic is the same.
run = jax.jit(forward, compiler_options={"xla_backend_optimization_level": 0})


def compare(config: UNetConfig, height: int, width: int, frames: int, run: Callable = run) -> float:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, frames, height, width, config.in_channels)).astype(np.float32)
    token = random.normal(size=(2, config.cross_attention_dim)).astype(np.float32)
    timesteps = np.linspace(0, 999, 2 * frames).round().astype(np.float32).reshape(2, frames)

    theirs = torch_unet(config)
    context = torch.from_numpy(token).repeat_interleave(frames, 0)[:, None]
    expected = theirs(to_torch(x), torch.from_numpy(timesteps.ravel()), context).sample.numpy()
    ours = jax_unet(config, theirs)
    del theirs  # 3.4 GB at full size
    prediction = run(ours, x, timesteps, ours.precompute_conditioning(jnp.asarray(token)))
    return error(prediction, np.moveaxis(expected, 1, -1).reshape(prediction.shape))


@pytest.mark.parametrize("size", [(17, 15), (13, 9)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_four_levels(size):
    assert compare(FOUR_LEVELS, *size, frames=1) < 1e-5


@pytest.mark.slow
def test_stable_diffusion_size():
    assert compare(UNetConfig(), 16, 12, frames=1, run=jax.jit(forward)) < 1e-4


def test_two_levels_and_a_timestep_per_frame():
    assert compare(TWO_LEVELS, 7, 6, frames=3) < 1e-5


def test_reference_net_lends_the_normed_inputs_of_self_attention():
    theirs = torch_unet(TWO_LEVELS)
    skeleton = nnx.eval_shape(lambda: ReferenceNet(TWO_LEVELS, rngs=PresplitRngs(jax.random.key(0))))
    ours = load(skeleton, theirs, f"{names.BUFFERS}|{names.HEAD}")
    expected = {}
    for name, module in theirs.named_modules():
        if name.endswith("transformer_blocks.0.norm1"):
            path = name.removesuffix(".transformer_blocks.0.norm1")
            module.register_forward_hook(lambda _, __, output, path=path: expected.__setitem__(path, output.numpy()))
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 7, 6, TWO_LEVELS.in_channels)).astype(np.float32)
    token = random.normal(size=(2, TWO_LEVELS.cross_attention_dim)).astype(np.float32)
    theirs(to_torch(x[:, None]), 0, torch.from_numpy(token)[:, None])

    lent = jax.jit(lambda model, *inputs: model(*inputs))(ours, x, jnp.zeros(2), token)
    assert lent.keys() == expected.keys() and len(lent) == 7
    assert {path: error(lent[path], expected[path]) for path in lent if error(lent[path], expected[path]) > 1e-5} == {}


@pytest.fixture(scope="module")
def clip() -> tuple:
    """A UNet with temporal layers, all weights random, and inputs: two characters, three frames."""
    config = dataclasses.replace(TWO_LEVELS, block_out_channels=(16,), attention_levels=(True,))
    graphdef, abstract = split_model(nnx.eval_shape(lambda: UNet(config, rngs=PresplitRngs(jax.random.key(0)))))
    random = np.random.default_rng(2)

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * random.normal(size=shape), jnp.float32)

    model = merge_model(graphdef, {path: normal(*leaf.shape, scale=0.1) for path, leaf in abstract.items()})
    reference = {path: normal(2, 5, t.norm.scale.shape[0]) for path, t in model.spatial_transformers().items()}
    token, pose = normal(2, config.cross_attention_dim), normal(2, 3, 6, 4, 16)
    return model, normal(2, 3, 6, 4, 16), jnp.array([[999.0], [20.0]]), token, reference, pose


def test_guided_halves_and_dropped_conditions_equal_separate_runs(clip):
    model, x, timesteps, token, reference, pose = clip

    def twice(array):
        return jnp.repeat(array, 2, 0)

    conditioning = model.precompute_conditioning(token, reference)
    conditional = run(model, x, timesteps, conditioning, pose)
    unconditional = run(model, x, timesteps, model.precompute_conditioning(jnp.zeros_like(token)), pose)
    assert error(conditional, unconditional) > 1e-2  # else the comparisons below could not fail

    guided = run(model, twice(x), twice(timesteps), conditioning, twice(pose))
    assert error(guided[::2], unconditional) < 1e-5
    assert error(guided[1::2], conditional) < 1e-5

    masked = run(model, x, timesteps, model.precompute_conditioning(token, reference, jnp.array([True, False])), pose)
    assert error(masked[:1], conditional[:1]) < 1e-5
    assert error(masked[1:], unconditional[1:]) < 1e-5


def test_too_long_a_window_is_refused(clip):
    model, x, timesteps, token, _, _ = clip
    with pytest.raises(ValueError, match="33 frames in one window; the temporal layers take 32"):
        model(jnp.zeros((2, 33, *x.shape[2:])), timesteps, model.precompute_conditioning(token))
