"""PSNR, SSIM and LPIPS as in published tables, including their errors: comparable with published figures only.

Most papers on human animation since 2023 score with DisCo's code (Wang et al. 2023), which
- subtracts and squares 8-bit images in 8 bits, where both overflow: PSNR is up to 10 dB too high and no longer measures
  a distance (github.com/Wangt-CN/DisCo/issues/86),
- computes SSIM of gray images, with scikit-image's default window of 7x7 equal weights,
- passes images in [0, 1] to LPIPS (VGG), which expects [-1, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from animate_jax.images import to_unit
from animate_jax.perceptual.lpips import Params, lpips

Images = UInt8[Array, "*batch height width 3"]
Score = Float[Array, "*batch"]

GRAY_WEIGHTS = (9798, 19235, 3735)  # OpenCV's weights of red, green and blue, times 2^15
WINDOW_SIZE = 7  # pixels of SSIM's window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: Images, b: Images) -> Score:
    """In dB, computed with overflow in 8 bits; 100 where the mean is zero."""
    difference = a - b  # uint8
    mean = (difference * difference).astype(jnp.float32).mean((-3, -2, -1))
    return jnp.where(mean == 0, 100.0, 20 * jnp.log10(255 / jnp.sqrt(jnp.maximum(mean, 1e-20))))


def ssim(a: Images, b: Images) -> Score:
    """Of gray images, with a 7x7 window inside the image and the sample covariance."""
    a, b = _gray(a), _gray(b)
    sum_a, sum_b, sum_aa, sum_bb, sum_ab = (_window_sum(x) for x in (a, b, a * a, b * b, a * b))  # int32: exact
    count = WINDOW_SIZE**2
    variances = (count * (sum_aa + sum_bb) - sum_a**2 - sum_b**2) / (count * (count - 1))
    covariance = (count * sum_ab - sum_a * sum_b) / (count * (count - 1))
    mean_a, mean_b = sum_a / count, sum_b / count
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean((-2, -1))


def lpips_vgg(
    params: Params, a: UInt8[Array, "batch height width 3"], b: UInt8[Array, "batch height width 3"]
) -> Float[Array, " batch"]:
    """LPIPS (VGG) of images in the wrong range."""
    return lpips(params, to_unit(a), to_unit(b), "vgg")


def _gray(x: Images) -> Int[Array, "*batch height width"]:
    red, green, blue = (x[..., i].astype(jnp.int32) * weight for i, weight in enumerate(GRAY_WEIGHTS))
    return (red + green + blue + (1 << 14)) >> 15


def _window_sum(x: Int[Array, "*batch height width"]) -> Int[Array, "*batch _ _"]:
    window = (1,) * (x.ndim - 2) + (WINDOW_SIZE, WINDOW_SIZE)
    return jax.lax.reduce_window(x, 0, jax.lax.add, window, (1,) * x.ndim, "VALID")
