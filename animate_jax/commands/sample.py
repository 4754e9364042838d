"""Animates one picture with a driving motion.

    animate-jax sample                                                  # the bundled example on the bundled model
    animate-jax sample --reference person.png --driving dance.mp4 --output out.mp4
    animate-jax sample --reference a.png b.png --driving dance.mp4      # one motion, a video of each character
    animate-jax sample --checkpoint runs/tiny_stage2 --steps 20 --seed 3

Writes the video and, beside it, a contact sheet (OUTPUT_sheet.png) of reference, driving poses and result.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import sys
import time
from typing import NoReturn, cast

from animate_jax.atomic import check_file
from animate_jax.checkpoints import checkpoint
from animate_jax.commands.options import load_loras, parse
from animate_jax.config import Compose, DType, MeshShape, PublishedName, SamplerName, Speed, Switch
from animate_jax.errors import UserError, exit_status
from animate_jax.parallel.mesh import make_mesh
from animate_jax.pose.align import AlignMethod
from animate_jax.pose.dwpose import DWPose
from animate_jax.presets import find_preset
from animate_jax.sampling.inputs import EXAMPLE, DrivingKind, check_request
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.sampling.results import check_poses_folder
from animate_jax.storage import keep_compiled_programs
from animate_jax.torch_weights.fetching import find_checkpoint, is_fetched
from animate_jax.torch_weights.published import PUBLISHED
from animate_jax.video.write import check_output, made_here, same_file

DEFAULT_MESH = MeshShape()


@dataclasses.dataclass(frozen=True)
class Arguments:
    reference: tuple[pathlib.Path, ...] = (EXAMPLE / "reference.png",)  # picture of one person, or several pictures
    driving: tuple[pathlib.Path, ...] = (EXAMPLE / "driving.mp4",)
    """video of a person, keypoints (.json, .npz, .npy, or a folder of .json), or drawn poses (a video, or a folder of
    pictures); several references and motions give a video of every pair"""
    driving_kind: DrivingKind | None = None  # what videos show: a person or drawn poses; none: detected
    output: pathlib.Path = pathlib.Path(
        "outputs/sample.mp4"
    )  # .mp4, .webm or .gif; for several inputs, their names are added
    side_by_side: bool = False  # also a video of reference, pose and result side by side
    debug_dir: pathlib.Path | None = None  # saves keypoints before and after retargeting, and pose images
    checkpoint: str = "tiny"  # "tiny" (bundled), "moore" or another that is fetched, a directory, or owner/repository
    lora: tuple[str, ...] = ()  # LoRA files or the runs that trained them, each with an optional strength: FILE:0.8
    preset: str | None = None  # numerical choices; none: those the checkpoint carries
    dtype: DType = "float32"  # of weights and computation; bfloat16 is for TPUs and GPUs
    mesh: MeshShape = DEFAULT_MESH  # how devices share windows (--mesh.frames: also the frames of each)
    plan: str | None = None  # compiles a step for a TPU such as "v5e:1x1" and prints its memory and time; no video
    speed: Speed = "exact"  # fast and fastest lose some quality, see docs/speed.md
    steps: int | None = None  # denoising steps; none: the preset's
    sampler: SamplerName | None = None  # see docs/sampling.md; none: the preset's
    guidance: float | None = None  # classifier-free guidance scale; 1 or less switches it off; none: the preset's
    guidance_interval: tuple[float, float] | None = None
    """guide only at these noise levels, as shares of the schedule: "0 0.8" leaves out the noisiest"""
    guidance_rescale: float | None = None  # share of guidance's added contrast that is removed again, 0 to 1
    window: int | None = None  # frames denoised together; none: the preset's
    overlap: int | None = None  # frames that neighboring windows share; none: the preset's
    deepcache_interval: int | None = None  # steps from one computation of the deep features to the next; 1: always
    deflicker: float | None = None
    """changes from frame to frame that are small against it, in levels of 255, are averaged away; 0: none; none: the
    preset's"""
    seed: int = 0  # 0 to 4294967295
    frames: int | None = None  # at most so many; none: all of the motion
    width: int | None = None  # of the result, in pixels; none: the model's
    height: int | None = None  # of the result, in pixels; none: the model's
    compose: Compose = "auto"
    """on: the result at the picture's own size, with the picture's own pixels; off: as the model decodes it; auto: on
    for the small bundled model, except with drawn poses"""
    background: str = "reference"  # of composed results: reference, driving (the video's scene), a color, or a file
    fps: float | None = None  # of the result; none: the model's, or the driving video's
    align: AlignMethod = "bones"
    """how the motion is fitted to the reference's body: bone by bone; global: one scale; musepose: as its weights
    expect; none: not at all"""
    keep_inside: Switch = "auto"  # with --align bones: scale and shift the motion until it stays in the picture
    person: str = "largest"  # in the driving video, of several: largest, center, or a number from the left
    hands: Switch = "auto"  # found and drawn where the weights know them; off: not
    face: Switch = "auto"  # as hands
    audio: Switch = "auto"  # the driving video's sound goes into the result; off: no sound
    dwpose: pathlib.Path | None = None  # folder of yolox_l.onnx and dw-ll_ucoco_384.onnx: detects instead of BlazePose
    canvas: tuple[int, int] | None = None  # width, height of the video of a keypoints file that does not contain them


def main(arguments: list[str], program: str = "animate-jax sample") -> int:
    if arguments and not arguments[0].startswith("-"):
        print(f"{program}: {arguments[0]}: give it as --reference PICTURE or --driving VIDEO", file=sys.stderr)
        return 2
    args = parse(Arguments, arguments, program, __doc__)
    return exit_status(program, lambda: animate(args), "no half video is left")


def animate(args: Arguments) -> None:
    started = time.monotonic()
    canvas = min(args.canvas) if args.canvas else None
    for name, value in (("frames", args.frames), ("steps", args.steps), ("canvas", canvas)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value}: must be greater than 0")
    check_request(args.fps, args.seed, args.person)
    preset = find_preset(args.preset) if args.preset else None
    if args.plan:
        print_plan(args, args.plan)
    outputs = output_paths(args)
    keep_compiled_programs()
    mesh = make_mesh(args.mesh)  # also checks --mesh on one device
    mesh = mesh if mesh.size > 1 else None
    pipeline = Pipeline.from_pretrained(args.checkpoint, preset, mesh, args.dtype)
    load_loras(pipeline, args.lora)
    canvas_size = (args.canvas[1], args.canvas[0]) if args.canvas else None
    streams = pipeline.stream(
        args.reference,
        args.driving,
        frames=args.frames,
        fps=args.fps,
        seed=args.seed,
        progress=sys.stderr.isatty(),
        speed=args.speed,
        steps=args.steps,
        sampler=args.sampler,
        guidance=args.guidance,
        guidance_interval=args.guidance_interval,
        guidance_rescale=args.guidance_rescale,
        window=args.window,
        overlap=args.overlap,
        deepcache_interval=args.deepcache_interval,
        deflicker=args.deflicker,
        width=args.width,
        height=args.height,
        align=args.align,
        person=args.person,
        detector=DWPose(args.dwpose) if args.dwpose else None,
        canvas=canvas_size,
        driving_kind=args.driving_kind,
        hands=args.hands,
        face=args.face,
        audio=args.audio,
        keep_inside=args.keep_inside,
        compose=args.compose,
        background=args.background,
    )
    for output, stream in zip(outputs, streams, strict=True):
        if args.debug_dir:
            stream.save_poses(poses_folder(args.debug_dir, output, outputs))
        others = other_outputs(args, output)
        stream.save(output, others.get("side-by-side video"), others["contact sheet"])
        seconds, rate = time.monotonic() - started, f"{stream.fps:g} frames/s"
        written = (f"{output} ({rate})", *(f"{what} {path}" for what, path in others.items()))
        print(f"{len(stream)} frames in {seconds:.0f} s: {', '.join(written)}")


def print_plan(args: Arguments, topology: str) -> NoReturn:
    from animate_jax.sampling.forecast import plan

    if args.preset:
        preset = find_preset(args.preset)
    elif is_fetched(args.checkpoint):
        preset = checkpoint.read_preset(find_checkpoint(args.checkpoint))
    else:  # its weights are not needed
        preset = find_preset(PUBLISHED[cast(PublishedName, args.checkpoint)].preset)
    options = {name: getattr(args, name) for name in ("speed", "guidance", "width", "height")}
    print(plan(preset, topology, args.dtype, args.mesh, **options), flush=True)
    os._exit(0)  # a thread of the compiler is still running


def output_paths(args: Arguments) -> list[pathlib.Path]:
    """The video of every pair, reference by reference; all can be written and replace no file of the user's."""
    for name, files in (("reference", args.reference), ("driving", args.driving)):
        if not files:
            raise UserError(f"--{name}: no file is given: check the pattern that should have matched some")
    output, outputs = args.output, []
    check_output(output)
    for reference, driving in itertools.product(args.reference, args.driving):
        chosen = (reference, args.reference), (driving, args.driving)
        suffixes = [path.stem for path, paths in chosen if len(paths) > 1]
        outputs.append(output.with_name("_".join([output.stem, *suffixes]) + output.suffix))
    if len({str(path).casefold() for path in outputs}) < len(outputs):  # some file systems ignore case
        raise UserError("--reference or --driving: two files have one name, and so would their videos: rename one")
    inputs = (*args.reference, *args.driving)
    for path in outputs:
        # The user did not choose the other files' names: they may only replace files of this program.
        others = other_outputs(args, path)
        for new in (path, *others.values()):
            check_file(new)
        if any(same_file(new, old) for new in (path, *others.values()) for old in inputs):
            raise UserError(
                f"--output {path}: it or its contact sheet {others['contact sheet']} would replace an input: rename it"
            )
        for what, new in others.items():
            if os.path.lexists(new) and not made_here(new):
                raise UserError(f"--output {path}: its {what} would replace a file of yours, {new}: rename it")
        if args.debug_dir:
            check_poses_folder(poses_folder(args.debug_dir, path, outputs), inputs, outputs)
    return outputs


def other_outputs(args: Arguments, output: pathlib.Path) -> dict[str, pathlib.Path]:
    """What is written beside a video."""
    others = {"contact sheet": output.with_name(f"{output.stem}_sheet.png")}
    if args.side_by_side:
        others["side-by-side video"] = output.with_name(f"{output.stem}_side_by_side{output.suffix}")
    return others


def poses_folder(folder: pathlib.Path, output: pathlib.Path, outputs: list[pathlib.Path]) -> pathlib.Path:
    """The debug folder of one of several videos."""
    return folder / output.stem if len(outputs) > 1 else folder
