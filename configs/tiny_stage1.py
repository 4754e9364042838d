"""Stage 1 of the small model: single frames, everything but the temporal layers and the autoencoder.

    python train.py configs/tiny_stage1.py --init runs/tiny_vae

Predicts x0; four frames of each clip share one pass of ReferenceNet. About 1 step/s on 2 idle CPU cores, after minutes
of compiling Muon. The bundled weights come from an earlier version of this run (16 latent channels, AdamW, 2106
steps); the loss was still falling.
"""

from animate_jax.config import DataConfig, DiffusionLossConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="stage1",
        output="runs/tiny_stage1",
        init="runs/tiny_vae",
        trainable=r"(?!vae\.)(?!.*motion_modules)",
        steps=2900,
        data=DataConfig(batch=4, frames=4),
        optim=OptimConfig(optimizer="muon", learning_rate=1.4e-3, warmup=100, decay="cosine", betas=(0.9, 0.99)),
        loss=DiffusionLossConfig(weighting="x0", person=2.0),
    )
