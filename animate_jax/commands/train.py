"""Trains a stage:  animate-jax train tiny_stage1 [--steps 2000 --optim.learning-rate 1e-4 ...]

The configuration is one that ships with the package, or a file of your own that has a `get_config()`. A run goes on
where it stopped when started again with the same output directory. `--help` after the configuration lists every option.
`--plan v5e:4x4` compiles for that TPU instead and prints what training there will take. On several machines the same
command is started on each (`animate_jax/parallel/processes.py`).
"""

import contextlib
import dataclasses
import os
import pathlib
import runpy
import sys

from animate_jax.commands.options import parse
from animate_jax.config import TrainConfig
from animate_jax.errors import UserError, exit_status
from animate_jax.parallel import processes
from animate_jax.presets import preset_of
from animate_jax.storage import keep_compiled_programs

PACKAGE = pathlib.Path(__file__).parents[1]
# In a wheel inside the package, in a clone beside it.
CONFIGS = next(path for path in (PACKAGE / "configs", PACKAGE.parent / "configs") if path.is_dir())


def main(arguments: list[str], program: str = "animate-jax train") -> int:
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["--help"], ["-h"]):
            print(f"{__doc__}\nConfigurations: {', '.join(config_names())}.")
            return 0
        names = ", ".join(config_names())
        print(f"usage: {program} CONFIG [options]   (CONFIG: a file, or one of {names})", file=sys.stderr)
        return 2
    status = exit_status(program, lambda: run_command(program, *arguments), "the last checkpoint is intact")
    return processes.exit_now(status) if status else 0


def config_names() -> list[str]:
    """Names of the package's configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def load_config(name: str) -> TrainConfig:
    """The configuration in a file, or of one that ships with the package by its name.

    Raises:
        UserError: there is none.
    """
    path = CONFIGS / f"{name}.py" if name in config_names() else pathlib.Path(name)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{name}: no such configuration: give a .py file, or one of {', '.join(config_names())}")
    found = runpy.run_path(str(path))
    if "get_config" not in found:
        raise UserError(f"{path}: has no get_config(); copy one of the package's configs/")
    return found["get_config"]()


def run_command(program: str, name: str, *options: str) -> int:
    """Trains, or prints the plan. Returns the exit status."""
    usual = load_config(name)
    config = parse(TrainConfig, options, f"{program} {name}", default=usual)
    preset_of(config)  # refuses an unknown name before anything is read
    named = any(option.partition("=")[0] == "--preset" for option in options)
    if config.plan is not None and config.init == usual.init and not os.path.exists(config.init or ""):
        config = dataclasses.replace(config, init=None)  # a plan for stage 2 can be made before stage 1 has run
    if config.init is not None:
        from animate_jax.torch_weights.fetching import localize

        start = os.fspath(localize(config.init))
        check_start(config.output, start)
        config = dataclasses.replace(config, init=start)
    if config.plan is None:
        with processes.distributed():
            return train(with_carried_preset(config, named))
    else:
        from animate_jax.training.forecast import plan

        print(plan(with_carried_preset(config, named), config.plan), flush=True)
        os._exit(0)  # a thread of the compiler is still running


def check_start(output: str, init: str) -> None:
    """
    Raises:
        UserError: there is no run to go on with and no checkpoint to start from. No folder of a run is made then.
    """
    from animate_jax.checkpoints import checkpoint

    try:
        checkpoint.find(output)
    except UserError:
        checkpoint.find(init)


def with_carried_preset(config: TrainConfig, named: bool) -> TrainConfig:
    """The run with its checkpoint's preset, or that of `config.init`, unless `named`: --preset is on the command line.
    Weights that predict v must continue with v, and the model of AnimateDiff's v1 and v3 is in no named preset."""
    from animate_jax.checkpoints import checkpoint
    from animate_jax.training.progress import say

    # A student carries four steps without guidance, its teacher's own are in `init`.
    paths = (config.init,) if config.stage == "distill" else (config.output, config.init)
    for path in () if named else filter(None, paths):
        try:
            found = checkpoint.find(path)
        except UserError:
            continue  # a new run, or a missing checkpoint, which loading will report
        carried = checkpoint.read_preset(found)
        usual = preset_of(dataclasses.replace(config, prediction=None, zero_terminal_snr=None))
        if path == config.init and (carried.model, carried.schedule) != (usual.model, usual.schedule):
            say(
                f"preset {carried.name} of {path} (predicts {carried.schedule.prediction}), "
                f"not the configuration's {usual.name}: --preset {usual.name} would take that"
            )
        return dataclasses.replace(config, preset=carried)
    return config


def train(config: TrainConfig) -> int:
    """Trains by `training/loop.py`. Returns the exit status: that of a signal, if one ended the run."""
    from animate_jax.data.loader import batches
    from animate_jax.parallel.mesh import make_mesh, rows_of_process
    from animate_jax.training.guards import Interrupt
    from animate_jax.training.loop import open_folder, run
    from animate_jax.training.losses import make_loss
    from animate_jax.training.preview import Preview

    keep_compiled_programs()
    check_data(config)
    loss, mesh = make_loss(config), make_mesh(config.mesh)
    data = batches(config, *rows_of_process(mesh))
    stop = Interrupt()
    with contextlib.closing(data), open_folder(config) as folder:
        preview = Preview(config, folder.path) if config.preview.every else None
        run(config, loss, data, mesh, preview, stop, folder)
    return stop.status


def check_data(config: TrainConfig) -> None:
    """
    Raises:
        UserError: the data are encoded frames, which do not fit this run.
    """
    if config.data.root is None:
        return
    from animate_jax.data.latents import encoding_of
    from animate_jax.training.encoding import check_encoded

    if encoding := encoding_of(config.data.root, config.data.split):
        check_encoded(config, encoding)
