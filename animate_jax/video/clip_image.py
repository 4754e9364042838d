"""Preprocesses an image for the CLIP image encoder."""

from __future__ import annotations

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from animate_jax.config import ClipResize

# CLIP's statistics of RGB values in [0, 1] (Radford et al. 2021)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_pixels(
    image: UInt8[np.ndarray, "height width 3"],
    image_size: int,
    resize: ClipResize = "squash",
) -> Float[np.ndarray, "image_size image_size 3"]:
    """An RGB image as CLIP's input: square, resized with PIL's bicubic filter, normalized by CLIP's mean and deviation.

    "squash" ignores the aspect ratio (sampling in Moore-AnimateAnyone), "center_crop" resizes the short side and crops
    the center (its training, and CLIP itself), "pad" first mirrors the image at its edges until it is square
    (novitalabs/AnimateAnyone).
    """
    height, width = image.shape[:2]
    if resize == "pad":
        missing = max(height, width) - np.array([height, width])
        before = missing // 2
        image = np.pad(image, (*zip(before, missing - before, strict=True), (0, 0)), mode="reflect")
    target = (image_size, image_size)
    if resize == "center_crop":
        shorter = min(height, width)
        target = (image_size * width // shorter, image_size * height // shorter)
    resized = PIL.Image.fromarray(image).resize(target, PIL.Image.Resampling.BICUBIC)
    left, top = (target[0] - image_size) // 2, (target[1] - image_size) // 2
    square = np.asarray(resized)[top : top + image_size, left : left + image_size]
    return (square.astype(np.float32) / 255 - MEAN) / STD
