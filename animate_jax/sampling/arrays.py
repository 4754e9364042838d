"""Pictures and videos as Python programs have them: PIL images and arrays of several kinds become uint8 RGB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image

from animate_jax.errors import UserError
from animate_jax.images import Image, Images
from animate_jax.video.images import from_pil, on_white

LAYOUT = "give uint8 or floats in [0, 1], [height, width, 3] (RGB), 4 (RGBA) or without channels (gray)"


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy, JAX, PyTorch, ..."""
    return hasattr(value, "__array__") and hasattr(value, "shape")


def is_picture(value: Any) -> bool:
    """Whether it is a PIL image, or an array of the shape of one picture."""
    return isinstance(value, PIL.Image.Image) or (is_array(value) and len(value.shape) in (2, 3))


def to_image(picture: Any, name: str) -> Image:
    """A PIL image, upright, or an array [H, W], [H, W, 3] or [H, W, 4] of uint8 or of floats in [0, 1]; transparency on
    white.

    Args:
        name: of the picture, for errors.

    Raises:
        UserError: another shape or type, or values out of range.
    """
    if isinstance(picture, PIL.Image.Image):
        return from_pil(picture)
    array = np.asarray(picture)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, -1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or not array.size:
        raise UserError(f"{name}: an array of shape {list(array.shape)} is no picture: {LAYOUT}")
    array = _to_uint8(array, name)
    return on_white(array) if array.shape[-1] == 4 else array


def to_images(frames: Any, name: str) -> Images:
    """The same of a video: an array [F, H, W, ...] or an iterable of pictures of one size.

    Raises:
        UserError: as `to_image`; no frames, or frames of several sizes.
    """
    if is_array(frames) and frames.shape[3:] == (3,) and getattr(frames, "dtype", None) == np.uint8 and len(frames):
        return np.asarray(frames)
    if is_array(frames) and len(frames.shape) not in (3, 4):
        raise UserError(f"{name}: an array of shape {list(frames.shape)} is no video: give [frames, height, width, 3]")
    images = [to_image(frame, name) for frame in frames]
    if not images:
        raise UserError(f"{name}: no frames")
    check_sizes(images, name)
    return np.stack(images)


def check_sizes(images: Iterable[Image], name: str) -> None:
    """
    Raises:
        UserError: pictures have several sizes.
    """
    if len(sizes := sorted({image.shape[:2] for image in images})) > 1:
        (height, width), (other, wide), *_ = sizes
        raise UserError(f"{name}: frames of {width} x {height} and {wide} x {other} pixels: give frames of one size")


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    limit = 255 if array.dtype.kind in "iu" else 1
    if array.dtype.kind not in "iufb" or not (array.min() >= 0 and array.max() <= limit):  # false for NaN
        raise UserError(f"{name}: {array.dtype} from {array.min()} to {array.max()}: {LAYOUT}")
    return np.round(array * (255 / limit)).astype(np.uint8)
