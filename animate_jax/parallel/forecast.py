"""What a step would take on TPUs that are not there: it is compiled for them, and the compiled program is read."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from jax.sharding import Mesh

from animate_jax.errors import UserError
from animate_jax.parallel import hlo
from animate_jax.parallel.chips import Chip, find_chip
from animate_jax.parallel.mesh import compiler_options

# Minutes instead of hours, and an upper estimate of the memory, as the compiler optimizes less.
LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}
UPDATE_FLOPS = 20  # of AdamW, clipping and averaging, per parameter


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes per chip; sizes in bytes."""

    mesh: dict[str, int]
    chip: Chip
    memory: dict[str, float]  # by kind
    remedies: Mapping[str, str]  # what to do when that kind is too much
    overflow: str | None  # the compiler's words when the step does not fit
    flops: float = 0.0
    recomputed: float = 0.0  # of the FLOPs, those that `remat` repeats
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
            lines += [f"does not fit: {self.overflow}", f"largest: {kind}; {self.remedies[kind]}"]
            return "\n".join(lines)
        again = f", of them {self.recomputed / 1e12:.2f} T for the second time" if self.recomputed else ""
        lines.append(f"  {'FLOPs':<20}{self.flops / 1e12:9.2f} T{again}")
        lines.append(f"  {'memory traffic':<20}{self.traffic / 1e9:9.2f} GB")
        lines += [f"  {kind:<20}{size / 1e9:9.3f} GB" for kind, size in self.collectives.items() if size]
        bounds = ", ".join(f"{name} {value:.3f}" for name, value in self.seconds.items())
        lines.append(
            f"step at least {max(self.seconds.values()):.3f} s ({bounds}); compiled in {self.compile_seconds:.0f} s"
        )
        return "\n".join(lines)


def topology_devices(name: str) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]  # jax.Device is untyped
    """The devices of "v5e:1x1", "v5p:2x2x4", or of several slices of them, "v5e:4x4*2". Only for compiling.

    Raises:
        UserError: libtpu, which holds the compiler, is not installed; or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--plan: needs the TPU compiler; pip install 'animate-jax[tpu]' (Linux)")
    # Without these, libtpu looks for a TPU machine around it.
    surroundings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for variable, value in surroundings.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies  # loads libtpu

    one, _, slices = name.partition("*")
    try:
        options: dict[str, Any] = {"num_slices": int(slices)} if slices else {}
        if set(re.findall(r"\d+", one.partition(":")[2])) == {"1"}:
            options["chips_per_host_bounds"] = (1, 1, 1)  # by default a host has more chips
        return topologies.get_topology_desc(platform="tpu", topology_name=one, **options).devices
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(f"--plan {name}: no such TPU topology, try v5e:4x4 or v5p:2x2x4 ({reason})") from error


def compile_plan(
    step: Callable[..., Any],
    arguments: Sequence[Any],
    arguments_by_kind: Mapping[str, Any],
    mesh: Mesh,
    remedies: Mapping[str, str],
    out_shardings: Any = None,
) -> Plan:
    """Compiles `step` for the mesh's chips, except for the machine code, and reads what it takes. The compiler goes on
    in a thread afterwards: end the process with `os._exit`.

    Args:
        arguments: `jax.ShapeDtypeStruct`s with shardings; the first is donated. Unused ones stay in memory.
        arguments_by_kind: the same leaves by what they are: "weights", "batch", ...
        remedies: what to do when a kind is too much; with the kind "activations" for the rest.

    Raises:
        UserError: the chip's peaks are unknown.
    """
    kind = mesh.devices.flat[0].device_kind
    chip = find_chip(kind)
    if chip is None:
        raise UserError(f"--plan: no published peaks are known of {kind!r}")
    argument_bytes = {name: sum(map(local_bytes, jax.tree.leaves(tree))) for name, tree in arguments_by_kind.items()}
    began = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            jitted = jax.jit(step, donate_argnums=0, out_shardings=out_shardings, keep_unused=True)
            lowered = jitted.lower(*arguments)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            text, buffers = compile_to_text(lowered, compiler_options(mesh), pathlib.Path(folder))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used, words = overflow(str(error))
        rest = max(used - sum(argument_bytes.values()), 0.0)
        return Plan(dict(mesh.shape), chip, {**argument_bytes, "activations": rest}, remedies, words)
    temp_bytes = max(hlo.allocated_bytes(buffers) - sum(argument_bytes.values()), 0.0)
    return Plan(
        dict(mesh.shape),
        chip,
        {**argument_bytes, "activations": temp_bytes},
        remedies,
        None,
        flops=hlo.product_flops(text) + hlo.kernel_flops(text),
        recomputed=hlo.recomputed_flops(text) or 0.0,
        traffic=hlo.memory_traffic(text),
        collectives=hlo.collective_bytes(text),
        compile_seconds=time.monotonic() - began,
    )


def compile_to_text(lowered: jax.stages.Lowered, options: dict[str, Any], folder: pathlib.Path) -> tuple[str, str]:
    """The optimized program and the list of its buffers, as text.

    Machine code would take several times as long as everything before it, and, at full size, more memory than most
    computers have. The compiler cannot be stopped before it, but dumps what it has by then.
    """
    errors: list[BaseException] = []
    options = options | LEAST_EFFORT | {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}

    def work() -> None:
        try:
            lowered.compile(options)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    stem = "*.after_optimizations"  # the report is written when the other two are complete
    while not any(folder.glob(f"{stem}-memory-usage-report.txt")):
        if not thread.is_alive():
            raise errors[0] if errors else unreadable()
        time.sleep(0.2)
    program, buffers = (next(folder.glob(f"{stem}{kind}.txt"), None) for kind in ("", "-buffer-assignment"))
    if program is None or buffers is None:
        raise unreadable()
    return program.read_text(), buffers.read_text()


def unreadable() -> UserError:
    """Other versions of the compiler than the one that JAX requires dump other files."""
    wanted = [line.partition(";")[0].strip() for line in metadata.requires("jax") or () if line.startswith("libtpu")]
    return UserError(
        f"--plan: the TPU compiler (libtpu {metadata.version('libtpu')}) wrote nothing that can be read here; "
        f"pip install '{wanted[0] if wanted else 'jax[tpu]'}'"
    )


def step_flops(step: jax.stages.Compiled, trainable: Any, passes: int = 1) -> float:
    """FLOPs of every device in a training step of `passes` micro-batches, rematerialization included."""
    parameters = sum(local_bytes(leaf) // leaf.dtype.itemsize for leaf in jax.tree.leaves(trainable))
    counted = (step.cost_analysis() or {}).get("flops", 0.0)
    return flops_with_accumulation(counted, passes, UPDATE_FLOPS * parameters) + hlo.kernel_flops(step.as_text() or "")


def flops_with_accumulation(counted: float, passes: int, update: int) -> float:
    """The compiler counts the loop over micro-batches as one pass; the optimizer's update does run only once."""
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
