"""Low-rank adapters (LoRA, Hu et al. 2021) of linear layers: W + scale * A B, as further entries of the parameter dict.

No module knows of them: `merge` gives the model's own parameters, inside a training step or once before sampling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from animate_jax.config import LoraConfig
from animate_jax.errors import UserError
from animate_jax.models.shapes import Params

DOWN, UP = ".lora_A.kernel", ".lora_B.kernel"  # beside a layer's ".kernel", under peft's names
PATHS = r".*\.lora_[AB]\.kernel$"
UNETS = ("denoising_unet.", "reference_unet.")


def is_adapter(path: str) -> bool:
    return path.endswith((DOWN, UP))


def make_adapter(shapes: Mapping[str, Any], config: LoraConfig, seed: int) -> Params:
    """A fresh adapter, which changes nothing: A is uniform in +-1/sqrt(inputs), as peft's, and B is zero.

    Args:
        shapes: the model's parameters, or their shapes.

    Raises:
        UserError: an impossible rank or alpha, or no such layer.
    """
    if config.rank < 1:
        raise UserError(f"--lora.rank {config.rank}: must be at least 1, or 0 to train the weights themselves")
    if config.alpha is not None and not config.alpha > 0:
        raise UserError(f"--lora.alpha {config.alpha:g}: must be greater than 0")
    try:
        wanted = re.compile(config.target_modules)
    except re.error as error:
        raise UserError(f"--lora.target-modules {config.target_modules!r}: no regular expression ({error})") from error
    layers = {
        path.removesuffix(".kernel"): leaf.shape
        for path, leaf in shapes.items()
        if path.startswith(UNETS) and path.endswith(".kernel") and len(leaf.shape) == 2
    }
    layers = {layer: shape for layer, shape in layers.items() if wanted.fullmatch(layer)}
    if not layers:
        example = "denoising_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        raise UserError(
            f"--lora.target-modules {config.target_modules!r}: matches no linear layer of a UNet as a whole; their "
            f"paths look like {example!r}"
        )
    rank, adapter = config.rank, {}
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(layers))  # see `models.params.init_params`
    for key, (layer, (inputs, outputs)) in zip(keys, sorted(layers.items()), strict=True):
        if rank > min(inputs, outputs):
            raise UserError(f"--lora.rank {rank}: {layer} is only {inputs} x {outputs}: choose a lower one")
        bound = inputs**-0.5
        adapter[layer + DOWN] = jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound)
        adapter[layer + UP] = jnp.zeros((rank, outputs))
    return adapter


def scale_of(config: LoraConfig) -> float:
    """alpha / rank; 1 by default and where there is no adapter."""
    return 1.0 if config.alpha is None or not config.rank else config.alpha / config.rank


def merge(params: Params, scale: float) -> Params:
    """The model's parameters with their adapters added. Changed kernels are at least float32; parameters without
    adapters stay as they are."""
    merged = {path: array for path, array in params.items() if not is_adapter(path)}
    for path, down in params.items():
        if path.endswith(DOWN):
            layer = path.removesuffix(DOWN)
            kernel = merged[f"{layer}.kernel"]
            merged[f"{layer}.kernel"] = kernel + product(down, params[layer + UP], scale)
    return merged


def product(
    down: Float[Array | np.ndarray, "i r"], up: Float[Array | np.ndarray, "r o"], scale: float
) -> Float[Array, "i o"]:
    """scale * A B in float32, also where products are rounded to bfloat16 by default."""
    down, up = jnp.asarray(down, jnp.float32), jnp.asarray(up, jnp.float32)
    return scale * jnp.matmul(down, up, precision="highest")
