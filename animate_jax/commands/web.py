"""A page in the browser that animates pictures:

    animate-jax web                                        # http://127.0.0.1:7860, the bundled model
    ANIMATE_JAX_PASSWORD=... animate-jax web --host 0.0.0.0 --checkpoint ckpt/

One video is made at a time; visitors wait in a queue. Whoever can reach the address may use the machine, so it is this
machine only unless `--host` says otherwise; with ANIMATE_JAX_PASSWORD set, the page asks for it (user name: animate).
Uploads and results lie in a temporary folder. They are removed when their visitor leaves, after an hour without use,
when there are too many, and when the program ends. `animate_jax.limits` says how much a visitor may ask for.
"""

from __future__ import annotations

import dataclasses
import pathlib
import signal
import threading
from typing import NoReturn

import tyro

from animate_jax.commands.options import load_loras, parse
from animate_jax.config import DType, MeshShape
from animate_jax.errors import UserError, exit_status
from animate_jax.parallel.mesh import make_mesh
from animate_jax.pose.dwpose import DWPose
from animate_jax.presets import find_preset
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.storage import keep_compiled_programs
from animate_jax.web.page import serving
from animate_jax.web.studio import VisitorLimits

DEFAULT_MESH = MeshShape()


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"  # "tiny" (bundled), "moore" or another that is fetched, a directory, or owner/repository
    lora: tuple[str, ...] = ()  # LoRA files or the runs that trained them, each with an optional strength: FILE:0.8
    preset: str | None = None  # numerical choices; none: those the checkpoint carries
    dtype: DType = "float32"  # of weights and computation; bfloat16 is for TPUs and GPUs
    mesh: MeshShape = DEFAULT_MESH  # how devices share windows (--mesh.frames: also the frames of each)
    dwpose: pathlib.Path | None = None  # folder of yolox_l.onnx and dw-ll_ucoco_384.onnx: detects instead of BlazePose
    host: str = "127.0.0.1"  # this machine only; 0.0.0.0: the network
    port: int = 7860  # 0 takes a free one
    limits: tyro.conf.OmitArgPrefixes[VisitorLimits] = dataclasses.field(default_factory=VisitorLimits)
    queue_size: int = 8  # visitors that may wait


def main(arguments: list[str], program: str = "animate-jax web") -> int:
    args = parse(Arguments, arguments, program, __doc__)
    return exit_status(program, lambda: _run(args), "stopped")


def _run(args: Arguments) -> None:
    def terminate(*_) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)  # so that visitors' files are removed first

    signal.signal(signal.SIGTERM, terminate)
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: must be 0 to {2**16 - 1}")
    preset = find_preset(args.preset) if args.preset else None
    detector = DWPose(args.dwpose) if args.dwpose else None
    keep_compiled_programs()

    def load() -> Pipeline:
        mesh = make_mesh(args.mesh)
        pipeline = Pipeline.from_pretrained(args.checkpoint, preset, mesh if mesh.size > 1 else None, args.dtype)
        load_loras(pipeline, args.lora)
        return pipeline

    with serving(load, args.host, args.port, args.limits, args.queue_size, detector) as address:
        print(f"{address}   (Ctrl-C stops)", flush=True)
        threading.Event().wait()
