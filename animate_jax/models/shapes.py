"""The shapes of a model's parameters, without the model."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax import kept
from animate_jax.config import ModelConfig

# "denoising_unet.down_blocks.0.resnets.0.conv1.kernel" -> array, or its shape and dtype
if TYPE_CHECKING:
    Params = dict[str, Any]  # which of them, a dict cannot say without being three types
else:
    Params = dict[str, jax.Array | jax.ShapeDtypeStruct | np.ndarray]


@functools.cache
def parameter_shapes(config: ModelConfig) -> Params:
    """The parameters of `params.abstract_model`. They are kept for the next process: building a model takes seconds."""
    name = kept.key("parameter shapes", config)
    with contextlib.suppress(ValueError):
        known = json.loads(kept.read(name) or "")
        return {path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)) for path, (shape, dtype) in known.items()}
    from animate_jax.models.params import abstract_model

    shapes = abstract_model(config)[1]
    kept.write(name, json.dumps({path: (leaf.shape, leaf.dtype.name) for path, leaf in shapes.items()}).encode())
    return shapes
