"""Stage 2 of the small model: only the temporal layers, on short clips with shared noise (as it samples).

    python train.py configs/tiny_stage2.py --init runs/tiny_stage1

The bundled weights took `--data.frames 16 --loss.flicker-weight 15` for a stiller background, and a perceptual loss of
several frames of each clip so that pictures stay sharp (docs/model_card.md).
"""

from animate_jax.config import DataConfig, DiffusionLossConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="stage2",
        output="runs/tiny_stage2",
        init="runs/tiny_stage1",
        trainable=r".*motion_modules",
        steps=300,
        data=DataConfig(batch=2, frames=12, consecutive=True),
        optim=OptimConfig(learning_rate=1e-3, warmup=20, decay="cosine", betas=(0.9, 0.99)),
        loss=DiffusionLossConfig(weighting="x0", person_weight=2.0, shared_noise=True, timestep_shift=4.0),
    )
