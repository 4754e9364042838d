"""What a step would take on TPUs that are not there: it is compiled for them, and the compiler's answer is read."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from animate_jax.errors import UserError
from animate_jax.parallel.chips import Chip, find_chip

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
# Minutes instead of hours. The memory it finds is that of a less careful compilation: rather too much than too little.
FAST = {"exec_time_optimization_effort": -1.0}
UPDATE_FLOPS = 20  # of AdamW, clipping and averaging, per parameter
CUTS = {
    "weights": "raise --mesh.fsdp, or hold frozen ones in bfloat16 (--half)",
    "optimizer": "raise --mesh.fsdp, or use --optim.moments factored",
    "batch": "lower --data.batch or use more chips",
    "activations": "use --remat blocks, --compute-dtype bfloat16, a larger --accumulate or --mesh.frames",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything per chip and step; sizes in bytes."""

    mesh: dict[str, int]
    chip: Chip
    memory: dict[str, float]  # by kind: the keys of CUTS
    overflow: str | None  # the compiler's words when the step does not fit
    flops: float = 0.0
    traffic: float = 0.0  # memory reads and writes
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)  # by kind
    compile_seconds: float = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of the step time: each resource at its published peak. The step takes at least the largest."""
        return {
            "compute": self.flops / self.chip.flops,
            "memory": self.traffic / self.chip.bandwidth,
            "links": sum(self.collectives.values()) / self.chip.links,
        }

    def __str__(self) -> str:
        layout = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        lines = [f"{math.prod(self.mesh.values())} chips {self.chip.name}: {layout}"]
        lines += [f"  {kind:<20}{size / 1e9:9.2f} GB" for kind, size in self.memory.items()]
        total = sum(self.memory.values())
        lines.append(f"  {'memory in all':<20}{total / 1e9:9.2f} GB of {self.chip.memory / 1e9:.0f} GB per chip")
        if self.overflow is not None:
            kind = max(self.memory, key=self.memory.__getitem__)
            lines += [f"does not fit: {self.overflow}", f"largest: {kind}; {CUTS[kind]}"]
            return "\n".join(lines)
        lines.append(f"  {'FLOPs':<20}{self.flops / 1e12:9.2f} T")
        lines.append(f"  {'memory traffic':<20}{self.traffic / 1e9:9.2f} GB")
        lines += [f"  {kind:<20}{size / 1e9:9.3f} GB" for kind, size in self.collectives.items() if size]
        bounds = ", ".join(f"{name} {value:.3f}" for name, value in self.seconds.items())
        lines.append(f"step at least {max(self.seconds.values()):.3f} s ({bounds}); compiled in "
                     f"{self.compile_seconds:.0f} s")  # fmt: skip
        return "\n".join(lines)


def topology_devices(name: str) -> Sequence[jax.Device]:
    """The devices of "v5e:4x4", "v5p:2x2x4", or of several slices of them, "v5e:4x4*2". Only for compiling.

    Raises:
        UserError: libtpu, which holds the compiler, is not installed; or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--plan: needs the TPU compiler; pip install 'animate-jax[tpu]' (Linux)")
    # Without these, libtpu looks for a TPU machine around it.
    surroundings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
                    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # fmt: skip
    for variable, value in surroundings.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies  # loads libtpu

    one, _, slices = name.partition("*")
    try:
        options = {"num_slices": int(slices)} if slices else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=one, **options).devices
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(f"--plan {name}: no such TPU topology, try v5e:4x4 or v5p:2x2x4 ({reason})") from error


def compile_plan(step: Callable[..., Any], arguments: Sequence[Any], kinds: Mapping[str, Any], mesh: Mesh,
                 out_shardings: Any = None, passes: int = 1) -> Plan:  # fmt: skip
    """Compiles `step` for the mesh's chips and reads what it takes.

    Args:
        arguments: `jax.ShapeDtypeStruct`s with shardings; the first, a training state, is donated.
        kinds: the same leaves by what they are (keys of CUTS without "activations").
        passes: micro-batches per step.

    Raises:
        UserError: the chip's peaks are unknown.
    """
    kind = mesh.devices.flat[0].device_kind
    chip = find_chip(kind)
    if chip is None:
        raise UserError(f"--plan: no published peaks are known of {kind!r}")
    held = {name: sum(map(local_bytes, jax.tree.leaves(tree))) for name, tree in kinds.items()}
    began = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            lowered = jax.jit(step, donate_argnums=0, out_shardings=out_shardings).lower(*arguments)
            compiled = lowered.compile(compiler_options=FAST)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used, words = overflow(str(error))
        rest = max(used - sum(held.values()), 0.0)
        return Plan(dict(mesh.shape), chip, {**held, "activations": rest}, words)
    sizes, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
    fresh = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    state = arguments[0]
    changed = [state["trainable"], state["opt"], state["ema"]]  # read and written, by what their gradients say
    update = sum(map(local_bytes, jax.tree.leaves([*changed, *changed, state["trainable"]])))
    return Plan(
        dict(mesh.shape), chip, {**held, "activations": fresh}, None,
        flops=step_flops(compiled, state["trainable"], passes),
        traffic=whole_step(cost.get("bytes accessed", 0.0), passes, update),
        collectives=collective_bytes(text), compile_seconds=time.monotonic() - began,
    )  # fmt: skip


def step_flops(step: jax.stages.Compiled, trainable: Any, passes: int = 1) -> float:
    """What every device computes in a training step of `passes` micro-batches, rematerialised layers included."""
    parameters = sum(local_bytes(leaf) // leaf.dtype.itemsize for leaf in jax.tree.leaves(trainable))
    counted = (step.cost_analysis() or {}).get("flops", 0.0)
    return whole_step(counted, passes, UPDATE_FLOPS * parameters) + kernel_flops(step.as_text())


def whole_step(counted: float, passes: int, update: int) -> float:
    """The compiler counts the loop over micro-batches as one turn; the optimizer behind it does run only once."""
    return (counted - update) * passes + update


def local_bytes(leaf: jax.ShapeDtypeStruct | jax.Array) -> int:
    """Bytes of an array on each device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def overflow(message: str) -> tuple[float, str]:
    """(bytes the step would use, one line of what the compiler says about it)."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+[KMGT]) hbm", message)
    if used is None:
        return 0.0, message.strip().splitlines()[0][:200]
    words = used.group(0)
    largest = re.search(r"1\. Size: (\S+)\s+(?:Operator: op_name=\"([^\"]*)\"[^\n]*\s+)?Shape: (\S+?)\{", message)
    if largest:
        size, operator, shape = largest.groups()
        words += f"; largest array {shape}, {size}" + (f", of {operator[-100:]}" if operator else "")
    return float(used.group(1)) * 1024 ** ("KMGT".index(used.group(2)) + 1), words


def collective_bytes(hlo: str) -> dict[str, float]:
    """Bytes that every chip receives from each kind of collective, loops counted by their trips."""
    total = dict.fromkeys(COLLECTIVES, 0.0)
    operation = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
    for times, line in executed(hlo):
        if found := operation.search(line):
            shapes, name, start = found.groups()
            sizes = [math.prod(dims) * WIDTHS.get(dtype, 4) for dtype, dims in arrays(shapes)]
            # The asynchronous forms of these two name their operand beside the result.
            whole = max(sizes) if start and name in ("all-gather", "collective-permute") else sum(sizes)
            total[name] += times * whole
    return total


def kernel_flops(hlo: str) -> float:
    """FLOPs of the attention kernels, into which the compiler does not see: products of queries and keys' size."""
    products = {"fwd": 2, "dq": 3, "dkv": 4}
    total = 0.0
    for times, line in executed(hlo):
        found = re.search(r"%splash_mha_(fwd|dq|dkv)\S* = .*operand_layout_constraints=\{(.*?\})\}", line)
        if found:
            # [..., heads, tokens, width]: queries, then keys
            query, key = [dims for kind, dims in arrays(found.group(2)) if "f" in kind and len(dims) >= 4][:2]
            total += times * products[found.group(1)] * 2.0 * math.prod(query) * key[-2]
    return total


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Every `bf16[4,96,96,320]` in a piece of HLO as (dtype, sides)."""
    return [
        (dtype, tuple(int(side) for side in sides.split(",") if side))
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    ]


def executed(hlo: str) -> list[tuple[int, str]]:
    """(how often it runs, line) of every instruction: what a loop holds runs as often as the loop turns."""
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

    def visit(computation: str, times: int) -> None:
        runs[computation] += times
        for line in bodies[computation]:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line):
                if called in bodies:
                    visit(called, times * (int(trips.group(1)) if trips else 1))

    visit(entry, 1)
    return [(times, line) for computation, times in runs.items() for line in bodies[computation]]
