"""Parameters as one flat dict, dotted path -> array, as they are trained, sharded, saved and converted."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.config import ModelConfig, Remat
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.shapes import Params


def flatten(tree: dict[Any, Any]) -> Params:
    """A nested NNX parameter dict (list indices are ints) with dotted keys."""
    return {".".join(map(str, path)): leaf for path, leaf in flatten_dict(tree).items()}


def unflatten(params: Params) -> dict[Any, Any]:
    """The inverse of `flatten`."""
    paths = {tuple(int(p) if p.isdigit() else p for p in key.split(".")): leaf for key, leaf in params.items()}
    return unflatten_dict(paths)


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Structure and parameters of a module; `merge_model` is the inverse."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, flatten(nnx.to_pure_dict(state))


def merge_model(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The inverse of `split_model`; cheap, and usual inside `jax.jit`."""
    return nnx.merge(graphdef, unflatten(params))


class PresplitRngs(nnx.Rngs):
    """Keys from one split, counted in Python. nnx.Rngs counts in an array, and each update of a traced one searches the
    whole trace: at Stable Diffusion's size that takes minutes instead of seconds. One split also compiles faster than
    many folds."""

    def __init__(self, key: jax.Array):
        self.keys, self.indices = jax.random.split(key, 4096), iter(range(4096))

    def params(self) -> jax.Array:
        return self.keys[next(self.indices)]


@functools.cache
def abstract_model(config: ModelConfig, remat: Remat = "none") -> tuple[nnx.GraphDef, Params]:
    """Structure and shapes of the whole model without memory for its arrays.

    Args:
        remat: what the UNets' layers keep for the backward pass.
    """
    model = _abstract_module(config)
    model.denoising_unet.remat = model.reference_unet.remat = remat
    return split_model(model)


@functools.cache  # takes seconds; remat does not change it
def _abstract_module(config: ModelConfig) -> AnimateAnyone:
    return nnx.eval_shape(lambda: AnimateAnyone(config, rngs=PresplitRngs(jax.random.key(0))))


def init_params(config: ModelConfig, seed: int, wanted: Collection[str] | None = None) -> Params:
    """Initial parameters of the whole model or of the `wanted` paths, with the same values either way. Under jit, so
    that only the result takes memory.

    The "rbg" generator compiles in seconds; the default one, inlined a thousand times, takes minutes.
    """
    key = jax.random.key(seed, impl="rbg")

    def init(key: jax.Array) -> Params:
        params = split_model(AnimateAnyone(config, rngs=PresplitRngs(key)))[1]
        return params if wanted is None else {path: params[path] for path in wanted}

    return jax.jit(init)(key)
