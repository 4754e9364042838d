"""A run's checkpoints: everything that is needed to go on exactly where it stopped, and to sample from it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Awaitable
from concurrent import futures
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from animate_jax.checkpoints.checkpoint import checksums, damaged_arrays, find, is_whole, stored_checksums
from animate_jax.config import TrainConfig, to_dict
from animate_jax.errors import TRACEBACK, UserError
from animate_jax.models.params import Params
from animate_jax.presets import preset_of
from animate_jax.storage import to_path
from animate_jax.training.options import differences
from animate_jax.training.progress import reason, say
from animate_jax.training.start import starting_params
from animate_jax.training.state import TEACHER, TrainState, saved_params

if not os.environ.get(TRACEBACK):
    for _library in ("absl", "asyncio"):  # they tell errors that are told here, at a hundred lines each
        logging.getLogger(_library).setLevel(logging.CRITICAL)


class RunCheckpoints:
    """`<run>/checkpoints/<step>/{params, train, data}`.

    `params` is the whole model as it is sampled from (averaged weights), so a run's directory is also a sampling
    checkpoint; of a LoRA run it is the adapter alone, and the metadata name its base. `train` adds what only training
    needs; `data` is the position of the loader. Saving is asynchronous and a step's directory appears only when
    complete: a process killed at any moment leaves the last one whole.
    The newest `config.keep_last` and every multiple of `config.keep_every` are kept.
    """

    def __init__(self, config: TrainConfig):
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        self._keep: Any = policies.AnyPreservationPolicy(keep)
        self._directory = to_path(config.output) / "checkpoints"
        self._allow_changes = config.allow_changes
        self._config = config
        self._metadata: dict[str, Any] = {"preset": to_dict(preset_of(config)), "config": to_dict(config)}
        if has_base(config):
            self._metadata["base"] = base_of(config)
        self._waiter = futures.ThreadPoolExecutor(1)
        self._saving: futures.Future | None = None  # the save under way
        self._failed = False  # the save before
        self._seconds, self._saved = 60 * config.save_minutes, time.monotonic()
        self._orbax = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            os.fspath(self._directory),
            preservation_policy=self._keep,
            cleanup_tmp_directories=True,  # of saves that were killed
        )

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # After a failure of one process, closing could wait for the others for ever; and its own errors would hide the
        # one that is being raised.
        if kind is None:
            self._orbax.close()
        elif jax.process_count() == 1:
            with contextlib.suppress(Exception):
                self._orbax.close()
        self._waiter.shutdown(wait=False)

    @property
    def overdue(self) -> bool:
        """Whether the last save, or the start, is longer ago than `config.save_minutes`."""
        return bool(self._seconds) and time.monotonic() - self._saved > self._seconds

    def save(self, state: TrainState, data: Any) -> None:
        """Begins to save; `check` tells whether it succeeded. Every process must call it at the same step.

        Args:
            data: an iterator whose position is saved, see `IteratorCheckpoint`.

        Raises:
            UserError: the save before failed twice.
        """
        self.check(state, data, wait=True)
        self._saved, step = time.monotonic(), int(state.step)
        if self._orbax.latest is not None and self._orbax.latest.step == step:
            return
        items = {"params": saved_params(state), "train": training_only(state), "data": IteratorCheckpoint(data)}
        metadata: Any = self._metadata
        if jax.process_count() == 1:  # of several, none has whole arrays
            metadata = metadata | {"checksums": checksums(items["params"])}
        try:
            # Forced: while the previous save is under way, Orbax would otherwise skip this one silently.
            saved = self._orbax.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)
            assert saved is not None  # as it is forced
            self._saving = self._waiter.submit(saved.result)
        except Exception as error:
            self._saving = futures.Future()
            self._saving.set_exception(error)

    def check(self, state: TrainState, data: Any, wait: bool = False) -> None:
        """Checks whether the last save has failed by now, or at its end with `wait`. A single process then saves this
        state instead, once.

        Raises:
            UserError: it has failed for the second time, or among several processes.
        """
        if self._saving is None or not (wait or self._saving.done()):
            return
        error, self._saving = self._saving.exception(), None
        if error is None:
            self._failed = False
        elif self._failed or jax.process_count() > 1:
            raise UserError(
                f"{self._directory}: no checkpoint can be written ({reason(error)}): make room or mend the storage; "
                "then the same command goes on from the last complete one"
            ) from error
        else:
            say(f"{self._directory}: a checkpoint could not be written ({reason(error)}): trying again")
            self._failed = True
            with contextlib.suppress(Exception):
                self._orbax.close()  # it would report the same error for ever
            self._orbax = self._open()
            self.save(state, data)
            self.check(state, data, wait)

    def _changes(self, path: Any) -> list[str]:
        """What differs from the options that a checkpoint was made with, as far as they are known."""
        try:
            stored = json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
            return differences(stored, self._metadata)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return []  # restoring will say what is wrong with it

    def restore(self, abstract: TrainState, data: Any) -> TrainState | None:
        """The latest state, and `data` moved to its position; None when the run has no checkpoint yet. Mesh and number
        of processes may have changed.

        Args:
            abstract: shapes, dtypes and shardings.

        Raises:
            UserError: the run was started with other options that decide the result; or it cannot be read.
        """
        latest = self._orbax.latest
        if latest is None:
            return None
        directory = self._directory
        changes = self._changes(directory / str(latest.step))
        if changes and not self._allow_changes:
            raise UserError(
                f"{directory.parent}: was started with other options: {'; '.join(changes)}: give the old ones again, "
                "or --allow-changes to go on with the new ones, or another --output"
            )
        if changes:
            say(f"goes on with other options than before: {'; '.join(changes)}")
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), abstract)
        items = {"params": saved_params(wanted), "train": training_only(wanted), "data": IteratorCheckpoint(data)}
        try:
            loaded = self._orbax.load_checkpointables(latest.step, items)
            if jax.process_count() == 1 and not changes:  # changed options may be other dtypes
                if wrong := damaged_arrays(stored_checksums(directory / str(latest.step)), loaded["params"]):
                    raise ValueError(f"{len(wrong)} arrays are not what was saved, first {wrong[0]!r}")
        except UserError:
            raise
        except Exception as error:  # Orbax raises many kinds
            where = f"{directory / str(latest.step)}: cannot be restored ({reason(error)})"
            if changes:
                raise UserError(
                    f"{where}: its moments do not fit these changes; start a new run from its weights: "
                    f"--init {directory.parent} --output NEW"
                ) from error
            before = [each.step for each in reversed(self._orbax.checkpoints[:-1])]
            whole = next((step for step in before if is_whole(directory / str(step))), None)
            other = "to start again" if whole is None else f"to go on from step {whole}, which is whole"
            if before[:1] != [whole]:
                other = f"and all later than step {whole or 0} {other}"
            raise UserError(
                f"{where}: if the storage was at fault, the same command tries again; if the files are damaged, "
                f"move this folder away {other}"
            ) from error
        params, base = loaded["params"], self._base(abstract) if has_base(self._config) else {}
        return TrainState(
            **loaded["train"],
            frozen=base | {path: params[path] for path in abstract.frozen.keys() - base.keys()},
            ema={path: params[path] for path in abstract.ema},
        )

    def _base(self, abstract: TrainState) -> Params:
        """The weights that a LoRA is beside, or a student's teacher, as a new run has them."""
        start = starting_params(self._config, abstract)
        return {
            path: jax.device_put(start[name].astype(leaf.dtype), leaf.sharding)
            for path, leaf in abstract.frozen.items()
            if (name := path.removeprefix(TEACHER)) in start and (self._config.lora.rank or name != path)
        }


def has_base(config: TrainConfig) -> bool:
    """Whether a run needs the weights it began with when it goes on: a LoRA's base, or a student's teacher."""
    return config.lora.rank > 0 or config.stage == "distill"


def base_of(config: TrainConfig) -> dict[str, Any]:
    """Which weights those are: their place, and a number that tells others from them.

    Raises:
        UserError: they cannot be read.
    """
    assert config.init is not None
    sums = stored_checksums(find(config.init))
    return {"checkpoint": config.init, "checksum": sums and zlib.crc32(json.dumps(sorted(sums.items())).encode())}


def training_only(state: TrainState) -> dict[str, Any]:
    """What `saved_params` does not hold: step, raw trainable weights, moments."""
    return {"step": state.step, "trainable": state.trainable, "opt": state.opt}


class IteratorCheckpoint:
    """The position of a grain iterator, which Orbax saves in one file per process. If the number of processes changes,
    all restore the position of the first, which is exact for iterators whose processes have the same positions.

    Args:
        data: has the methods `save` and `load` of grain's iterators, and `set_state`.
    """

    def __init__(self, data: Any):
        self._data = data

    async def save(self, directory: Any) -> Awaitable[None]:
        return await self._data.save(directory)

    async def load(self, directory: Any) -> Awaitable[None]:
        if (directory / f"process_{jax.process_index()}-of-{jax.process_count()}.json").exists():
            return await self._data.load(directory)
        state = json.loads(next(directory.glob("process_0-of-*.json")).read_text())

        async def set_state() -> None:
            self._data.set_state(state)

        return set_state()
