"""Reads and writes images (Pillow) as uint8 RGB arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from jaxtyping import UInt8

from animate_jax.atomic import PROGRAM, atomic_file
from animate_jax.video.open import IMAGE_SUFFIXES, open_picture
from animate_jax.video.write import check_output

Frame = UInt8[np.ndarray, "height width 3"]


def read_image(path: str | os.PathLike) -> Frame:
    """A PNG, JPEG, WebP, AVIF, GIF (its first frame) or BMP, rotated by its EXIF orientation, transparency on white.

    Raises:
        UserError: there is no such file, it is not such an image, is damaged, or too large.
    """
    with open_picture(Path(path)) as image:
        return from_pil(image)


def from_pil(image: PIL.Image.Image) -> Frame:
    """An image of PIL as an array, rotated by its EXIF orientation, transparency on white."""
    if image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        gray = (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def write_image(path: str | os.PathLike, image: Frame) -> None:
    """Writes an image; its suffix selects the format (.png, .jpg, .webp), missing folders are created.

    Raises:
        UserError: the path cannot be written or its suffix is unknown.
    """
    mark = PIL.PngImagePlugin.PngInfo()  # other formats ignore it
    mark.add_text("Software", PROGRAM)
    check_output(path, IMAGE_SUFFIXES)
    with atomic_file(path) as partial:
        PIL.Image.fromarray(image).save(partial, quality=95, pnginfo=mark)


def on_white(rgba: UInt8[np.ndarray, "height width 4"]) -> Frame:
    """Composites transparent pixels on white."""
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), 256):  # in strips, to save memory
        rows = rgba[top : top + 256]
        alpha = rows[..., 3:].astype(np.uint16)
        rgb[top : top + 256] = (rows[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return rgb
