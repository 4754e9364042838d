"""Images as arrays of uint8 RGB, and their conversion to and from the ranges that networks take."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float, Float32, UInt8

Number = float | int
Image = UInt8[np.ndarray, "_ _ 3"]
Images = UInt8[np.ndarray, "frames height width 3"]


def to_signed(images: UInt8[Array | np.ndarray, "*shape"]) -> Float32[Array, "*shape"]:
    """uint8 -> [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_unit(images: UInt8[Array | np.ndarray, "*shape"]) -> Float32[Array, "*shape"]:
    """uint8 -> [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255


def to_uint8(images: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] -> uint8, rounded; what lies outside is clipped."""
    return (jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1) * 255 + 0.5).astype(jnp.uint8)


def center_crop_box(width: int, height: int, target_width: int, target_height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of an image's largest central part that has the target's proportions."""
    crop_width = min(width, round(height * target_width / target_height))
    crop_height = min(height, round(width * target_height / target_width))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def resize_lanczos(
    images: UInt8[np.ndarray, "*frames _ _ 3"],
    size: tuple[int, int],
    box: tuple[Number, Number, Number, Number] | None = None,
) -> UInt8[np.ndarray, "*frames _ _ 3"]:
    """To height, width with Lanczos' filter; `box` (left, top, right, bottom in pixels) is the part that is shown."""
    if box is None and images.shape[-3:-1] == tuple(size):
        return images
    if images.ndim > 3:
        return np.stack([resize_lanczos(image, size, box) for image in images])
    return np.asarray(PIL.Image.fromarray(images).resize((size[1], size[0]), PIL.Image.Resampling.LANCZOS, box))
