"""Do window borders show? Mean frame-to-frame change across a border over that elsewhere; 1: they do not.

    python benchmarks/seams.py [--checkpoint tiny] [--videos 4] [--frames 40] [--offsets 3]

Rendered people of `test_both`. Every motion is made several times, each time beginning a few frames later, so that the
windows lie elsewhere on it. "Plain" divides the mean change across borders by the mean of all other changes, whatever
the person does just then. "Paired" compares each change across a border with the same two frames of the motion where no
border lies between them. A border is where a window of the last step begins or ends. Intervals are bootstrapped over
(video, border) pairs. Prints Markdown.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tyro
from tqdm import tqdm

from animate_jax.diffusion.sampling_loop import step_windows
from animate_jax.evaluation.clips import from_renderer
from animate_jax.pose.draw import LazyPoseImages, draw
from animate_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"
    videos: int = 4
    frames: int = 40
    offsets: int = 3  # runs of each motion, evenly spread over the distance of two windows
    steps: int | None = None


def borders(pipeline: Pipeline, frames: int, options) -> list[int]:
    """Frames that a window of the last step begins with, or that come after its end."""
    windows = step_windows(frames, options)[-1]
    return sorted({edge for window in windows for edge in (window[0], window[-1] + 1)} - {0, frames})


def main(args: Arguments) -> None:
    pipeline = Pipeline.from_pretrained(args.checkpoint)
    base = pipeline.animation_config(steps=args.steps)
    stride = base.window - base.overlap
    offsets = [stride * i // args.offsets for i in range(args.offsets)]
    length = args.frames + offsets[-1]
    cases = list(from_renderer("test_both", args.videos, length, 1, (base.height, base.width), base.fps or 10.0))
    variants = [(blend, shift) for blend in ("center", "flat") for shift in (False, True)]
    print(
        f"{args.videos} videos x {args.offsets} positions of windows, {args.frames} frames, {base.steps} steps, "
        f"windows of {base.window} with overlap {base.overlap}.\n\n| weights | windows | plain | paired |\n"
        "|---|---|---|---|"
    )
    bar = tqdm(total=len(variants) * args.videos * args.offsets, unit="video", dynamic_ncols=True)
    for blend, shift in variants:
        options = dataclasses.replace(base, blend=blend, shift_windows=shift)
        places = borders(pipeline, args.frames, options)
        plain, paired = [], []  # (across a border, elsewhere)
        for case in cases:
            size = options.height, options.width
            reference_pose = draw(case.keypoints[0], *size, options.pose_style)
            conditioning = pipeline.precompute_conditioning(case.reference, reference_pose, options)
            changes = np.full((args.offsets, length), np.nan)  # [run, motion's frame]: from the one before
            across = np.zeros((args.offsets, length), bool)
            for run, offset in enumerate(offsets):
                keypoints = case.keypoints[1 + offset : 1 + offset + args.frames]
                poses = LazyPoseImages(keypoints, *size, options.pose_style)
                warped = pipeline.warp(case.reference, case.keypoints[0], poses)
                latents = pipeline.sample(conditioning, poses, options, 0, progress=False, warped=warped)
                video = pipeline.decode(latents, warped).astype(np.float32)
                changes[run, offset + 1 : offset + args.frames] = np.abs(np.diff(video, axis=0)).mean((1, 2, 3))
                across[run, [offset + place for place in places]] = True
                bar.update()
            elsewhere = np.nanmean(changes[~across])
            plain += [(change, elsewhere) for change in changes[across]]
            for run, frame in np.argwhere(across):
                others = changes[:, frame][~across[:, frame] & ~np.isnan(changes[:, frame])]
                paired += [(changes[run, frame], others.mean())] if len(others) else []
        print(f"| {blend} | {'shifted' if shift else 'fixed'} | {ratio(plain)} | {ratio(paired)} |", flush=True)


def ratio(pairs: list[tuple[float, float]]) -> str:
    """Of the means, with a 95 % interval."""
    pairs = np.array(pairs)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))
    value, (low, high) = np.divide(*pairs.sum(0)), np.quantile(np.divide(*pairs[drawn].sum(1).T), (0.025, 0.975))
    return f"{value:.3f} ({low:.3f}–{high:.3f}, n={len(pairs)})"


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
