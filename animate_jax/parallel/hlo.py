"""Costs read from a compiled program's text: FLOPs, memory traffic and communication, loops by their trip counts."""

from __future__ import annotations

import collections
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*?)\)"
)  # name, shape, operation, operands
# In the names of instructions that `jax.checkpoint` repeats in the backward pass, instead of storing their results.
REMATERIALIZED = "/rematted_computation/"
# These only name arrays that are in memory already, or begin what another instruction ends.
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}

Array = tuple[str, tuple[int, ...]]  # dtype, sides


def collective_bytes(hlo: str) -> dict[str, float]:
    """About the bytes that every chip receives from each kind of collective: the larger side of what goes in and comes
    out, and twice that of an all-reduce, which is a scatter and a gather."""
    total: dict[str, float] = dict.fromkeys(COLLECTIVES, 0.0)
    operation = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*?)\)")
    shapes_of = shapes_by_name(hlo)
    # A TPU's form of a reduce-scatter: an all-reduce of which only a slice is made.
    scatters = re.findall(r"^%all-reduce-scatter.*?^\}", hlo, re.MULTILINE | re.DOTALL)
    sliced = {name for text in scatters for name in re.findall(r"%(\S+) = \S+ all-reduce\(", text)}
    for times, line in instructions_with_counts(hlo):
        if found := operation.search(line):
            shapes, name, start, operands = found.groups()
            if line.split(" = ")[0].removeprefix("  ROOT ").strip(" %") in sliced:
                name = "reduce-scatter"
            elif name == "reduce-scatter":
                start, shapes = None, " ".join(shapes_of.get(each, "") for each in re.findall(r"%([\w.\-]+)", operands))
            sizes = [math.prod(dims) * DTYPE_BYTES.get(dtype, 4) for dtype, dims in arrays(shapes)]
            # The asynchronous forms of these two name their operand beside the result.
            whole = max(sizes) if start and name in ("all-gather", "collective-permute") else sum(sizes)
            total[name] += times * whole * (2 if name == "all-reduce" else 1)
    return total


def product_flops(hlo: str, only: str = "") -> float:
    """FLOPs of convolutions, which on TPUs include the matrix products; products with padding do not count.

    Args:
        only: counts the instructions with this text in their line.
    """
    shapes = shapes_by_name(hlo)
    total = 0.0
    for times, line in instructions_with_counts(hlo):
        found = re.search(r"= (.*?) convolution\(%?([\w.\-]+), %?([\w.\-]+)\)", line)
        if not found or only not in line:
            continue
        (_, result), (_, left), (_, right) = (
            arrays(text)[0] for text in (found.group(1), shapes[found.group(2)], shapes[found.group(3)])
        )
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
        window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)", line))
        assert labels, line
        of_left, of_right, of_result = labels.groups()
        pairs = result[of_result.index("b")] * result[of_result.index("f")] * right[of_right.index("i")]
        for axis in range(len(result) - 2):
            options = {name: values.split("x")[axis] for name, values in window.items()}
            label = str(axis)
            pairs *= overlapping_taps(
                left[of_left.index(label)],
                right[of_right.index(label)],
                result[of_result.index(label)],
                stride=int(options.get("stride", 1)),
                padding=int(options.get("pad", "0").split("_")[0]),
                dilation=int(options.get("lhs_dilate", 1)),
                kernel_dilation=int(options.get("rhs_dilate", 1)),
            )
        total += times * 2.0 * pairs
    return total


def overlapping_taps(
    left: int, right: int, result: int, stride: int, padding: int, dilation: int, kernel_dilation: int
) -> int:
    """How often, along one axis, an element of the kernel is multiplied with one of the image, not of its padding."""
    places = (o * stride - padding + k * kernel_dilation for o in range(result) for k in range(right))
    return sum(1 for place in places if place % dilation == 0 and 0 <= place // dilation < left)


def allocated_bytes(buffers: str) -> float:
    """Of the chip's main memory, from the compiler's list of buffers; those with a color are in other memories."""
    found = re.findall(r"^allocation \d+: size (\d+), (.*)$", buffers, re.MULTILINE)
    return float(sum(int(size) for size, about in found if "color" not in about and "thread-local" not in about))


def kernel_flops(hlo: str, only: str = "") -> float:
    """FLOPs of the attention kernels, which the compiler cannot count, from the shapes of queries and keys.

    More keys than queries are those of all frames and of a reference image. Each query then sees only its own frame and
    the reference, and the kernel skips the other frames.

    Args:
        only: counts the instructions with this text in their line.
    """
    products = {"fwd": 2, "dq": 3, "dkv": 4}
    total = 0.0
    for times, line in instructions_with_counts(hlo):
        found = re.search(r"%splash_mha_(fwd|dq|dkv)\S* = .*operand_layout_constraints=\{(.*?\})\}", line)
        if found and only in line:
            # [..., heads, width, tokens]: queries, then keys
            query, key = [dims for kind, dims in arrays(found.group(2)) if "f" in kind and len(dims) >= 3][:2]
            seen = 2 * (key[-1] - query[-1]) or key[-1]
            total += times * products[found.group(1)] * 2.0 * math.prod(query) * seen
    return total


def recomputed_flops(hlo: str) -> float | None:
    """FLOPs of products that are computed again in the backward pass; None where they are calls of a library (on GPUs),
    whose sizes are not in the text."""
    if any(
        REMATERIALIZED in line and "custom_call_target=" in line and "splash_mha" not in line
        for line in hlo.splitlines()
    ):
        return None
    return product_flops(hlo, REMATERIALIZED) + kernel_flops(hlo, REMATERIALIZED)


def memory_traffic(hlo: str) -> float:
    """Bytes that instructions outside of fusions read and write, operands and results. An upper estimate: a fusion may
    read only part of an operand."""
    shapes = shapes_by_name(hlo)
    total = 0.0
    for times, line in instructions_with_counts(hlo, fusions=False):
        found = INSTRUCTION.match(line)
        if not found or found.group(3) in NO_TRAFFIC or found.group(3).endswith("-done"):
            continue
        _, result, operation, names = found.groups()
        # The beginning of a copy has source and target as its result.
        operands = [] if operation.endswith("-start") else re.findall(r"%([\w.\-]+)", names)
        total += times * sum(size(text) for text in (result, *(shapes.get(name, "") for name in operands)))
    return total


def shapes_by_name(hlo: str) -> dict[str, str]:
    return {found.group(1): found.group(2) for found in map(INSTRUCTION.match, hlo.splitlines()) if found}


def size(shapes: str) -> int:
    """Bytes of all arrays named in a piece of text, except those in a chip's fast memory."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", shapes)
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * DTYPE_BYTES.get(dtype, 4)
        for dtype, sides, layout in found
        if "S(" not in layout
    )


def arrays(text: str) -> list[Array]:
    """Every `bf16[4,96,96,320]` in a piece of HLO as (dtype, sides)."""
    return [
        (dtype, tuple(int(side) for side in sides.split(",") if side))
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    ]


def instructions_with_counts(hlo: str, fusions: bool = True) -> list[tuple[int, str]]:
    """(how often it runs, line) of every instruction; those of a loop run as often as its trip count.

    Args:
        fusions: whether the instructions inside of fusions are included.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head.group(2)
            entry = name if head.group(1) else entry
            bodies[name] = []
        elif name and line.startswith(" "):
            bodies[name].append(line)
    runs: dict[str, int] = collections.defaultdict(int)

    def trip_count(line: str) -> int:
        """Of a loop that counts from zero to a constant; 1 of other instructions."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
            return int(known.group(1))
        if not (condition := re.search(r" while\(.*condition=%?([\w.\-]+)", line)):
            return 1
        test = "\n".join(bodies[condition.group(1)])
        limit = re.search(r"ROOT .* compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT", test)
        count = limit and re.search(rf"%{re.escape(limit.group(1))} = [su]\d+\[\]\S* constant\((\d+)\)", test)
        return int(count.group(1)) if count else 1

    def visit(computation: str, times: int) -> None:
        runs[computation] += times
        for line in bodies[computation]:
            if not fusions and " fusion(" in line:
                continue
            for called in re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line):
                if called in bodies:
                    visit(called, times * trip_count(line))

    visit(entry, 1)
    return [(times, line) for computation, times in runs.items() for line in bodies[computation]]
