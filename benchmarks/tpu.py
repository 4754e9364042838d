"""Memory traffic and temporaries of the model's dearest parts on one TPU chip, by the TPU compiler; no TPU needed.

    python benchmarks/tpu.py [--topology v5e:2x2] [--parts temporal]

bf16, one clip of 24 frames at 512x768 pixels. Needs `pip install -e ".[tpu]"`. Prints a Markdown table. A whole guided
step: `sample.py --preset paper --dtype bfloat16 --plan v5e:1x1`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from animate_jax.config import MeshConfig, VAEConfig
from animate_jax.models import attention
from animate_jax.models.attention import Attention
from animate_jax.models.kernels import splash
from animate_jax.models.params import merge_model, split_model
from animate_jax.models.vae import AutoencoderKL
from animate_jax.parallel.forecast import LEAST_EFFORT, topology_devices
from animate_jax.parallel.mesh import make_mesh

Part = Literal["temporal", "reference", "decode"]
LEVELS = ((320, 6144), (640, 1536), (1280, 384))  # channels and positions of each level with attention
FRAMES, HEADS = 24, 8


@dataclasses.dataclass(frozen=True)
class Arguments:
    topology: str = "v5e:2x2"  # one of its chips is compiled for
    parts: tuple[Part, ...] = ("temporal", "reference", "decode")


def shape(*sides: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, jnp.bfloat16)


def split(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    graphdef, params = split_model(nnx.eval_shape(make))
    return graphdef, {path: shape(*leaf.shape) for path, leaf in params.items()}


def temporal(channels: int, positions: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    graphdef, params = split(lambda: Attention(channels, channels, HEADS, rngs=nnx.Rngs(0)))
    clip = shape(1, FRAMES, positions, channels)
    return lambda params, x: merge_model(graphdef, params).attend_temporal(x), (params, clip)


def with_reference(channels: int, positions: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    graphdef, params = split(lambda: Attention(channels, channels, HEADS, rngs=nnx.Rngs(0)))
    clip, reference = shape(1, FRAMES, positions, channels), shape(1, positions, channels)

    def function(params, x, reference_key, reference_value):
        layer = merge_model(graphdef, params)
        q, k, v = layer.to_q(x), layer.to_k(x), layer.to_v(x)
        return layer.to_out[0](attention.attend_with_reference(q, k, v, reference_key, reference_value, HEADS))

    return function, (params, clip, reference, reference)


def cases(
    parts: tuple[Part, ...],
) -> Iterator[tuple[str, Any, dict[str, Any], Callable[..., Any], tuple[Any, ...]]]:
    """(name, what is changed about the model, the compiler's options, function, shapes of its inputs)"""
    for channels, positions in LEVELS:
        width, tokens = channels // HEADS, f"{positions} positions"
        if "temporal" in parts:
            function, inputs = temporal(channels, positions)
            name = f"temporal attention with projections, {tokens}, heads of {width}"
            yield f"{name}: pixels as batch", mock.patch.object(splash, "on_tpu", lambda: False), {}, function, inputs
            yield f"{name}: channels on the lanes", mock.MagicMock(), {}, function, inputs
        if "reference" in parts:
            function, inputs = with_reference(channels, positions)
            name = f"attention to own and reference with projections, {tokens}, heads of {width}"
            yield f"{name}: XLA", mock.patch.object(splash, "is_supported", lambda query: False), {}, function, inputs
            yield f"{name}: splash kernel", mock.MagicMock(), {}, function, inputs
    if "decode" in parts:
        graphdef, params = split(lambda: AutoencoderKL(VAEConfig(), rngs=nnx.Rngs(0)))
        for frames in (1, 8, 24):
            inputs = params, shape(frames, 96, 64, 4)
            # With its usual effort the compiler takes a quarter of an hour and more for a single frame.
            yield (
                f"VAE decode, {frames} frames at once, least effort",
                mock.MagicMock(),
                LEAST_EFFORT,
                lambda params, x: merge_model(graphdef, params).to_images(x),
                inputs,
            )


def main(args: Arguments) -> None:
    mesh = make_mesh(MeshConfig(), topology_devices(args.topology)[:1])
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    print(f"| {args.topology.partition(':')[0]} | traffic GiB | temporaries GiB |\n| --- | --- | --- |")
    for name, changed, options, function, inputs in cases(args.parts):
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), inputs)
        with changed, jax.set_mesh(mesh):
            try:
                compiled = jax.jit(lambda *x, function=function: function(*x)).lower(*placed).compile(options)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"| {name} | does not fit | |", flush=True)
                continue
        # Neither function here has a loop, of which the compiler would count one turn.
        traffic, kept = compiled.cost_analysis()["bytes accessed"], compiled.memory_analysis().temp_size_in_bytes
        print(f"| {name} | {traffic / 2**30:.2f} | {kept / 2**30:.2f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
