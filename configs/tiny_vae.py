"""The small model's autoencoder, on crops of rendered people.

python train.py configs/tiny_vae.py

About 15 minutes on 2 busy CPU cores: held-out PSNR 28.4 dB, LPIPS 0.14. Afterwards `scaling_factor` in
`ModelConfig.tiny` is set to 1 / standard deviation of the latents.
"""

from animate_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="vae",
        output="runs/tiny_vae",
        trainable=r"vae\.",
        steps=700,
        data=DataConfig(batch=4, frames=4),
        optim=OptimConfig(learning_rate=1e-3, warmup=50, decay="cosine", decay_start=0.1, weight_decay=0.0, ema=0.995),
    )
