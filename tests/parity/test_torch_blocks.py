"""The speed benchmark's opponent computes what ours computes: guided step with reference, pose and temporal layers."""

import importlib.util
import pathlib

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
from animate_jax.torch_weights.convert import to_torch

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

CONFIG = UNetConfig(
    block_out_channels=(16, 32),
    attention_levels=(True, False),
    layers_per_block=1,
    num_attention_heads=2,
    cross_attention_dim=24,
    norm_num_groups=8,
    motion_num_attention_heads=2,
    motion_norm_num_groups=8,
)
FILE = pathlib.Path(__file__).parents[2] / "benchmarks" / "torch_blocks.py"
# Ours (AnimateDiff's names) -> diffusers' in its transformer block.
RENAMED = {
    ".temporal_transformer.transformer_blocks.0.": ".block.", ".temporal_transformer.": ".",
    "attention_blocks.0": "attn1",
    "attention_blocks.1": "attn2", "norms.0": "norm1", "norms.1": "norm2", "ff_norm": "norm3",
    "mid_block.motion_modules": "mid_motion", ".motion_modules": "",
}  # fmt: skip


def torch_keys(key: str) -> str:
    """One of our PyTorch keys as the benchmark's module has it."""
    if "motion_modules" not in key:
        return "unet." + key.replace("attn1.", "attn1.attention.")
    for ours, theirs in RENAMED.items():
        key = key.replace(ours, theirs)
    return key.replace("down_blocks.", "down_motion.").replace("up_blocks.", "up_motion.")


def random_pair(module, blocks, motion: bool):
    """The same random weights in ours and theirs."""
    random = np.random.default_rng(0)
    graphdef, abstract = split_model(module)
    params = {path: 0.2 * random.standard_normal(leaf.shape, np.float32) for path, leaf in abstract.items()}
    theirs = blocks.TorchUNet(CONFIG, motion).eval()
    weights = {torch_keys(key): torch.from_numpy(array) for key, array in to_torch(params).items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith(".pe") or (not motion and "out" in key) for key in missing)
    return merge_model(graphdef, jax.tree.map(jnp.asarray, params)), theirs


@torch.no_grad()
def test_guided_step():
    spec = importlib.util.spec_from_file_location("torch_blocks", FILE)
    blocks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blocks)
    modules = nnx.eval_shape(
        lambda: [module(CONFIG, rngs=PresplitRngs(jax.random.key(0))) for module in (UNet, ReferenceNet)]
    )
    denoiser, their_denoiser = random_pair(modules[0], blocks, True)
    reference, their_reference = random_pair(modules[1], blocks, False)

    random = np.random.default_rng(1)
    picture, video, pose, token = (
        random.standard_normal(shape, np.float32)
        for shape in [(1, 7, 6, 4), (1, 3, 7, 6, 4), (1, 3, 7, 6, 16), (1, 24)]
    )

    def channels_first(x):
        return torch.from_numpy(np.moveaxis(x.reshape(-1, *x.shape[-3:]), -1, 1).copy())

    def twice(x):
        return np.concatenate([x, x])

    their_token = torch.from_numpy(token)[:, None]
    their_reference.lend(channels_first(picture), their_token, their_denoiser)
    tokens = torch.cat([torch.zeros(3, 1, 24), their_token.expand(3, -1, -1)])
    expected = their_denoiser(channels_first(twice(video)), 500, tokens, channels_first(twice(pose)), frames=3)

    @jax.jit
    def step(denoiser, reference, picture, video, pose, token):
        conditioning = denoiser.precompute_conditioning(token, reference(picture, jnp.zeros(1), token))
        return denoiser(video, jnp.full((2, 1), 500.0), conditioning, pose)[0]

    got = np.asarray(step(denoiser, reference, *map(jnp.asarray, (picture, twice(video), pose, token))))
    want = np.moveaxis(expected.numpy(), 1, -1).reshape(got.shape)
    assert np.abs(want[0] - want[1]).max() > 1e-2 * np.abs(want).max()  # the halves differ
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
