"""One run that proves an accelerator: does it compute correctly, and how fast is everything at full size?

    python benchmarks/accelerator.py                      # on a machine with one GPU or TPU; ten minutes at most
    python benchmarks/accelerator.py --size small         # the same on a CPU, to try the program itself
    python benchmarks/accelerator.py --only stage1 video  # some parts again; the others stay as the files have them

In a checkout, with random weights in bfloat16; nothing is downloaded. First versions, the self-test of `animate-jax
doctor`, and a golden run (tests/golden) in float32 and bfloat16 against its recorded arrays; the other two end the
run. Then a guided step of 24 frames at 512x768, ReferenceNet, the decoder, the video of 20 steps, a step of stage 1 (4
pictures at 512x768) and one of stage 2 (24 frames at 512x512), and the same blocks out of diffusers' PyTorch modules
where torch sees the GPU.

Each part is a process of its own with a time limit, so one that fails is written down with its reason and the others
go on. Results are written after every part: OUTPUT/accelerator_DEVICE.json and .md. The exit status is 1 if a part
failed or computed something else than it should, otherwise 0, and the last line says how to run these parts again.

MFU is the model's FLOPs (matrix products and convolutions, none twice for rematerialization), counted in a second
process on the CPU, by the chip's published peak in bfloat16.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import resource
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tyro

ROOT = pathlib.Path(__file__).parents[1]
TOTAL_SECONDS = 600
# Part -> its name in the table and the seconds it may take, the FLOPs' counting included.
PARTS = {
    "self_test": ("versions and self-test", 90),
    "golden_single_float32": ("golden run, 4 frames, float32", 120),
    "golden_single_bfloat16": ("golden run, 4 frames, bfloat16", 120),
    "step": ("guided step, {frames} frames at {width}x{height}", 180),
    "reference": ("ReferenceNet at {width}x{height}", 90),
    "decode": ("VAE decode, 8 frames at {width}x{height}", 120),
    "video": ("video, {steps} steps, {frames} frames at {width}x{height}", 180),
    "stage1": ("training step, stage 1: 4 pictures at {width}x{height}", 180),
    "stage2": ("training step, stage 2: {frames} frames at {width}x{width}", 180),
    "torch_step": ("PyTorch: guided step", 90),
    "torch_reference": ("PyTorch: ReferenceNet, both halves", 60),
    "torch_decode": ("PyTorch: VAE decode, 8 frames", 60),
    "golden_long_float32": ("golden run, 12 frames in windows, float32", 90),
    "golden_v1_float32": ("golden run, statistics over frames, float32", 90),
}
COUNTED = ("step", "reference", "decode", "stage1", "stage2")
# Largest error relative to the largest recorded value. 1e-4 is what tests/golden/README.md calls generous. Between them
# lie rounding and mistakes: bfloat16 on a CPU differs by 0.033 in blocks, 0.077 after guidance (3.5), and 0.097 in the
# video; the two rows of guidance exchanged differ by 0.69, guidance left out by 0.85, frames moved by one by 1.0.
GOLDEN_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
SECONDS, CALLS = 5.0, 20  # a part is timed until either is reached, three times at least
UNKNOWN = "unknown device"
LEGEND = """Times: medians of one call in bfloat16 with random weights, compiled before. Golden runs: a recorded run
of the PyTorch implementation, repeated in JAX; errors are relative to an array's largest value. TFLOP: the model's
work in a call. Peak memory: the device's since the part began; on a CPU the process's. PyTorch: the same blocks out
of diffusers' modules, not compiled."""
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")


@dataclasses.dataclass(frozen=True)
class Arguments:
    output: pathlib.Path = pathlib.Path("outputs")  # folder of the two files
    size: Literal["full", "small"] = "full"
    only: tuple[str, ...] = ()  # parts to run; default: all
    part: str | None = None  # of a process that this program started; not for the command line
    count: bool = False  # such a process counts FLOPs instead of running


def main(arguments: list[str]) -> int:
    args = tyro.cli(Arguments, description=__doc__, args=arguments)
    if args.part:
        result = count(args.part, args.size) if args.count else run(args.part, args.size)
        print(json.dumps(result))
        return 0
    if unknown := set(args.only) - set(PARTS):
        raise SystemExit(f"--only {' '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    args.output.mkdir(parents=True, exist_ok=True)
    began, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as cache:  # the video meets the programs of the parts before it
        for part in args.only or PARTS:
            print(f"{part}: running", file=sys.stderr, flush=True)
            results[part] = measure(part, args.size, cache, began + TOTAL_SECONDS - time.monotonic())
            print(f"{part}: {told(results[part])}", file=sys.stderr, flush=True)
            paths = write(results, args)
    print(paths[1].read_text())
    if wrong := [part for part, result in results.items() if "**" in told(result)]:
        options = "" if args.size == "full" else f" --size {args.size}"
        if args.output != Arguments.output:
            options += f" --output {shlex.quote(str(args.output))}"
        print(f"not right; again: python benchmarks/accelerator.py{options} --only {' '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def told(result: dict[str, Any]) -> str:
    """A part's result in the table; it has bold words if something is wrong."""
    if "failed" in result:
        return f"**failed**: {result['failed'].replace('|', '/')}"
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    return result.get("verdict") or f"{result['seconds']:.4g} s"


def measure(part: str, size: str, cache: str, remaining: float) -> dict[str, Any]:
    """The part's figures, or {"failed": why}."""
    deadline = time.monotonic() + min(PARTS[part][1], remaining)
    if remaining < 5:
        return {"failed": f"not begun: {TOTAL_SECONDS} s are over"}
    result = process(part, size, cache, deadline)
    if part in COUNTED and "seconds" in result:
        # On a CPU the model is plain JAX, without the kernels whose work no counter sees.
        counted = process(part, size, cache, deadline, "--count", platform="cpu")
        result |= counted if "failed" not in counted else {"flops_failed": counted["failed"]}
        if (peak := result.get("peak_flops")) and "flops" in result:
            result["mfu"] = result["flops"] / result["seconds"] / peak
    return result


def process(
    part: str, size: str, cache: str, deadline: float, *options: str, platform: str | None = None
) -> dict[str, Any]:
    environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache, TF_CPP_MIN_LOG_LEVEL="2")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if platform:
        environment["JAX_PLATFORMS"] = platform
    command = [sys.executable, __file__, "--part", part, "--size", size, *options]
    limit = deadline - time.monotonic()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=max(limit, 1), cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    except OSError as error:  # no memory for a process
        return {"failed": str(error)}
    if done.returncode < 0:
        return {"failed": f"killed by {signal.Signals(-done.returncode).name}: is there too little host memory?"}
    if done.returncode:
        return {"failed": reason(done.stderr) or f"ended with status {done.returncode}"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": "ended without a result"}


def reason(stderr: str) -> str:
    """The exception of a traceback, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
    return (raised or lines or [""])[-1][:200]


def write(results: dict[str, dict[str, Any]], args: Arguments) -> tuple[pathlib.Path, pathlib.Path]:
    """Both files, each whole at any time. With `only`, other parts of the same device and size stay in them."""
    device = next((each["device"] for each in results.values() if "device" in each), UNKNOWN)
    paths = files(args.output, device)
    if args.only and paths[0].exists():
        before = json.loads(paths[0].read_text())
        if before["size"] == args.size:
            results = {part: (before["parts"] | results)[part] for part in PARTS if part in before["parts"] | results}
    content = json.dumps({"device": device, "size": args.size, "parts": results}, indent=1) + "\n"
    for path, text in zip(paths, (content, table(device, results, args.size)), strict=True):
        half = path.with_suffix(path.suffix + ".part")
        half.write_text(text)
        half.replace(path)
    if device != UNKNOWN:  # the first parts may have failed before they knew it
        for path in files(args.output, UNKNOWN):
            path.unlink(missing_ok=True)
    return paths


def files(folder: pathlib.Path, device: str) -> tuple[pathlib.Path, pathlib.Path]:
    stem = "accelerator_" + re.sub(r"\W+", "_", device).strip("_")
    return folder / f"{stem}.json", folder / f"{stem}.md"


def table(device: str, results: dict[str, dict[str, Any]], size: str) -> str:
    names = shapes(size)
    lines = [
        f"# {device}, size {size}",
        "",
        results.get("self_test", {}).get("versions", ""),
        "",
        "| part | result | TFLOP | MFU | peak memory, GB | trace s | compile s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, each in results.items():
        flops, mfu, peak = each.get("flops"), each.get("mfu"), each.get("peak_bytes")
        cells = [
            PARTS[part][0].format(**names),
            told(each),
            f"{flops / 1e12:.4g}" if flops else "",
            f"{mfu:.3f}" if mfu else "",
            f"{peak / 1e9:.2f}" if peak else "",
            *(f"{each[name]:.1f}" if name in each else "" for name in ("trace_seconds", "compile_seconds")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    peak = next((each["peak_flops"] for each in results.values() if each.get("peak_flops")), None)
    mfu = f" MFU: TFLOP per second, by the chip's {peak / 1e12:.4g} in bfloat16." if peak else ""
    lines += ["", LEGEND + mfu]
    return "\n".join(lines) + "\n"


def shapes(size: str) -> dict[str, int]:
    preset = chosen_preset(size)
    frames, sampling = preset.frames, preset.sampling
    return {"width": frames.width, "height": frames.height, "frames": sampling.window, "steps": sampling.steps}


def chosen_preset(size: str):
    """`paper`; or the same classes with two narrow levels, which a CPU compiles and runs in seconds."""
    from animate_jax.config import (
        FrameConfig,
        ImageEncoderConfig,
        ModelConfig,
        PoseGuiderConfig,
        SamplingConfig,
        UNetConfig,
        VAEConfig,
    )
    from animate_jax.presets import find_preset

    paper = find_preset("paper")
    if size == "full":
        return paper
    unet = UNetConfig(
        block_out_channels=(8, 16),
        attention_levels=(True, False),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
    )
    model = ModelConfig(
        unet,
        VAEConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4),
        ImageEncoderConfig(16, 8, 16, 32, 1, 2, 8),
        PoseGuiderConfig((4, 8), 8),
    )
    frames, sampling = FrameConfig(32, 64), SamplingConfig(steps=2, window=4, overlap=1)
    return dataclasses.replace(paper, model=model, frames=frames, sampling=sampling)


def run(part: str, size: str) -> dict[str, Any]:
    if part.startswith("torch_"):
        return run_torch(part.removeprefix("torch_"), size)
    import jax

    # Also programs that compile fast are worth keeping here.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    from animate_jax.parallel.chips import find_chip

    device = jax.devices()[0]
    chip = find_chip(device.device_kind)
    result: dict[str, Any] = {"device": device.device_kind, "peak_flops": chip.flops if chip else None}
    if part == "self_test":
        result |= self_test(device)
    elif part.startswith("golden_"):
        result |= golden(*part.split("_")[1:])
    elif part == "video":
        result |= video(size)
    else:
        program, inputs, donated = jax_part(part, size, filled)
        result |= timed(program, inputs, donated)
    statistics_of_device = device.memory_stats() or {}
    host = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on a CPU
    return result | {"peak_bytes": statistics_of_device.get("peak_bytes_in_use", host)}


def self_test(device) -> dict[str, Any]:
    import platform

    from animate_jax import __version__
    from animate_jax.models.self_test import wrong_results

    installed = {name for name in LIBRARIES if importlib.util.find_spec(name.replace("-", "_")) is not None}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES if name in installed]
    wrong = [f"{each.name}: {each.actual:.6g} for {each.expected:.6g}" for each in wrong_results(device)]
    return {
        "versions": ", ".join([f"animate_jax {__version__}, Python {platform.python_version()}", *versions]),
        "wrong": wrong,
        "verdict": f"**wrong**: {'; '.join(wrong)}" if wrong else "computes as NumPy does",
    }


def golden(name: str, dtype: str) -> dict[str, Any]:
    """The largest error of any recorded array, relative to its largest value."""
    import jax

    replay = runpy.run_path(str(ROOT / "tests" / "golden" / "replay.py"))["replay"]
    jax.config.update("jax_default_matmul_precision", "highest" if dtype == "float32" else None)
    recorded, ours = replay(name, dtype)
    errors = {}
    for key in sorted(set(recorded) & set(ours)):
        error = np.abs(ours[key].astype(np.float64) - recorded[key]).max()
        errors[key] = float(error / max(np.abs(recorded[key]).max(), 1e-30))
    worst = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    is_right = errors[worst] <= GOLDEN_TOLERANCE[dtype]  # not of NaN
    agrees = "agrees" if is_right else "**different**"
    largest = f"largest error {errors[worst]:.2g} ({GOLDEN_TOLERANCE[dtype]:g} allowed)"
    verdict = f"{agrees} in {len(errors)} arrays: {largest}, in {worst}"
    return {"errors": errors, "verdict": verdict, "video_error": errors["video"]}


def filled(leaf, path: str = ""):
    """Random numbers of a sensible size on the device, without a program to compile."""
    import jax
    import jax.numpy as jnp

    if not path and jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.asarray(np.resize(np.arange(256), leaf.shape), leaf.dtype)
    scale = 1 / math.sqrt(leaf.size / leaf.shape[-1]) if path.endswith("kernel") else 0.1
    values = np.resize(RANDOM * np.float32(scale), leaf.shape) + np.float32(path.endswith("scale"))
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)


RANDOM = np.random.default_rng(0).standard_normal(99991, np.float32)


def jax_part(part: str, size: str, fill: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
    """A jitted function, its inputs as `fill` makes them of shapes, and whether it takes the first one's memory."""
    import jax
    import jax.numpy as jnp

    from animate_jax.models.params import abstract_model
    from animate_jax.sampling.pipeline import Pipeline

    preset = chosen_preset(size)
    if part in ("stage1", "stage2"):
        return training_part(part, preset, fill)
    names, model = shapes(size), preset.model
    half, latent = jnp.bfloat16, (names["height"] // model.vae.downscale, names["width"] // model.vae.downscale)
    channels, token = model.unet.in_channels, model.unet.cross_attention_dim

    def shape(*sides: int, dtype=half) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, dtype)

    whole = {path: shape(*leaf.shape) for path, leaf in abstract_model(model)[1].items()}
    pipeline = Pipeline(whole, preset)
    one = shape(1, *latent, channels)
    side = model.image_encoder.image_size
    if part == "decode":
        program, inputs, needed = pipeline._decode, (shape(8, *latent, channels),), ("vae",)
    elif part == "reference":
        # The rest of the conditioning, CLIP's one pass and the keys and values, is small beside it.
        program, inputs, needed = pipeline._conditioning, (one, shape(1, token)), ("reference_unet", "denoising_unet")
    else:
        conditioning = jax.eval_shape(pipeline._conditioning, whole, one, shape(1, side, side, 3))
        x = shape(2, names["frames"], *latent, channels)
        pose = shape(1, names["frames"], *latent, model.pose_guider.conditioning_channels)
        inputs = (x, shape(2, 1, dtype=jnp.float32), conditioning, pose)
        program, needed = pipeline._run_unet, ("denoising_unet",)
    # Programs take all parameters; what they do not use stays on the host and, here, takes no memory.
    unused = {path: leaf for path, leaf in whole.items() if not path.startswith(needed)}
    if fill is not abstract:
        unused = {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in unused.items()}
    params = {path: unused[path] if path in unused else fill(leaf, path) for path, leaf in whole.items()}
    return program, (params, *jax.tree.map(fill, inputs)), False


def training_part(part: str, preset, fill: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
    import jax

    from animate_jax.config import DataConfig, MeshConfig, OptimConfig, TrainConfig
    from animate_jax.data.batch import Batch
    from animate_jax.parallel.mesh import batch_sharding, make_mesh
    from animate_jax.training.losses import DiffusionLoss
    from animate_jax.training.step import make_program

    stage1 = part == "stage1"
    width, height = preset.frames.width, preset.frames.height
    config = TrainConfig(
        stage=part,
        output="",
        preset=preset,
        size=(width, height if stage1 else width),
        trainable=r"(?!vae\.)(?!image_encoder\.)(?!.*motion_modules)" if stage1 else r".*motion_modules",
        frozen_bf16=r"(vae|image_encoder)\." if stage1 else r"(?!.*motion_modules)",
        data=DataConfig(batch=4, frames=1)
        if stage1
        else DataConfig(batch=1, frames=preset.sampling.window, consecutive=True),
        optim=OptimConfig(ema=0.0, moments="factored"),  # 10 bytes per trained parameter with its gradient
        compute_dtype="bfloat16",
        remat="none" if fill is abstract else "blocks",
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    jax.set_mesh(mesh)
    program = make_program(config, DiffusionLoss(config), mesh)
    state, batch = program.abstract, Batch.abstract(config, batch_sharding(mesh))
    if fill is not abstract:
        state = state._replace(
            trainable={path: fill(leaf, path) for path, leaf in state.trainable.items()},
            frozen={path: fill(leaf, path) for path, leaf in state.frozen.items()},
            **{
                name: jax.tree.map(
                    lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), getattr(state, name)
                )
                for name in ("step", "opt")
            },
        )
        batch = jax.tree.map(fill, batch)
        key = jax.random.key(0)
    else:
        key = jax.eval_shape(lambda: jax.random.key(0))
    return program.step, (state, batch, key), True


def abstract(leaf, path: str = ""):
    """In the place of `filled`: shapes stay shapes."""
    return leaf


def count(part: str, size: str) -> dict[str, Any]:
    """The model's FLOPs in a part; nothing is computed."""
    from denoise import products

    program, inputs, _ = jax_part(part, size, abstract)
    return {"flops": products(program.trace(*inputs).jaxpr.jaxpr)}


def timed(program: Callable[..., Any], inputs: tuple[Any, ...], donated: bool) -> dict[str, Any]:
    import jax

    began = time.monotonic()
    lowered = program.lower(*inputs)
    traced = time.monotonic()
    compiled = lowered.compile()
    result: dict[str, Any] = {"trace_seconds": traced - began, "compile_seconds": time.monotonic() - traced}
    planned = compiled.memory_analysis()
    result["planned_bytes"] = planned and planned.temp_size_in_bytes + planned.argument_size_in_bytes

    output = jax.block_until_ready(compiled(*inputs))
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < SECONDS and len(seconds) < CALLS):
        if donated:
            inputs = (output[0], *inputs[1:])
        began = time.monotonic()
        output = jax.block_until_ready(compiled(*inputs))
        seconds.append(time.monotonic() - began)
    floats = [leaf for leaf in jax.tree.leaves(output) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)]
    checked = [output[1]["loss"]] if donated else floats
    if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in checked):
        result["verdict"] = f"**not finite**, {statistics.median(seconds):.4g} s"
    return result | {"seconds": statistics.median(seconds), "all_seconds": seconds}


def video(size: str) -> dict[str, Any]:
    """The bundled picture and motion: from the files to the decoded frames."""
    import jax.numpy as jnp

    from animate_jax.models.params import abstract_model
    from animate_jax.sampling.inputs import EXAMPLE
    from animate_jax.sampling.pipeline import Pipeline

    preset = chosen_preset(size)
    shapes = {path: leaf.update(dtype=jnp.bfloat16) for path, leaf in abstract_model(preset.model)[1].items()}
    pipeline = Pipeline({path: filled(leaf, path) for path, leaf in shapes.items()}, preset)
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        result = pipeline(
            EXAMPLE / "reference.png", EXAMPLE / "driving.mp4", frames=preset.sampling.window, progress=False
        )
        seconds.append(time.monotonic() - began)
    verdict = f"{seconds[1]:.3g} s for {len(result.frames)} frames; the first one, with compiling, {seconds[0]:.3g} s"
    return {"seconds": seconds[1], "first_seconds": seconds[0], "frames": len(result.frames), "verdict": verdict}


def run_torch(part: str, size: str) -> dict[str, Any]:
    """diffusers' modules in bfloat16 with PyTorch's own choice of attention kernel (flash, cuDNN), on the same GPU."""
    if missing := [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]:
        return {"skipped": f"{' and '.join(missing)} not installed"}
    import diffusers
    import torch
    from torch_blocks import TorchUNet

    if size == "full" and not torch.cuda.is_available():
        return {"skipped": "torch sees no GPU"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset, names = chosen_preset(size), shapes(size)
    model, frames = preset.model, names["frames"]
    latent = (names["height"] // model.vae.downscale, names["width"] // model.vae.downscale)

    def normal(*sides: int) -> torch.Tensor:
        return torch.randn(sides, device=device, dtype=torch.bfloat16)

    def build(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        module = make().to(device, torch.bfloat16)
        return module.eval().requires_grad_(False)

    token, channels = normal(2 * frames, 1, model.unet.cross_attention_dim), model.unet.in_channels
    if part == "decode":
        levels = len(model.vae.block_out_channels)
        decoder = build(
            lambda: diffusers.AutoencoderKL(
                block_out_channels=model.vae.block_out_channels,
                layers_per_block=model.vae.layers_per_block,
                norm_num_groups=model.vae.norm_num_groups,
                down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels,
                latent_channels=model.vae.latent_channels,
            )
        )
        x = normal(8, channels, *latent)

        def call():
            return decoder.decode(x).sample

    elif part == "reference":
        reference, x = build(lambda: TorchUNet(model.unet, False)), normal(2, channels, *latent)

        def call():
            return reference(x, 0, token[:2], frames=1)

    else:
        denoiser, reference = (build(lambda motion=motion: TorchUNet(model.unet, motion)) for motion in (True, False))
        x = normal(2 * frames, channels, *latent)
        pose = normal(2 * frames, model.unet.block_out_channels[0], *latent)

        def call():
            unconditional, conditional = denoiser(x, 500, token, pose, frames).chunk(2)
            return unconditional + preset.sampling.guidance * (conditional - unconditional)

    seconds: list[float] = []
    with torch.no_grad():
        if part == "step":
            reference.lend(normal(1, channels, *latent), token[:1], denoiser)
        for turn in range(CALLS + 1):
            began = time.monotonic()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one chooses kernels
                seconds.append(time.monotonic() - began)
            if len(seconds) >= 3 and sum(seconds) > SECONDS:
                break
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",  # JAX calls it the same
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if is_gpu else None,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
