"""The warped reference as a condition: without effect before training, and able to copy after."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.models.appearance import PATCH, AppearanceBlend, AppearanceGuider
from animate_jax.models.params import PresplitRngs, abstract_model
from animate_jax.models.unet import UNet
from animate_jax.presets import presets
from tests.conftest import MICRO

pytestmark = pytest.mark.compiles

PLAIN = dataclasses.replace(MICRO.model.unet, attention_levels=(True,))
COPYING = dataclasses.replace(PLAIN, appearance="warp")
KEYS = jax.random.split(jax.random.key(0), 8)
X, WARPED = (jax.random.normal(key, (1, 2, 4, 4, PLAIN.in_channels)) for key in KEYS[:2])
POSES = jax.random.normal(KEYS[2], (1, 2, 4, 4, PLAIN.block_out_channels[0]))
TOKEN = jax.random.normal(KEYS[3], (1, PLAIN.cross_attention_dim))


def prediction(unet, pose):
    return unet(X, jnp.full((1, 1), 3.0), unet.precompute_conditioning(TOKEN), pose)[0]


@pytest.mark.parametrize(("name", "share"), [("tiny", 0.06), ("paper", 0.001)])
def test_the_switch_adds_few_parameters_and_changes_none(name, share):
    model = presets()[name].model
    copying = dataclasses.replace(model, unet=dataclasses.replace(model.unet, appearance="warp"))
    before, after = (abstract_model(config)[1] for config in (model, copying))
    added = {path.rpartition(".")[0] for path in after if path not in before}
    assert {layer for layer in added if not layer.startswith("appearance_blend.")} == {
        "appearance_guider.conv_in",
        "denoising_unet.appearance_conv_out",
    }
    assert {path: leaf.shape for path, leaf in before.items()} == {path: after[path].shape for path in before}
    assert sum(leaf.size for path, leaf in after.items() if path not in before) < share * sum(
        leaf.size for leaf in before.values()
    )


def test_fresh_layers_change_nothing():
    plain, copying = (UNet(config, rngs=PresplitRngs(KEYS[4])) for config in (PLAIN, COPYING))
    expected = prediction(plain, POSES)
    np.testing.assert_array_equal(prediction(copying, jnp.concatenate([POSES, WARPED], -1)), expected)
    guider = AppearanceGuider(4, 4, 8, rngs=PresplitRngs(KEYS[5]))
    assert not guider(WARPED, WARPED, jnp.ones((1, 2, 16, 16, 2))).any()


def test_the_prediction_copies_the_share_that_the_gate_gives():
    copying = UNet(COPYING, rngs=PresplitRngs(KEYS[4]))
    own = prediction(copying, jnp.concatenate([POSES, WARPED], -1))
    for share in (1.0, 0.25):
        copying.appearance_conv_out.bias[...] = jnp.full(4, share)
        made = prediction(copying, jnp.concatenate([POSES, WARPED], -1))
        np.testing.assert_allclose(made, own + share * (WARPED - own), atol=1e-5)


def test_the_guider_sees_every_pixel_of_the_masks_in_its_place():
    guider = AppearanceGuider(4, 4, 8, rngs=PresplitRngs(KEYS[5]))
    guider.conv_in.kernel[...] = jax.random.normal(KEYS[6], guider.conv_in.kernel.shape)
    nothing = jnp.zeros((1, 8, 8, 4))
    blank = guider(nothing, nothing, jnp.zeros((1, 32, 32, 2)))
    seen = []
    for y, x, kind in ((13, 18, 0), (14, 18, 0), (13, 19, 0), (13, 18, 1)):
        effect = guider(nothing, nothing, jnp.zeros((1, 32, 32, 2)).at[0, y, x, kind].set(1))[0] - blank[0]
        rows, columns = np.nonzero(np.abs(effect).max(-1) > 1e-6)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 3, 5)  # around position 3, 4
        seen.append(effect)
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(seen) for b in seen[:i])


def test_the_blend_goes_from_the_decoders_picture_to_the_warp():
    blend = AppearanceBlend(rngs=PresplitRngs(KEYS[5]))
    images, warped, background = (jax.random.uniform(key, (2, 8, 8, 3)) for key in KEYS[5:])
    masks = jnp.ones((2, 8, 8, 2))
    share = (blend(images, warped, background, masks) - images) / (warped - images)
    np.testing.assert_allclose(share, jax.nn.sigmoid(-3.0), rtol=1e-3)

    def with_bias(*values):
        blend.conv_out.bias[...] = jnp.tile(jnp.array(values), PATCH**2)
        return blend(images, warped, background, masks)

    np.testing.assert_allclose(with_bias(30.0, 0, 0, 0), warped, atol=1e-6)
    np.testing.assert_allclose(with_bias(-30.0, 0.1, 0, -0.2), images + jnp.array([0.1, 0, -0.2]), atol=1e-6)


def test_the_blend_corrects_each_pixel_from_its_surroundings():
    blend = AppearanceBlend(rngs=PresplitRngs(KEYS[5]))
    blend.conv_out.kernel[...] = jax.random.normal(KEYS[6], blend.conv_out.kernel.shape)
    blank = jnp.zeros((1, 128, 128, 3))

    def mended(*changed):
        images, warped = (blank.at[0, y, x].set(1) if (y, x) in changed else blank for y, x in ((62, 65), (63, 65)))
        return blend(images, warped, blank, blank[..., :2])[0]

    nothing = mended()
    effects = [mended(pixel) - nothing for pixel in ((62, 65), (63, 65))]
    for effect in effects:
        rows, columns = np.nonzero(np.abs(effect).max(-1) > 1e-6)
        for places in (rows, columns):
            assert 16 < places.min() <= 56 and 70 < places.max() < 112
    assert np.abs(effects[0] - effects[1]).max() > 0.01
