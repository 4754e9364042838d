"""Where the time of a part at full size goes on this processor, by kind of operation, and how near it is to its limit.

    python benchmarks/profile_step.py [--part step] [--size 256 256] [--frames 8] [--threads 2]

Random weights, fp32. Times are those of XLA's operations in one traced call, after one to warm up; operations that run
at the same time are counted with their own. The limit is the best rate of a few large matrix products and convolutions
of the model's own shapes, measured before and after the call; beside it, PyTorch's. Needs `pip install -e ".[test]"`,
8 GB of memory and Linux. Prints Markdown.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any

import tyro
from denoise import Part, flops_by_kind, random_arrays, traced

PRODUCT, CONVOLUTION = "matrix products", "convolutions"
PRODUCTS = ((8192, 320, 2560), (2048, 640, 5120), (2048, 2048, 2048))  # rows, summed, columns
CONVOLUTIONS = ((16, 32, 320, 320), (16, 16, 640, 640), (16, 8, 1280, 1280))  # images, side, channels in and out
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(")
END = "end: "  # of an operation: a convolution is only begun by the event of its name
CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
MOVES = {"copy", "transpose", "reshape", "bitcast", "pad", "slice", "concatenate", "dynamic-slice", "broadcast"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    part: Part = "step"
    size: tuple[int, int] = (256, 256)  # width, height
    frames: int = 8
    threads: int = 2
    slowest: int = 12  # single operations to list


def main(args: Arguments) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    run, shapes = traced(args, args.part)
    program = run.trace(*shapes)
    flops = flops_by_kind(program.jaxpr.jaxpr)
    compiled = program.lower().compile()
    inputs = random_arrays(shapes)
    jax.block_until_ready(compiled(*inputs))
    limits = [best_rates()]
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.monotonic()
            jax.block_until_ready(compiled(*inputs))
            wall = time.monotonic() - began
        seconds = seconds_of_operations(folder)
    limits.append(best_rates())
    best = {kind: max(each[kind] for each in limits) for kind in limits[0]}
    kinds = kinds_of_operations(compiled.as_text())
    by_kind, number = collections.Counter(), collections.Counter()
    for name, each in seconds.items():
        by_kind[kinds.get(name, "other")] += each
        number[kinds.get(name, "other")] += 1
    print(f"{args.part}, {args.size[0]}x{args.size[1]}, {args.frames} frames: {wall:.2f} s by the clock\n")
    print("| kind | operations | seconds | share | TFLOP | GFLOP/s | best rate here | of it |")
    print("| --- " * 8 + "|")
    work = {PRODUCT: flops["products"], CONVOLUTION: flops["convolutions"]}
    for kind, each in by_kind.most_common():
        cells = [kind, number[kind], f"{each:.2f}", f"{each / sum(by_kind.values()):.1%}"]
        if kind in work:
            rate = work[kind] / each / 1e9
            cells += [f"{work[kind] / 1e12:.3f}", f"{rate:.0f}", f"{best[kind]:.0f}", f"{rate / best[kind]:.2f}"]
        print("| " + " | ".join(map(str, cells + [""] * (8 - len(cells)))) + " |")
    total = sum(work.values())
    ideal = sum(work[kind] / best[kind] / 1e9 for kind in work)
    print(f"\nAll: {total / wall / 1e9:.0f} GFLOP/s. At the best rates: {ideal:.2f} s, {ideal / wall:.2f} of it.")
    print(
        "PyTorch's best rates: " + ", ".join(f"{kind} {rate:.0f} GFLOP/s" for kind, rate in torch_rates(args).items())
    )
    print("\n| slowest operations | kind | seconds |\n| --- | --- | --- |")
    for name, each in sorted(seconds.items(), key=lambda item: -item[1])[: args.slowest]:
        print(f"| {name} | {kinds.get(name, 'other')} | {each:.3f} |")


def seconds_of_operations(folder: str) -> dict[str, float]:
    """Of a trace: name of the operation -> seconds."""
    from jax.profiler import ProfileData

    [path] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    began, ended = collections.defaultdict(list), collections.defaultdict(list)
    for plane in ProfileData.from_file(path).planes:
        for line in plane.lines:
            for event in line.events:
                if dict(event.stats).get("hlo_op") == event.name:
                    began[event.name].append(event.start_ns)
                elif event.name.startswith(END):
                    ended[event.name.removeprefix(END)].append(event.end_ns)
    return {name: (sum(ended[name]) - sum(each)) / 1e9 for name, each in began.items() if len(each) == len(ended[name])}


def kinds_of_operations(text: str) -> dict[str, str]:
    """Of a compiled program: name of the operation -> what it mostly is."""
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    body: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if started := COMPUTATION.match(line):
            body = bodies.setdefault(started[1], [])
        elif found := INSTRUCTION.match(line):
            body.append((found[1], found[2], line))

    def opcodes(name: str) -> set[str]:
        result = set()
        for _, opcode, line in bodies.get(name, []):
            result |= {opcode}.union(*(opcodes(called) for called in CALLED.findall(line)))
        return result

    kinds = {}
    for body in bodies.values():
        for name, opcode, line in body:
            every = {opcode}.union(*(opcodes(called) for called in CALLED.findall(line)))
            kinds[name] = kind_of(every, line)
    return kinds


def kind_of(opcodes: set[str], line: str) -> str:
    if "convolution" in opcodes or "conv" in line.partition("custom_call_target")[2][:40]:
        return CONVOLUTION
    if "dot" in opcodes or "matmul" in line.lower():
        return PRODUCT
    if "exponential" in opcodes:
        return "softmax, SiLU and GELU"
    if "reduce" in opcodes or "reduce-window" in opcodes:
        return "sums and means (norms)"
    if opcodes - {"fusion", "parameter", "constant", "tuple", "get-tuple-element"} <= MOVES:
        return "copies and transposes"
    return "other elementwise"


def best_rates() -> dict[str, float]:
    """GFLOP/s of the best of a few large products and convolutions."""
    import jax
    import jax.numpy as jnp

    def convolution(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def fastest(function: Any, a: tuple[int, ...], b: tuple[int, ...]) -> float:
        inputs = random_arrays([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (a, b)])
        call = jax.jit(function)
        return least_seconds(lambda: jax.block_until_ready(call(*inputs)))

    return rates(
        lambda m, k, n: fastest(jnp.matmul, (m, k), (k, n)),
        lambda n, side, i, o: fastest(convolution, (n, side, side, i), (3, 3, i, o)),
    )


def torch_rates(args: Arguments) -> dict[str, float]:
    """The same of PyTorch."""
    import torch

    torch.set_num_threads(args.threads)

    def convolution(n: int, side: int, i: int, o: int) -> float:
        x = torch.randn(n, i, side, side).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(o, i, 3, 3).contiguous(memory_format=torch.channels_last)
        return least_seconds(lambda: torch.nn.functional.conv2d(x, kernel, padding=1))

    def product(m: int, k: int, n: int) -> float:
        a, b = torch.randn(m, k), torch.randn(k, n)
        return least_seconds(lambda: a @ b)

    with torch.no_grad():
        return rates(product, convolution)


def rates(product: Callable[..., float], convolution: Callable[..., float]) -> dict[str, float]:
    """Functions of the shapes that give seconds -> the best GFLOP/s of each kind."""
    return {
        PRODUCT: max(2e-9 * m * k * n / product(m, k, n) for m, k, n in PRODUCTS),
        CONVOLUTION: max(18e-9 * n * side**2 * i * o / convolution(n, side, i, o) for n, side, i, o in CONVOLUTIONS),
    }


def least_seconds(call: Callable[[], object]) -> float:
    """Of five calls after a first one."""
    call()
    times = []
    for _ in range(5):
        began = time.monotonic()
        call()
        times.append(time.monotonic() - began)
    return min(times)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
