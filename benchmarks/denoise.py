"""Full-size speed on this machine: ours beside the same blocks out of diffusers' PyTorch modules.

    python benchmarks/denoise.py [--only step decode] [--size 256 256] [--frames 8] [--rounds 2] [--threads 2]
    python benchmarks/denoise.py --size 512 768 --frames 24 --rounds 0     # FLOPs only, of any size
    python benchmarks/denoise.py --only start                              # the bundled model's first frame

Random weights, fp32. Each measurement is a process of its own (clean peak memory), one at a time, in the order ours,
PyTorch, ours, PyTorch, ...; figures are medians, peaks the largest. FLOPs are those of matrix products and
convolutions, on both sides. "video" is the sum of its parts for 20 steps. "start" is the time from starting Python to
the first frame of the bundled example, with an empty and with a filled cache of compiled programs. Needs
`pip install -e ".[test]"`, 11 GB of memory and Linux. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tyro

PARTS = {
    "step": "guided denoising step",
    "reference": "ReferenceNet",
    "image_encoder": "image encoder",
    "encode": "VAE encode, 1 frame",
    "decode": "VAE decode, 1 frame",
}
Part = Literal["step", "reference", "image_encoder", "encode", "decode"]
GUIDANCE, STEPS = 3.5, 20
FIRST_FRAME = """
import sys, time
began = time.monotonic()
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
pipeline = Pipeline.from_pretrained()
stream = pipeline.stream(EXAMPLE / "reference.png", EXAMPLE / "driving.mp4", frames=16, progress=False)
next(iter(stream))
print(time.monotonic() - began)
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    only: tuple[Part | Literal["start"], ...] = (*PARTS, "start")
    size: tuple[int, int] = (256, 256)  # width, height
    frames: int = 8
    rounds: int = 2  # processes of each side
    repeats: int = 2  # timed calls in each, after a first one
    threads: int = 2
    huge_pages: bool = False  # both sides with GLIBC_TUNABLES=glibc.malloc.hugetlb=1
    side: Literal["ours", "torch"] | None = None  # of a process that this program started; not for the command line
    count: bool = False  # such a process counts FLOPs instead of running


def main(arguments: list[str]) -> None:
    args = tyro.cli(Arguments, description=__doc__, args=arguments)
    if args.side:
        print(json.dumps({"ours": ours, "torch": theirs}[args.side](args, args.only[0])))
        return
    if "start" in args.only and args.rounds:
        print_start(args)
    parts = [part for part in args.only if part != "start"]
    if not args.rounds:
        for part in parts:
            a, b = (process(args, part, side, "--count")["flops"] / 1e12 for side in ("ours", "torch"))
            print(f"{PARTS[part]}: {a:.4g} / {b:.4g} TFLOP, ratio {a / b:.3f}", flush=True)
        return
    print("| part | TFLOP | wall s | CPU s | peak GB | first result s | ratios: FLOPs | wall | CPU | peak |")
    print("| --- " * 10 + "|", flush=True)
    measured = {}
    for part in parts:
        runs: dict[str, list[dict]] = {"ours": [], "torch": []}
        for _ in range(args.rounds):
            for side, results in runs.items():
                results.append(process(args, part, side))
        flops = {side: process(args, part, side, "--count")["flops"] / 1e12 for side in runs}
        measured[part] = {side: figures(runs[side], flops[side]) for side in runs}
        print(row(PARTS[part], measured[part]), flush=True)
    if set(measured) == set(PARTS):
        times = {"step": STEPS, "decode": args.frames}
        video = {
            side: [sum(times.get(part, 1) * each[side][i] for part, each in measured.items()) for i in range(3)]
            for side in ("ours", "torch")
        }
        print(row(f"video: {STEPS} steps, {args.frames} frames, the sum", video))


def print_start(args: Arguments) -> None:
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for state in seconds:
                command = [sys.executable, "-c", FIRST_FRAME, cache]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                seconds[state].append(float(output.split()[-1]))
    print(
        "first frame of the bundled example: "
        + ", ".join(f"{state} {statistics.median(each):.1f} s" for state, each in seconds.items())
    )


def process(args: Arguments, part: Part, side: str, *options: str) -> dict[str, Any]:
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), JAX_PLATFORMS="cpu")
    environment["GLIBC_TUNABLES"] = f"glibc.malloc.hugetlb={int(args.huge_pages)}"
    sizes = ["--size", *map(str, args.size), "--frames", args.frames, "--repeats", args.repeats]
    command = [sys.executable, __file__, "--only", part, "--side", side, *sizes, "--threads", args.threads, *options]
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    output = subprocess.run(
        [*map(str, command)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ).stdout
    result = json.loads(output.splitlines()[-1])
    print(part, side, result, file=sys.stderr, flush=True)
    return result


def figures(runs: list[dict], flops: float) -> list[float]:
    """TFLOP, wall seconds, CPU seconds, peak GB, seconds to the first result."""
    middle = [statistics.median(second for run in runs for second in run[kind]) for kind in ("wall", "cpu")]
    return [flops, *middle, max(run["peak"] for run in runs) / 1e9, statistics.median(run["first"] for run in runs)]


def row(name: str, measured: dict[str, list[float]]) -> str:
    """ours / PyTorch of every figure, then their ratios."""
    pairs = list(zip(measured["ours"], measured["torch"], strict=True))
    cells, ratios = [f"{a:.3g} / {b:.3g}" for a, b in pairs], [f"{a / b:.2f}" for a, b in pairs[:4]]
    return "| " + " | ".join([name, *cells, *[""] * (5 - len(cells)), *ratios, *[""] * (4 - len(ratios))]) + " |"


def timed(call: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Seconds of each call after the first; the first one's, from importing the framework to the result."""
    call()
    first, wall, cpu = time.monotonic() - BEGAN, [], []
    for _ in range(repeats):
        used, began = time.process_time(), time.monotonic()
        call()
        wall.append(round(time.monotonic() - began, 3))
        cpu.append(round(time.process_time() - used, 3))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"wall": wall, "cpu": cpu, "peak": peak, "first": round(first, 1)}


def ours(args: Arguments, part: Part) -> dict[str, Any]:
    import jax

    run, shapes = traced(args, part)
    if args.count:
        return {"flops": products(run.trace(*shapes).jaxpr.jaxpr)}
    filled = random_arrays(shapes)
    return timed(lambda: jax.block_until_ready(run(*filled)), args.repeats)


def traced(args: Arguments, part: Part) -> tuple[Any, Any]:
    """The jitted part, and the shapes of its parameters and inputs."""
    import jax
    import jax.numpy as jnp

    from animate_jax.config import ModelConfig
    from animate_jax.models.params import abstract_model, merge_model

    graphdef, shapes = abstract_model(ModelConfig.sd15())
    (width, height), frames = args.size, args.frames
    latent = (height // 8, width // 8, 4)

    def step(model, x, conditioning, pose):  # both are computed once per video
        prediction = model.denoise(jnp.concatenate([x, x]), jnp.full((2, 1), 500.0), conditioning, pose)
        unconditional, conditional = jnp.split(prediction, 2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    shape = jax.ShapeDtypeStruct
    picture, clip, one = shape((1, height, width, 3), "float32"), shape((1, 224, 224, 3), "float32"), (1, *latent)
    conditioning = jax.eval_shape(
        lambda params, *x: merge_model(graphdef, params).precompute_conditioning(*x),
        shapes,
        shape(one, "float32"),
        clip,
    )
    video, pose = shape((1, frames, *latent), "float32"), shape((1, frames, *latent[:2], 320), "float32")
    prefix, function, inputs = {
        "step": ("denoising_unet", step, (video, conditioning, pose)),
        "reference": (
            "reference_unet",
            lambda model, x, token: model.reference_unet(x, jnp.zeros(1), token),
            (shape(one, "float32"), shape((1, 768), "float32")),
        ),
        "image_encoder": ("image_encoder", lambda model, x: model.image_encoder(x), (clip,)),
        "encode": ("vae", lambda model, x: model.vae.to_latents(x), (picture,)),
        "decode": ("vae", lambda model, x: model.vae.to_images(x), (shape(one, "float32"),)),
    }[part]
    params = {path: leaf for path, leaf in shapes.items() if path.startswith(prefix)}
    run = jax.jit(lambda params, *inputs: function(merge_model(graphdef, shapes | params), *inputs))
    return run, (params, *inputs)


def random_arrays(shapes: Any) -> Any:
    import jax
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape, np.float32) * np.float32(0.02)), shapes)


def products(jaxpr: Any) -> float:
    """FLOPs of matrix products and convolutions: what PyTorch's counter counts."""
    return sum(flops_by_kind(jaxpr).values())


def flops_by_kind(jaxpr: Any) -> dict[str, float]:
    """FLOPs of matrix products and of convolutions, those in loops by their turns."""
    total = {"products": 0.0, "convolutions": 0.0}
    for equation in jaxpr.eqns:
        operands = [x.aval.shape for x in equation.invars[:2]]
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            multiplied = math.prod(operands[0][axis] for axis in contracted)
            total["products"] += 2.0 * equation.outvars[0].aval.size * multiplied
        elif equation.primitive.name == "conv_general_dilated":
            outputs = operands[1][equation.params["dimension_numbers"].rhs_spec[0]]
            total["convolutions"] += 2.0 * equation.outvars[0].aval.size * math.prod(operands[1]) / outputs
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    for kind, flops in flops_by_kind(inner).items():
                        total[kind] += equation.params.get("length", 1) * flops
    return total


def theirs(args: Arguments, part: Part) -> dict[str, Any]:
    import diffusers
    import torch
    import transformers
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from torch_blocks import TorchUNet

    from animate_jax.config import ImageEncoderConfig, UNetConfig, VAEConfig

    torch.set_num_threads(args.threads)
    (width, height), frames = args.size, args.frames
    device = "meta" if args.count else "cpu"
    vae, clip = VAEConfig(), dataclasses.asdict(ImageEncoderConfig())
    levels = len(vae.block_out_channels)

    def normal(*shape):
        return torch.randn(shape, device=device)

    def build(make):
        with torch.device("meta"):
            module = make()
        if not args.count:
            module = module.to_empty(device="cpu")
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.normal_(0, 0.02)
                else:
                    tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
        return module.eval()

    def autoencoder():
        return diffusers.AutoencoderKL(
            block_out_channels=vae.block_out_channels,
            layers_per_block=vae.layers_per_block,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            latent_channels=vae.latent_channels,
        )

    def image_encoder():
        return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**clip))

    with torch.no_grad():
        latents, picture = normal(1, 4, height // 8, width // 8), normal(1, 3, height, width)
        if part == "step":
            denoiser, reference = (
                build(lambda motion=motion: TorchUNet(UNetConfig(), motion)) for motion in (True, False)
            )
            video, pose = (
                normal(2 * frames, 4, height // 8, width // 8),
                normal(2 * frames, 320, height // 8, width // 8),
            )
            token = normal(2 * frames, 1, 768)
            reference.lend(latents, token[:1], denoiser)  # both networks stay in memory, as there

            def call():
                unconditional, conditional = denoiser(video, 500, token, pose, frames).chunk(2)
                return unconditional + GUIDANCE * (conditional - unconditional)

        elif part == "reference":
            reference, token = build(lambda: TorchUNet(UNetConfig(), False)), normal(2, 1, 768)
            latents = latents.repeat(2, 1, 1, 1)  # the PyTorch implementations run both halves of guidance

            def call():
                return reference(latents, 0, token, frames=1)

        elif part == "image_encoder":
            encoder, pixels = build(image_encoder), normal(1, 3, 224, 224)

            def call():
                return encoder(pixels).image_embeds

        else:
            model = build(autoencoder)

            def call():
                return model.encode(picture).latent_dist.mean if part == "encode" else model.decode(latents).sample

        if args.count:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                call()
            return {"flops": counter.get_total_flops()}
        return timed(call, args.repeats)


if __name__ == "__main__":
    BEGAN = time.monotonic()
    main(sys.argv[1:])
