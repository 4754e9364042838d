"""The training loop: start or resume, step, log, preview, save, stop cleanly. docs/training.md has a shorter one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from animate_jax.config import TrainConfig
from animate_jax.errors import UserError
from animate_jax.models.lora import scale_of
from animate_jax.models.params import Params
from animate_jax.parallel.mesh import make_mesh, to_devices
from animate_jax.storage import Mirror, check_writable, is_remote
from animate_jax.torch_weights.fetching import name_of
from animate_jax.torch_weights.lora import save_lora
from animate_jax.training.checkpoint import RunCheckpoints
from animate_jax.training.goodput import EVENTS
from animate_jax.training.guards import Interrupt, check_memory, run_lock
from animate_jax.training.losses import Loss
from animate_jax.training.metrics import METRICS
from animate_jax.training.progress import reason, say
from animate_jax.training.run_log import RunLog
from animate_jax.training.start import starting_params
from animate_jax.training.state import TrainState, sampling_params, saved_params
from animate_jax.training.step import LossFunction, make_program

Evaluate = Callable[[Params, int], dict[str, float]]  # (weights to sample from, step) -> metrics


def run(
    config: TrainConfig,
    loss: Loss | LossFunction,
    data: Iterator[Any],
    mesh: Mesh | None = None,
    preview: Evaluate | None = None,
    stop: Interrupt | None = None,
    folder: Mirror | None = None,
) -> TrainState:
    """Trains to `config.steps` and returns the last state.

    The weights come from the run's own latest checkpoint (exact resume: parameters, moments, averages, data position),
    else from `config.init` (weights only), else they are fresh. Interrupts (Ctrl-C, SIGTERM, SIGHUP) save before
    leaving; with several processes, all after the same step.

    Args:
        data: batches of NumPy arrays, this process's rows of each (`rows_of_process`); its position is saved and
            restored as that of a grain iterator.
        mesh: default: that of `config.mesh`.
        preview: called every `config.preview.every` steps in all processes, with parameters where training has
            them; it must not keep them.
        stop: tells the caller whether the run was interrupted.
        folder: where process 0 writes all but the checkpoints, which go straight to `config.output`.

    Raises:
        UserError: impossible options; weights to start from that are missing, damaged or of another shape; another
            process trains there; loss or gradient stayed NaN or infinite; too little memory; or a checkpoint cannot be
            written.
    """
    check_options(config)
    mesh = mesh or make_mesh(config.mesh)
    program = make_program(config, loss, mesh)
    check_memory(program.abstract, mesh)
    key = jax.random.key(config.seed)

    with (
        contextlib.nullcontext(folder) if folder else open_folder(config) as folder,
        jax.set_mesh(mesh),
        out_of_memory(),
        run_lock(folder.path) if jax.process_index() == 0 else contextlib.nullcontext(),
        RunLog(config, folder, mesh) as log,
        RunCheckpoints(config) as checkpoints,
        stop or Interrupt() as stop,
    ):
        state = checkpoints.restore(program.abstract, data)
        resumed = state is not None
        if state is None:
            state = program.init(starting_params(config, program.abstract))
        first = step = int(state.step)
        log.begin(first, resumed)
        compiled = None
        early = bool(np.asarray(stop.any_process(mesh))[0])  # before a compilation that may take minutes
        for step in () if early else range(first + 1, config.steps + 1):
            with log.waiting():
                batch = to_devices(next(data), mesh)
            compiled = compiled or log.compile(program.step, state, batch, key)
            requests = stop.any_process(mesh, checkpoints.overdue)
            with log.stepping(step, state):
                state, metrics = compiled(state, batch, key)
            log.add(metrics)

            stopping, overdue = np.asarray(requests).tolist()
            last = stopping or step == config.steps
            save = last or overdue or step % config.save_every == 0
            preview_now = preview if config.preview.every and step % config.preview.every == 0 else None
            if save or preview_now or step % config.log_every == 0:
                means = log.summarize(step, data)
                if save:
                    with log.timed("save", step=step):
                        checkpoints.save(state, data)
                        save_adapter(config, state, folder)
                checkpoints.check(state, data, wait=last)
                if preview_now:
                    with log.timed("preview", step=step):
                        means |= preview_now(sampling_params(state, scale_of(config.lora)), step)
                log.write(step, means)
            if last:
                break
        stop.stopped = step < config.steps
        log.end(step, stop)
    if stop.stopped:
        say(f"stopped after step {step} of {config.steps}; the same command goes on")
    return state


def save_adapter(config: TrainConfig, state: TrainState, folder: Mirror) -> None:
    """Writes the adapter of a LoRA run as diffusers' file, for `animate-jax sample --lora`."""
    if config.lora.rank and config.init and jax.process_index() == 0:
        save_lora(folder.path, saved_params(state), scale_of(config.lora), name_of(config.init))


def open_folder(config: TrainConfig) -> Mirror:
    """The run's folder on this machine: `config.output` itself or, of a bucket, what process 0 uploads there.

    Raises:
        UserError: the bucket cannot be read and written.
    """
    if not is_remote(config.output) or jax.process_index() == 0:
        if is_remote(config.output):
            check_writable(config.output)
        return Mirror(config.output, fetch=(METRICS, EVENTS, "wandb.json"))
    return Mirror(tempfile.mkdtemp(prefix="animate_jax_run_"))


def check_options(config: TrainConfig) -> None:
    """
    Raises:
        UserError: a number that is impossible.
    """
    for option in ("steps", "log_every", "save_every", "keep_last", "accumulate"):
        if getattr(config, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(config, option)}: must be at least 1")
    for option in ("save_minutes", "hang_minutes"):
        if not getattr(config, option) >= 0:
            raise UserError(f"--{option.replace('_', '-')} {getattr(config, option)}: must be at least 0")
    if config.lora.rank and config.stage == "vae":
        raise UserError(f"--lora.rank {config.lora.rank}: adapts the UNets, which training of an autoencoder has not")
    if config.lora.rank and config.init is None:
        raise UserError(f"--lora.rank {config.lora.rank}: adapts a checkpoint: give it with --init")
    if config.stage == "distill" and config.init is None:
        raise UserError("--init: distillation needs the teacher: a checkpoint, or what is fetched, such as moore")
    if not 0 <= config.optim.decay_start <= 1:
        raise UserError(f"--optim.decay-start {config.optim.decay_start}: is a share of all steps, from 0 to 1")


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """
    Raises:
        UserError: a device's memory does not suffice.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of device memory ({reason(error)}): --remat blocks, a larger --accumulate, --mesh.fsdp, or "
            "--optim.moments factored; --plan tells what a TPU step takes"
        ) from error
