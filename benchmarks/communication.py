"""What a training step sends when weights are gathered once or layer by layer, by the TPU compiler; no TPU needed.

    JAX_PLATFORMS=cpu python benchmarks/communication.py --topology v5e:4x4 --mesh.gather layer --accumulate 4

A model of the same classes that is compiled in minutes: two levels, 215 M parameters, stage 1 at 128x128, one clip
per chip and micro-batch. Needs `pip install -e ".[tpu]"`. Prints the plan.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
import sys
from pathlib import Path

import tyro

from animate_jax.config import (
    DType,
    FrameConfig,
    ImageEncoderConfig,
    MeshConfig,
    ModelConfig,
    PoseGuiderConfig,
    Preset,
    SamplingConfig,
    ScheduleConfig,
    UNetConfig,
    VAEConfig,
)
from animate_jax.parallel.forecast import topology_devices
from animate_jax.training.forecast import plan

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(
    unet=UNetConfig(block_out_channels=(320, 640), attention_levels=(True, True), layers_per_block=1),
    vae=VAEConfig(block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0),
    image_encoder=ImageEncoderConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ),
    pose_guider=PoseGuiderConfig(block_out_channels=(4, 4, 8), conditioning_channels=320),
)
PRESET = Preset("communication", MODEL, ScheduleConfig(), FrameConfig(128, 128), SamplingConfig())


@dataclasses.dataclass(frozen=True)
class Arguments:
    topology: str = "v5e:4x4"
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(fsdp=16))
    accumulate: int = 4
    gradient_dtype: DType = "float32"


def main(args: Arguments) -> None:
    clips = len(topology_devices(args.topology)) // args.mesh.frames * args.accumulate
    stage1 = runpy.run_path(str(ROOT / "configs" / "stage1.py"))["get_config"]()
    config = dataclasses.replace(
        stage1,
        preset=PRESET,
        size=None,
        data=dataclasses.replace(stage1.data, batch=clips),
        mesh=args.mesh,
        accumulate=args.accumulate,
        optim=dataclasses.replace(stage1.optim, gradient_dtype=args.gradient_dtype),
    )
    print(plan(config, args.topology))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
    sys.stdout.flush()
    os._exit(0)  # the compiler still works in a thread
