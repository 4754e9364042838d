"""PSNR, SSIM and L1 of images in [0, 1], over the whole image or inside a box per image.

A box is [x0, y0, x1, y1] in pixels, x1 and y1 exclusive. In mostly static videos the background dominates the mean; the
person's box does not contain much of it.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

Images = Float[Array, "*batch height width channels"]
Boxes = Int[Array | np.ndarray, "*batch 4"]
Score = Float[Array, "*batch"]

# SSIM's window (Wang et al. 2004), a Gaussian of sigma 1.5 pixels cut to 11, and its constants for [0, 1].
RADIUS = 5
WINDOW = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
C1, C2 = 0.01**2, 0.03**2


def l1(a: Images, b: Images, boxes: Boxes | None = None) -> Score:
    """Mean absolute difference."""
    return _mean(jnp.abs(a - b).mean(-1), boxes)


def psnr(a: Images, b: Images, boxes: Boxes | None = None) -> Score:
    """Peak signal-to-noise ratio in dB; 100 for equal images, so that means over frames stay finite."""
    return -10 * jnp.log10(jnp.maximum(_mean(jnp.square(a - b).mean(-1), boxes), 1e-10))


def ssim(a: Images, b: Images, boxes: Boxes | None = None) -> Score:
    """Structural similarity, 1 for equal images: the mean of `ssim_map` over channels and pixels.

    The mean over the whole image excludes a border of 5 pixels, where the window does not fit (as in Wang et al. and
    scikit-image); that over a box includes all its pixels.
    """
    similarity = ssim_map(a, b).mean(-1)
    if boxes is None:
        return similarity[..., RADIUS:-RADIUS, RADIUS:-RADIUS].mean((-2, -1))
    return _mean(similarity, boxes)


def ssim_map(a: Images, b: Images) -> Images:
    """SSIM per pixel and channel, with images padded by reflection: scikit-image's with Gaussian weights."""
    # The shift does not change variances, but reduces rounding errors.
    a, b = a - 0.5, b - 0.5
    mean_a, mean_b, squares, product = _blur(jnp.stack([a, b, jnp.square(a) + jnp.square(b), a * b]))
    variances = squares - jnp.square(mean_a) - jnp.square(mean_b)
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    luminance = (2 * mean_a * mean_b + C1) / (jnp.square(mean_a) + jnp.square(mean_b) + C1)
    return luminance * (2 * covariance + C2) / (variances + C2)


def person_box(masks: Shaped[np.ndarray, "*batch height width"]) -> Int[np.ndarray, "*batch 4"]:
    """The smallest box around the non-zero pixels of each mask; the whole image where a mask is empty."""
    height, width = masks.shape[-2:]
    masks = masks != 0
    sides = []
    for axis, length in ((-2, width), (-1, height)):
        present = np.asarray(masks.any(axis))  # [*batch, x], then [*batch, y]
        sides.append((present.argmax(-1), length - present[..., ::-1].argmax(-1)))  # empty: 0, length
    (x0, x1), (y0, y1) = sides
    return np.stack([x0, y0, x1, y1], -1)


def crop_resize(images: Images, boxes: Boxes, height: int, width: int) -> Float[Array, "*batch _ _ channels"]:
    """Crops each image to its box and resizes that to height x width pixels (linear, antialiased)."""

    def cut(image: Float[Array, "h w c"], box: Int[Array, " 4"]) -> Float[Array, "h2 w2 c"]:
        x0, y0, x1, y1 = box
        scale = jnp.stack([height / (y1 - y0), width / (x1 - x0)])
        shape = (height, width, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -jnp.stack([y0, x0]) * scale, "linear")

    flat = jax.vmap(cut)(images.reshape(-1, *images.shape[-3:]), jnp.asarray(boxes).reshape(-1, 4))
    return flat.reshape(*images.shape[:-3], *flat.shape[1:])


def _blur(x: Images) -> Images:
    """A Gaussian blur, computed as sums of shifted images: in full precision on every backend."""
    for axis in (-3, -2):
        size = x.shape[axis]
        padding = [(0, 0)] * x.ndim
        padding[axis] = (RADIUS, RADIUS)
        padded = jnp.pad(x, padding, "symmetric")
        shifted = (jax.lax.slice_in_dim(padded, i, i + size, axis=x.ndim + axis) for i in range(len(WINDOW)))
        x = functools.reduce(operator.add, (float(weight) * part for weight, part in zip(WINDOW, shifted, strict=True)))
    return x


def _mean(values: Float[Array, "*batch height width"], boxes: Boxes | None) -> Score:
    """Mean over the pixels inside each box."""
    if boxes is None:
        return values.mean((-2, -1))
    inside = _inside(jnp.asarray(boxes), *values.shape[-2:])
    return jnp.sum(values * inside, (-2, -1)) / jnp.sum(inside, (-2, -1))


def _inside(boxes: Int[Array, "*batch 4"], height: int, width: int) -> Bool[Array, "*batch {height} {width}"]:
    x0, y0, x1, y1 = (boxes[..., i, None, None] for i in range(4))
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
