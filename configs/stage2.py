"""Stage 2 of the paper: clips of 24 frames; only the temporal layers learn (Hu et al. 2023, section 4.1: 10,000 steps,
batch 4, learning rate 1e-5), from stage 1's weights and AnimateDiff's temporal layers.

    python train.py configs/stage2.py --init runs/stage1 --data.root gs://bucket/clips --mesh.frames 4 --mesh.fsdp 4
    python train.py configs/stage2.py --plan v5e:4x4 --mesh.frames 4 --mesh.fsdp 4

453 M parameters are trained. With `--mesh.frames` several chips share a clip. No spatial weight changes by a bit;
`--frozen-bf16 '(?!.*motion_modules)'` gives that up and holds all frozen weights in bfloat16, as the peers do.

The paper names no size for this stage; Moore-AnimateAnyone trains at half the area, with its additions:

    --size 512 512 --preset moore-fixed --loss.weighting min_snr --loss.noise-offset 0.05 --data.stride 4

Hardware: 16 chips of 16 GB (v5e:4x4). Planned (the command above): 14.4 GB per chip, 91 TFLOPs per chip and step, at
least 0.63 s; at 512x512 9.8 GB, 32 TFLOPs, at least 0.29 s. Not yet run at this size.
"""

from animate_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="stage2",
        output="runs/stage2",
        init="runs/stage1",
        preset="paper",
        size=(768, 768),
        trainable=r".*motion_modules",
        frozen_bf16=r"(vae|image_encoder)\.",
        steps=10_000,
        data=DataConfig(batch=4, frames=24, consecutive=True, num_workers=8),
        optim=OptimConfig(learning_rate=1e-5, warmup=0, ema=0.0),
        compute_dtype="bfloat16",
        remat="blocks",
        save_every=500,
    )
