"""Trains a stage:  python train.py configs/tiny_stage1.py [--steps 2000 --optim.learning-rate 1e-4 ...]

A run goes on where it stopped when started again with the same output directory. `--help` after the configuration
lists every option.
"""

import os
import runpy
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import tyro

from animate_jax.config import TrainConfig, presets
from animate_jax.errors import UserError


def main(arguments: list[str]) -> int:
    if not arguments or not arguments[0].endswith(".py"):
        print("usage: python train.py CONFIG.py [options]   (configurations: configs/)", file=sys.stderr)
        return 2
    try:
        if not os.path.isfile(arguments[0]):
            raise UserError(f"{arguments[0]}: no such configuration; see configs/")
        names = runpy.run_path(arguments[0])
        if "get_config" not in names:
            raise UserError(f"{arguments[0]}: has no get_config(); see configs/")
        default = names["get_config"]()
        config = tyro.cli(TrainConfig, default=default, args=arguments[1:], prog=f"train.py {arguments[0]}")
        train(config)
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the last checkpoint is intact", file=sys.stderr)
        return 130
    return 0


def train(config: TrainConfig) -> None:
    from animate_jax.data.pipeline import batches
    from animate_jax.training.loop import run
    from animate_jax.training.step import diffusion_loss, vae_loss

    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/animate_jax/jax"))
    if config.preset not in presets():
        raise UserError(f"--preset {config.preset!r}: choose one of {', '.join(presets())}")
    preset = presets()[config.preset]
    if config.stage == "vae":
        from animate_jax.evaluation import lpips

        weights = lpips.load(config.vae_loss.perceptual_weights)
        loss = vae_loss(config, lambda a, b: lpips.lpips(weights, a, b, stages=4))
    else:
        loss = diffusion_loss(config, preset)
    run(config, preset, loss, batches(config.data, preset, jax.process_index(), jax.process_count()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
