"""Animates one picture with a driving motion.

    python sample.py                                                     # the bundled example on the bundled model
    python sample.py --reference person.png --driving dance.mp4 --output out.mp4
    python sample.py --checkpoint runs/tiny_stage2 --steps 20 --seed 3

Writes the video and, beside it, a contact sheet (.png) of reference, driving poses and result.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import time
from typing import Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import tyro

from animate_jax.config import presets
from animate_jax.errors import UserError, exit_status
from animate_jax.pipeline import EXAMPLE, Pipeline
from animate_jax.pose.dwpose import DWPose
from animate_jax.pose.retarget import Alignment
from animate_jax.video.files import check_output


@dataclasses.dataclass(frozen=True)
class Arguments:
    reference: pathlib.Path = EXAMPLE / "reference.png"  # picture of one person
    driving: pathlib.Path = EXAMPLE / "driving.mp4"  # video of a person, keypoints (.json, .npz, .npy), or drawn poses
    output: pathlib.Path = pathlib.Path("outputs/sample.mp4")  # .mp4 or .gif
    checkpoint: str = "tiny"  # "tiny" (bundled), a checkpoint's directory, or a training run's
    preset: str | None = None  # numerical choices; default: those the checkpoint carries
    steps: int | None = None  # denoising steps
    sampler: Literal["ddim", "dpm_solver", "unipc", "euler", "euler_ancestral"] | None = None
    guidance: float | None = None  # classifier-free guidance; 1 or less switches it off
    seed: int = 0
    frames: int | None = None  # make at most so many frames
    width: int | None = None  # of the result, in pixels
    height: int | None = None
    fps: float | None = None  # of the result; default: the model's, else the driving video's
    retarget: bool = True  # fit the motion to the reference's body
    align: Alignment = "bones"  # how: bone by bone; global: one scale; musepose: as its weights expect; none
    person: str = "largest"  # who of several in the driving video: largest, center, or a number from the left
    dwpose: pathlib.Path | None = None  # folder of yolox_l.onnx and dw-ll_ucoco_384.onnx: finds hands and faces, too
    canvas: tuple[int, int] | None = None  # width, height of the pictures behind a keypoints file that does not say


def main(arguments: list[str]) -> int:
    args = tyro.cli(Arguments, description=__doc__, args=arguments, prog="sample.py")
    return exit_status("sample.py", lambda: animate(args), "nothing written")


def animate(args: Arguments) -> None:
    started = time.monotonic()
    canvas = min(args.canvas) if args.canvas else None
    for name, value in (("frames", args.frames), ("fps", args.fps), ("steps", args.steps), ("canvas", canvas)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value}: must be greater than 0")
    if args.preset is not None and args.preset not in presets():
        raise UserError(f"--preset {args.preset!r}: choose one of {', '.join(presets())}")
    check_output(args.output, (".mp4", ".gif"))
    sheet = args.output.with_suffix(".png")
    if {args.output.resolve(), sheet.resolve()} & {args.reference.resolve(), args.driving.resolve()}:
        raise UserError(f"--output {args.output}: it or its contact sheet {sheet} would replace an input: rename it")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/animate_jax/jax"))
    pipeline = Pipeline.load(args.checkpoint, presets()[args.preset] if args.preset else None)
    animation = pipeline(
        args.reference, args.driving, frames=args.frames, fps=args.fps, seed=args.seed,
        progress=sys.stderr.isatty(), steps=args.steps, sampler=args.sampler, guidance=args.guidance,
        width=args.width, height=args.height, align=args.align if args.retarget else "none", person=args.person,
        detector=DWPose(args.dwpose) if args.dwpose else None, canvas=args.canvas and args.canvas[::-1],
    )  # fmt: skip
    animation.save(args.output)
    animation.save_contact_sheet(sheet)
    print(f"{len(animation.frames)} frames in {time.monotonic() - started:.0f} s: {args.output}, contact sheet {sheet}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
