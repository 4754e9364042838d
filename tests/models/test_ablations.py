"""The paper's ablations of how the reference enters: ControlNet's addition, and the CLIP token alone."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from animate_jax.models.params import PresplitRngs
from animate_jax.models.reference_net import ReferenceNet
from animate_jax.models.unet import UNet
from tests.conftest import MICRO

pytestmark = pytest.mark.compiles

CONFIG = dataclasses.replace(MICRO.model.unet, attention_levels=(True,))
KEYS = jax.random.split(jax.random.key(0), 6)
X = jax.random.normal(KEYS[0], (1, 2, 4, 4, CONFIG.in_channels))
TOKEN = jax.random.normal(KEYS[1], (1, CONFIG.cross_attention_dim))
POSES = jnp.zeros((1, 2, 4, 4, CONFIG.block_out_channels[0]))
PICTURES = jax.random.normal(KEYS[2], (2, 1, 4, 4, CONFIG.in_channels))


def predictions(reference: str, trained: bool) -> tuple[jax.Array, jax.Array]:
    """The result with one and with the other reference picture."""
    config = dataclasses.replace(CONFIG, reference=reference)
    unet = UNet(config, rngs=PresplitRngs(KEYS[3]))
    reference_net = ReferenceNet(config, rngs=PresplitRngs(KEYS[4]))
    if trained:
        block = next(iter(unet.spatial_transformers().values())).transformer_blocks[0]
        block.reference_proj.kernel[...] = jax.random.normal(KEYS[5], block.reference_proj.kernel.shape)
    features = [reference_net(picture, jnp.zeros(1), TOKEN) for picture in PICTURES]
    return tuple(
        unet(X, jnp.full((1, 1), 3.0), unet.precompute_conditioning(TOKEN, tokens), POSES)[0] for tokens in features
    )


@pytest.mark.parametrize(
    ("reference", "trained", "same"),
    [
        ("attention", False, False),
        ("none", False, True),
        ("addition", False, True),
        ("addition", True, False),
    ],
)
def test_reference_is_seen(reference: str, trained: bool, same: bool):
    one, other = predictions(reference, trained)
    assert bool(jnp.allclose(one, other, atol=1e-6)) is same
