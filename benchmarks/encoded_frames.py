"""What encoding a data set's frames once (`animate-jax data encode`) spares a training step.

    python benchmarks/encoded_frames.py

FLOPs of a clip in the full-size stages at 768x768, counted from traced programs. Prints Markdown.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import NamedSharding, PartitionSpec

from animate_jax.config import DataConfig, ModelConfig, TrainConfig
from animate_jax.data.batch import Batch
from animate_jax.parallel.mesh import make_mesh
from animate_jax.presets import presets
from animate_jax.training.losses import DiffusionLoss
from animate_jax.training.step import make_program

BOTH = TrainConfig(
    "stage1",
    "",
    trainable=r"(?!vae\.)(?!image_encoder\.)(?!.*motion_modules)",
    data=DataConfig(batch=1, frames=1),
    compute_dtype="bfloat16",
    remat="blocks",
)
CLIP = DataConfig(batch=1, frames=24, consecutive=True)
CONFIGS = {
    "stage 1": BOTH,
    "stage 2": dataclasses.replace(BOTH, stage="stage2", trainable=r".*motion_modules", data=CLIP),
}


def main() -> None:
    mesh, paper = make_mesh(), presets()["paper"]
    everywhere, key = NamedSharding(mesh, PartitionSpec()), jax.random.key(0)

    def programs(config: TrainConfig, model: ModelConfig, side: int):
        """(program, batches of images and of encoded frames)"""
        frames = dataclasses.replace(paper.frames, width=side, height=side)
        preset = dataclasses.replace(paper, model=model, frames=frames)
        config = dataclasses.replace(config, preset=preset)
        program = make_program(config, DiffusionLoss(config), mesh)
        return program, [Batch.abstract(config, everywhere, encoded) for encoded in (False, True)]

    def row(name: str, pixels: float, latents: float, unit: str) -> None:
        saved = 100 * (1 - latents / pixels)
        print(f"| {name} | {pixels:.2f} {unit} | {latents:.2f} {unit} | -{saved:.0f} % |", flush=True)

    print("| a step of one clip | on pixels | on encoded frames | |\n| --- | --- | --- | --- |", flush=True)
    with jax.set_mesh(mesh):
        for name, config in CONFIGS.items():
            program, batches = programs(config, paper.model, 768)
            work = [program.step.lower(program.abstract, each, key).cost_analysis()["flops"] / 1e12 for each in batches]
            row(f"{name}, 768x768, {config.data.frames} frames", *work, "TFLOP")


if __name__ == "__main__":
    main()
