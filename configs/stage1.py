"""Stage 1 of the paper: single frames at 768x768; denoising UNet, ReferenceNet and Pose Guider learn (Hu et al. 2023,
section 4.1: 30,000 steps, batch 64, learning rate 1e-5).

    python train.py configs/stage1.py --init weights/sd15 --data.root gs://bucket/clips --mesh.fsdp 16 --accumulate 4
    python train.py configs/stage1.py --plan v5e:4x4 --mesh.fsdp 16 --accumulate 4

1720 M parameters are trained: weights, gradients and Adam's moments take 28 GB, divided by `--mesh.fsdp`. The passes
are bfloat16; autoencoder and CLIP are held in it. Less memory: `--accumulate 4`, `--optim.moments factored`.

The numbers are the paper's, except that half of the samples are mirrored (not with `--data.flip 0`).
Moore-AnimateAnyone's additions to it, for weights that continue theirs:

    --preset moore-fixed --loss.weighting min_snr --loss.noise-offset 0.05 --frozen 'reference_unet\\.up_blocks\\.3\\.'

(velocity prediction with zero terminal SNR; a Pose Guider that starts from ControlNet is a matter of `--init`). To
sample from averaged weights: `--optim.ema 0.9999`, 6.9 GB more.

Hardware: 16 chips of 16 GB (v5e:4x4), or 8 GPUs of 40 GB. Planned (the command above): 7.2 GB per chip, 100 TFLOPs per
chip and step, at least 0.60 s. Not yet run at this size.
"""

from animate_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="stage1",
        output="runs/stage1",
        preset="paper",
        size=(768, 768),
        trainable=r"(?!vae\.)(?!image_encoder\.)(?!.*motion_modules)",
        frozen_bf16=r"(vae|image_encoder)\.",
        steps=30_000,
        data=DataConfig(batch=64, frames=1, num_workers=8),
        optim=OptimConfig(learning_rate=1e-5, warmup=0, ema=0.0),
        compute_dtype="bfloat16",
        remat="blocks",
        save_every=1000,
    )
