"""CLIPVisionModelWithProjection and its preprocessing against transformers', random weights, fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from flax import nnx

from animate_jax.config import ImageEncoderConfig, ModelConfig
from animate_jax.models.image_encoder import CLIPVisionModelWithProjection
from animate_jax.models.params import merge_model, split_model
from animate_jax.torch_weights.convert import from_torch, match_keys
from animate_jax.video.clip_image import clip_pixels

pytestmark = pytest.mark.compiles


def compare(config: ImageEncoderConfig) -> None:
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            projection_dim=config.projection_dim,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name or "layrnorm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))
    graphdef, abstract = split_model(nnx.eval_shape(lambda: CLIPVisionModelWithProjection(config, rngs=nnx.Rngs(0))))
    state_dict = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    params = jax.tree.map(jnp.asarray, from_torch(match_keys(state_dict, abstract)))

    size = config.image_size
    pictures = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).image_embeds.numpy()
    embeds = jax.jit(lambda p, x: merge_model(graphdef, p)(x))(params, pictures)
    assert embeds.shape == (2, config.projection_dim)
    assert np.abs(embeds - expected).max() / np.abs(expected).max() < 1e-5


def test_tiny():
    compare(ModelConfig.tiny().image_encoder)


@pytest.mark.slow
def test_vit_l_14():
    compare(ImageEncoderConfig())


def pictures():
    random = np.random.default_rng(0)
    shapes = {"tall": (120, 75), "wide": (61, 100), "square": (50, 50), "small": (20, 13)}
    return [pytest.param(random.integers(0, 256, (*s, 3), np.uint8), id=n) for n, s in shapes.items()]


@pytest.mark.parametrize("picture", pictures())
@pytest.mark.parametrize("resize", ["squash", "center_crop", "pad"])
def test_preprocess(picture, resize):
    size = 56
    image = PIL.Image.fromarray(picture)
    if resize == "squash":  # Moore: PIL's own default filter, before the processor
        image = image.resize((size, size))
    if resize == "pad":  # novita: mirrored at the edges, the odd pixel goes to the right or bottom
        height, width = picture.shape[:2]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        padding = (left, side - width - left, top, side - height - top)
        channels_first = torch.from_numpy(picture).permute(2, 0, 1).float()
        padded = torch.nn.functional.pad(channels_first, padding, mode="reflect")
        image = PIL.Image.fromarray(padded.permute(1, 2, 0).numpy().astype(np.uint8))
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    expected = processor(image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)

    result = clip_pixels(picture, size, resize)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_preprocess_ways_differ():
    picture = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
    squash, crop, pad = (clip_pixels(picture, 32, resize) for resize in ("squash", "center_crop", "pad"))
    assert min(np.abs(a - b).max() for a, b in [(squash, crop), (squash, pad), (crop, pad)]) > 0.1
