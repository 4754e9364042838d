"""Runs the bundled LiteRT models on square crops of an image."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

ASSETS = Path(__file__).parents[1] / "assets" / "blazepose"

Affine = Float[np.ndarray, "2 3"]  # pixels of a crop -> pixels of the image


def square_to_frame(center: Float[np.ndarray, "xy=2"], side: float, angle: float, size: int) -> Affine:
    """Maps a crop of `size` pixels to the square of `side` pixels around `center`, rotated clockwise by `angle`."""
    right = np.array([np.cos(angle), np.sin(angle)]) * side / size
    down = np.array([-right[1], right[0]])
    return np.stack([right, down, center - (right + down) * size / 2], axis=1)


def crop_square(
    picture: UInt8[np.ndarray, "height width 3"], to_frame: Affine, size: int
) -> Float32[np.ndarray, "{size} {size} 3"]:
    """Resamples the crop of size x size pixels, black beyond the image; 0..255, float32."""
    shrink = int(np.linalg.norm(to_frame[:, 0]))
    if shrink > 1:  # averages first: aliasing costs the models accuracy
        height, width, _ = picture.shape
        small = max(width // shrink, 1), max(height // shrink, 1)
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        to_frame = to_frame * np.array([[small[0] / width], [small[1] / height]])
    index_map = to_frame.copy()  # OpenCV counts from the center of the first pixel, the map from its corner
    index_map[:, 2] += to_frame[:, :2].sum(1) / 2 - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, index_map, (size, size), flags=flags).astype(np.float32)


def apply_affine(affine: Affine, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    return points @ affine[:, :2].T + affine[:, 2]


def sigmoid(logits: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    return 1 / (1 + np.exp(-logits.clip(-80, 80)))


def run_model(model: str, picture: Float32[np.ndarray, "size size 3"]) -> list[np.ndarray]:
    """The outputs of a model for one image, in the order of their names, without their batch axis."""
    interpreter = _interpreter(model)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture[None])
    interpreter.invoke()
    outputs = sorted(interpreter.get_output_details(), key=lambda output: output["name"])
    return [interpreter.get_tensor(output["index"])[0] for output in outputs]


@functools.cache
def _interpreter(model: str):
    from ai_edge_litert.interpreter import Interpreter  # slow to import, and drawing does not need it

    with _silence_stderr():
        interpreter = Interpreter(model_path=str(ASSETS / f"{model}.tflite"), num_threads=2)
        interpreter.allocate_tensors()
    return interpreter


@contextlib.contextmanager
def _silence_stderr():
    """Keeps native code from printing to stderr: LiteRT logs its CPU kernels in spite of all settings."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
