"""The denoising UNet with products of 8-bit integers, by qwix: an approximation."""

from typing import Any

import jax.numpy as jnp

from animate_jax.errors import UserError
from animate_jax.models.unet import UNet

# The first and last convolution keep the latents' precision; an upsampler multiplies with sums of its weights, which
# qwix cannot quantize.
NOT_QUANTIZED = r"conv_in|conv_out|.*upsamplers"


def quantize_int8(unet: UNet) -> UNet:
    """Weights and activations are rounded to 8 bits for every product, with one scale per channel.

    Raises:
        UserError: qwix is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise UserError("dtype int8: needs qwix; pip install 'animate-jax[int8]'") from error
    rule = qwix.QuantizationRule(module_path=f"(?!{NOT_QUANTIZED}).*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
    quantized: Any = qwix.quantize_model(unet, qwix.QtProvider([rule]), skip_nnx_init=True)
    return quantized
