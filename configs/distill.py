"""Few steps: a student of the guided model `init` that makes a video in 4 steps without guidance (Meng et al. 2023,
distillation of guided sampling): 4 passes of the UNet per window, where Moore-AnimateAnyone's 30 guided steps need 60.

    python train.py configs/distill.py --init moore --data.root gs://bucket/clips --mesh.frames 4 --mesh.fsdp 4
    python train.py configs/distill.py --plan v5e:4x4 --mesh.frames 4 --mesh.fsdp 4
    python sample.py --checkpoint runs/distill --reference person.png --driving dance.mp4

The denoising UNet is trained; its teacher, a frozen copy of it, is held in bfloat16. A LoRA needs neither copy nor
moments of the weights, and is sampled with beside its base (docs/training.md):

    --lora.rank 64 --lora.target-modules 'denoising_unet\\..*(to_(q|k|v|out\\.0)|ff\\.net\\.(0\\.proj|2))' \\
        --optim.learning-rate 1e-4
"""

from animate_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="distill",
        output="runs/distill",
        init="moore",
        preset="moore",
        trainable=r"denoising_unet\.",
        frozen_bf16=r".*",
        steps=4000,
        data=DataConfig(batch=4, frames=24, consecutive=True, num_workers=8),
        optim=OptimConfig(learning_rate=8e-6, warmup=100, weight_decay=0.0, ema=0.95),
        compute_dtype="bfloat16",
        remat="blocks",
        save_every=500,
    )
