"""The training loop: start or resume, step, log, preview, save, stop cleanly."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from animate_jax.checkpoints import checkpoint
from animate_jax.config import TrainConfig, to_dict
from animate_jax.errors import UserError
from animate_jax.models.params import Params, init_params
from animate_jax.parallel.mesh import compiler_options, make_mesh, to_devices
from animate_jax.parallel.rules import shardings
from animate_jax.presets import preset_of
from animate_jax.storage import Mirror, check_writable, is_remote
from animate_jax.training.checkpoint import Checkpoints
from animate_jax.training.goodput import EVENTS, Events
from animate_jax.training.guards import Interrupt, Watchdog, alone, check_memory, memory_used
from animate_jax.training.losses import Loss
from animate_jax.training.metrics import METRICS, Clock, MetricWriter, Profile
from animate_jax.training.optimizer import learning_rate
from animate_jax.training.program import LossFunction, make_program
from animate_jax.training.progress import Progress, reason, say
from animate_jax.training.state import State, sampling_params

STARTS_AS_IDENTITY = ("pose_guider", "reference_pose_guider", "motion_module", "appearance")

Evaluate = Callable[[Params, int], dict[str, float]]  # (weights to sample from, step) -> metrics


def run(
    config: TrainConfig,
    loss: Loss | LossFunction,
    data: Iterator[Any],
    mesh: Mesh | None = None,
    preview: Evaluate | None = None,
    stop: Interrupt | None = None,
    folder: Mirror | None = None,
) -> State:
    """Trains to `config.steps` and returns the last state.

    Where the weights come from, first that exists: the run's own latest checkpoint (exact resume: parameters,
    moments, averages, data position), `config.init` (weights only), fresh ones. Interrupts (Ctrl-C, SIGTERM, SIGHUP)
    save before leaving; with several processes, all after the same step.

    Args:
        data: batches of NumPy arrays, this process's rows of each; Orbax saves and restores its position, as that of
            any grain iterator.
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
    step, initial, shapes, abstract, layout = make_program(config, loss, mesh)
    step_fn = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
    key, rate = jax.random.key(config.seed), learning_rate(config.optim, config.steps)
    lead = jax.process_index() == 0
    check_memory(abstract, layout, mesh)

    with (
        contextlib.nullcontext(folder) if folder else open_folder(config) as folder, jax.set_mesh(mesh),
        out_of_memory(), alone(folder.path) if lead else contextlib.nullcontext(),
        Events(folder.path, lead) as events, Checkpoints(config) as checkpoints, stop or Interrupt() as stop,
        Watchdog(config.hang_minutes) as watchdog,
    ):  # fmt: skip
        began = time.monotonic()
        state = checkpoints.restore(abstract, layout, data)
        kind = "initialise" if state is None else "restore"
        if state is None:
            params = starting_params(config, shardings(shapes, mesh), abstract["trainable"])
            state = jax.jit(initial, out_shardings=layout)(params)
            del params
        first = done = int(state["step"])
        events.add(kind, step=first, seconds=time.monotonic() - began)
        if first:
            say(f"goes on after step {first}")
        clock = Clock(config.data.batch * config.data.frames, mesh.devices.flat[0].device_kind)
        window: list[dict[str, jax.Array]] = []
        skips = Skips(config.output)
        compiled, saved = None, time.monotonic()
        with (
            MetricWriter(folder.path, first, to_dict(config) if config.wandb else None) as writer,
            Profile(folder.path, first, config.profile and lead) as profile,
            Progress(config.stage, first, config.steps) as progress,
        ):
            for done in range(first + 1, config.steps + 1):
                watchdog.arm()
                with clock.waiting():
                    batch = to_devices(next(data), mesh)
                if compiled is None:
                    watchdog.disarm()
                    say("compiling the step, which can take minutes")
                    with events.timed("compile"):
                        compiled = step_fn.lower(state, batch, key).compile(compiler_options(mesh))
                    clock.begin(compiled, state["trainable"], config.accumulate)
                profile.before(done, state)
                due = config.save_minutes and time.monotonic() - saved > 60 * config.save_minutes
                wishes = stop.anyone(mesh, bool(due))
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = compiled(state, batch, key)
                window.append(metrics)
                jax.block_until_ready(window[-2:][0])  # the step before this one, so that the bar tells the truth
                clock.tick()
                progress.step()

                stopping, due = np.asarray(wishes).tolist()
                last = stopping or done == config.steps
                save = last or due or done % config.save_every == 0
                show = preview is not None and config.preview.every and done % config.preview.every == 0
                if save or show or done % config.log_every == 0:
                    means = summarise(window) | clock.rates(len(window)) | memory_used()
                    means["learning_rate"] = float(rate(done - 1))
                    if damaged := len(getattr(data, "damaged", ())):
                        means["damaged_clips"] = damaged
                    events.add("steps", step=done, steps=len(window), seconds=clock.seconds, waited=clock.waited)
                    progress.log(done, means)
                    watchdog.disarm()
                    skips.look(window, done - len(window) + 1)
                    if save:
                        with events.timed("save", step=done):
                            checkpoints.save(state, data)
                        saved = time.monotonic()
                    checkpoints.check(state, data, wait=last)
                    if show:
                        with events.timed("preview", step=done):
                            means |= preview(sampling_params(state), done)
                    writer.write(done, means)
                    if failure := folder.sync():
                        say(f"{failure}; trying again in a minute")
                    window = []
                    clock.restart()
                if last:
                    break
        stop.stopped = done < config.steps
        events.add("stop", step=done, why=f"signal {stop.number}" if stop.stopped else "finished")
    if stop.stopped:
        say(f"stopped after step {done} of {config.steps}; the same command goes on")
    return state


def open_folder(config: TrainConfig) -> Mirror:
    """The run's folder on this machine: `config.output` itself, or what is uploaded there by process 0.

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


def starting_params(config: TrainConfig, layout: Any, trained: Collection[str]) -> Params:
    """The parameters of `config.init`, or fresh ones, where `layout` wants them.

    Parts of the model that start as identity, their last layer being zero, may be missing in `init` and start fresh:
    stage 1 can begin with Stable Diffusion and CLIP alone, as in the paper.

    Args:
        trained: paths of what is trained. A missing part must be among them, unless the stage does not use it.

    Raises:
        UserError: the checkpoint is missing, of another shape, or lacks a part that is needed.
    """

    def fresh(paths: Collection[str] | None = None) -> Params:
        arrays = jax.device_get(init_params(preset_of(config).model, config.seed, *([paths] if paths else [])))
        return {  # the same in every process
            path: jax.make_array_from_callback(array.shape, layout[path], array.__getitem__)
            for path, array in arrays.items()
        }

    if config.init is None:
        return fresh()
    unused = {"stage1": {"motion_module"}, "vae": set(STARTS_AS_IDENTITY)}.get(config.stage, set())
    optional = [part for part in STARTS_AS_IDENTITY if part in unused | set(map(checkpoint.part_of, trained))]
    params = checkpoint.load(config.init, preset_of(config), shardings=layout, optional=optional)[0]
    if lacking := layout.keys() - params.keys():
        parts = checkpoint.missing_parts(params, layout)
        say(f"{config.init}: has no {', '.join(parts)}: starting fresh, as identity")
        params |= fresh(sorted(lacking))
    return params


def summarise(window: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Every metric's mean over the steps that count: not over skipped ones, of which there is the number, nor over
    those that do not have it (NaN, as with noise levels that were not drawn)."""
    values = {name: np.stack([metrics[name] for metrics in jax.device_get(window)]) for name in window[0]}
    skipped = values.pop("skipped", np.zeros(len(window))).astype(bool)
    known = {name: value[~skipped & ~np.isnan(value)] for name, value in values.items()}
    means = {name: float(value.mean()) for name, value in known.items() if len(value)}
    return {"loss": math.nan, "grad_norm": math.nan} | means | {"skipped": float(skipped.sum())}


class Skips:
    """Counts the steps in a row whose update was skipped."""

    MOST = 20

    def __init__(self, output: str):
        self._output, self._row = output, 0

    def look(self, window: list[dict[str, jax.Array]], first: int) -> None:
        """At the metrics of the steps from `first` on.

        Raises:
            UserError: `MOST` steps in a row were skipped: this does not mend itself.
        """
        for step, metrics in enumerate(jax.device_get(window), first):
            self._row = self._row + 1 if metrics["skipped"] else 0
            if self._row >= self.MOST:
                raise UserError(
                    f"{self._output}: loss {metrics['loss']:g}, gradient {metrics['grad_norm']:g} at step {step}: "
                    f"{self._row} steps in a row without an update; the last checkpoint is good: go on from it with "
                    "--allow-changes and another --seed, or a lower --optim.learning-rate"
                )
