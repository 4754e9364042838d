"""The small model's autoencoder, on crops of rendered people.

python train.py configs/tiny_vae.py

Trains the decoder alone: the encoder is a fixed linear map of patches, so stage 1 need not wait for it. Untrained, the
linear decoder reaches 33.1 dB on held-out people; about 15 minutes on 2 CPU cores.
"""

from animate_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="vae",
        output="runs/tiny_vae",
        trainable=r"vae\.(decoder|post_quant_conv)",
        steps=700,
        data=DataConfig(batch=4, frames=4),
        optim=OptimConfig(learning_rate=1e-3, warmup=50, decay="cosine", decay_start=0.1, weight_decay=0.0, ema=0.995),
    )
