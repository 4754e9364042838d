"""Trains a stage:  python train.py configs/tiny_stage1.py [--steps 2000 --optim.learning-rate 1e-4 ...]

A run goes on where it stopped when started again with the same output directory. `--help` after the configuration
lists every option. `--plan v5e:4x4` compiles for that TPU instead and prints what training there will take.
On several machines the same command is started on each (`animate_jax/parallel/processes.py`).
"""

import os
import runpy
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import tyro

from animate_jax.config import Preset, TrainConfig, preset_of, presets
from animate_jax.errors import UserError, exit_status
from animate_jax.parallel import processes


def main(arguments: list[str]) -> int:
    if not arguments or not arguments[0].endswith(".py"):
        print("usage: python train.py CONFIG.py [options]   (configurations: configs/)", file=sys.stderr)
        return 2
    status = exit_status("train.py", lambda: plan_or_train(*arguments), "the last checkpoint is intact")
    return processes.leave(status) if status else 0


def plan_or_train(path: str, *options: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such configuration; see configs/")
    names = runpy.run_path(path)
    if "get_config" not in names:
        raise UserError(f"{path}: has no get_config(); see configs/")
    config = tyro.cli(TrainConfig, default=names["get_config"](), args=options, prog=f"train.py {path}")
    if config.preset not in presets():
        raise UserError(f"--preset {config.preset!r}: choose one of {', '.join(presets())}")
    preset = preset_of(config)
    if config.plan is None:
        with processes.joined():
            train(config, preset)
    else:
        from animate_jax.training.plan import plan

        print(plan(config, preset, config.plan))


def train(config: TrainConfig, preset: Preset) -> None:
    from animate_jax.data.pipeline import batches
    from animate_jax.parallel.mesh import make_mesh, rows_of_process
    from animate_jax.training.loop import run
    from animate_jax.training.preview import Preview
    from animate_jax.training.step import diffusion_loss, vae_loss

    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/animate_jax/jax"))
    if config.stage == "vae":
        from animate_jax.evaluation import lpips

        weights = lpips.load(config.vae_loss.perceptual_weights)
        loss = vae_loss(config, lambda a, b: lpips.lpips(weights, a, b, stages=4))
    else:
        loss = diffusion_loss(config, preset)
    mesh = make_mesh(config.mesh)
    data = batches(config.data, preset, *rows_of_process(mesh))
    preview = Preview(config, preset) if config.preview.every else None
    run(config, preset, loss, data, mesh, preview)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
