"""Full-size speed on this machine: ours beside the same blocks out of diffusers' PyTorch modules.

    python benchmarks/denoise.py [--only step] [--size 256 256] [--frames 8] [--rounds 2] [--threads 2]

Random weights, fp32. Each measurement is a process of its own (clean peak memory), one at a time, in the order ours,
PyTorch, ours, PyTorch, ...; the ratio is that of the medians. Needs `pip install -e ".[test]"`, 11 GB of memory and
Linux. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import tyro

PARTS = {
    "step": "one guided denoising step",
    "reference": "ReferenceNet",
    "image_encoder": "image encoder (CLIP)",
    "encode": "VAE encode, 1 frame",
    "decode": "VAE decode, 1 frame",
}
Part = Literal["step", "reference", "image_encoder", "encode", "decode"]
GUIDANCE = 3.5


@dataclasses.dataclass(frozen=True)
class Arguments:
    only: tuple[Part, ...] = tuple(PARTS)
    size: tuple[int, int] = (256, 256)  # width, height
    frames: int = 8
    rounds: int = 2  # processes of each side
    repeats: int = 2  # timed calls in each, after a warm-up
    threads: int = 2
    child: Literal["ours", "torch", "flops"] | None = None  # what a process of this benchmark measures; internal


def main(arguments: list[str]) -> None:
    args = tyro.cli(Arguments, description=__doc__, args=arguments)
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    print("| part | TFLOP | wall s | CPU s | peak GB | FLOPs | wall | CPU | peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for part in args.only:
        runs: dict[str, list[dict]] = {"ours": [], "torch": []}
        for _ in range(args.rounds):
            for side in runs:
                runs[side].append(measure(arguments, part, side, args.threads))
        runs["torch"][0]["flops"] = measure(arguments, part, "flops", args.threads)["flops"]
        print(row(PARTS[part], runs), flush=True)


def measure(arguments: list[str], part: str, side: str, threads: int) -> dict:
    """Runs one process; -> flops, wall and cpu (lists of seconds), peak (bytes), first (seconds to the first result)."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), JAX_PLATFORMS="cpu")
    command = [sys.executable, __file__, *arguments, "--only", part, "--child", side]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    print(part, side, result, file=sys.stderr, flush=True)
    return result


def row(name: str, runs: dict[str, list[dict]]) -> str:
    """ours / PyTorch of every figure, then ratios."""
    figures = [
        [
            runs[side][0]["flops"] / 1e12,
            statistics.median(second for run in runs[side] for second in run["wall"]),
            statistics.median(second for run in runs[side] for second in run["cpu"]),
            max(run["peak"] for run in runs[side]) / 1e9,
        ]
        for side in ("ours", "torch")
    ]
    cells = [f"{ours:.2f} / {theirs:.2f}" for ours, theirs in zip(*figures, strict=True)]
    ratios = [f"{ours / theirs:.2f}" for ours, theirs in zip(*figures, strict=True)]
    return "| " + " | ".join([name, *cells, *ratios]) + " |"


def timed(call: Callable[[], object], repeats: int, began: float) -> dict:
    """Calls once to warm up, then `repeats` times."""
    call()
    first, wall, cpu = time.monotonic() - began, [], []
    for _ in range(repeats):
        used, start = time.process_time(), time.monotonic()
        call()
        wall.append(round(time.monotonic() - start, 3))
        cpu.append(round(time.process_time() - used, 3))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"wall": wall, "cpu": cpu, "peak": peak, "first": round(first, 1)}


def ours(args: Arguments) -> dict:
    began = time.monotonic()
    import jax
    import jax.numpy as jnp

    from animate_jax.config import ModelConfig
    from animate_jax.models import params as P

    config = ModelConfig.sd15()
    graphdef, shapes = P.abstract(config)
    random = np.random.default_rng(0)
    (width, height), frames = args.size, args.frames
    latent = (height // 8, width // 8, 4)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape, np.float32))

    def step(model, x, lent, pose):  # `lent`: what `AnimateAnyone.condition` made once per video
        rows = jnp.concatenate([x, x])
        prediction = model.denoise(rows, jnp.full((2, 1), 500.0), lent, pose)
        unconditional, conditional = jnp.split(prediction, 2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    functions = {
        "step": ("denoising_unet", step),
        "reference": ("reference_unet", lambda model, x, token: model.reference_unet(x, jnp.zeros(1), token)),
        "image_encoder": ("image_encoder", lambda model, pixels: model.image_encoder(pixels)),
        "encode": ("vae", lambda model, picture: model.vae.to_latents(picture)),
        "decode": ("vae", lambda model, latents: model.vae.to_images(latents)),
    }
    part, function = functions[args.only[0]]
    params = {path: 0.02 * normal(*leaf.shape) for path, leaf in shapes.items() if path.startswith(part)}

    def filled(tree):
        return jax.tree.map(lambda leaf: normal(*leaf.shape), tree)

    abstract = jax.eval_shape(
        lambda params, *inputs: P.merge(graphdef, params).condition(*inputs), shapes, jnp.zeros((1, *latent)),
        jnp.zeros((1, 224, 224, 3)),
    )  # fmt: skip
    inputs = {
        "step": lambda: (normal(1, frames, *latent), filled(abstract), normal(1, frames, *latent[:2], 320)),
        "reference": lambda: (normal(1, *latent), normal(1, 768)),
        "image_encoder": lambda: (normal(1, 224, 224, 3),),
        "encode": lambda: (normal(1, height, width, 3),),
        "decode": lambda: (normal(1, *latent),),
    }[args.only[0]]()

    def run(params, *inputs):
        return function(P.merge(graphdef, shapes | params), *inputs)

    jitted = jax.jit(run)
    result = timed(lambda: jax.block_until_ready(jitted(params, *inputs)), args.repeats, began)
    if os.environ.get("PROFILE"):
        with jax.profiler.trace(os.environ["PROFILE"]):
            jax.block_until_ready(jitted(params, *inputs))
    c = jitted.lower(params, *inputs).compile()
    print(c.memory_analysis())
    return result | {"flops": c.cost_analysis()["flops"]}


CHILDREN: dict[str, Callable[[Arguments], dict]] = {"ours": ours}

if __name__ == "__main__":
    main(sys.argv[1:])
