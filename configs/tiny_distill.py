"""Few steps for the small model: a student of itself with guidance 2 that samples in 4 steps without.

    python train.py configs/tiny_distill.py --init tiny

Only an exercise: the bundled model needs two steps already, and comes out worse with guidance (docs/sampling.md).
"""

from animate_jax.config import DataConfig, DiffusionLossConfig, DistillConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="distill",
        output="runs/tiny_distill",
        init="tiny",
        trainable=r"denoising_unet\.",
        steps=240,
        data=DataConfig(batch=2, frames=4, consecutive=True),
        optim=OptimConfig(learning_rate=3e-4, warmup=10, decay="cosine", betas=(0.9, 0.99), weight_decay=0.0, ema=0.98),
        loss=DiffusionLossConfig(shared_noise=True),
        distill=DistillConfig(guidance=2.0),
    )
