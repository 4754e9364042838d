"""A run's checkpoints: everything needed to go on exactly where it stopped, and to sample from it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Awaitable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from animate_jax.config import Preset, TrainConfig, to_dict
from animate_jax.errors import UserError
from animate_jax.training.state import State, sampling_params


class Checkpoints:
    """`<run>/checkpoints/<step>/{params, train, data}`.

    `params` is the whole model as it is sampled from (averaged weights), so a run's directory is also a sampling
    checkpoint; `train` adds what only training needs; `data` is the position of the loader. Saving is asynchronous
    and a step's directory appears only when complete: a process killed at any moment leaves the last one whole.
    Kept are the newest `config.keep` and every multiple of `config.keep_every`.
    """

    def __init__(self, config: TrainConfig, preset: Preset):
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(config.keep)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        directory = pathlib.Path(config.output).absolute() / "checkpoints"
        self._metadata = {"preset": to_dict(preset), "config": to_dict(config)}
        self._orbax = ocp.training.Checkpointer(
            directory,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            custom_metadata=self._metadata,
            cleanup_tmp_directories=True,  # of saves that were killed
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is None or jax.process_count() == 1:
            self._orbax.close()
        # Else the other processes may never come here, and closing waits for them.

    def save(self, state: State, data: Any) -> None:
        """Every process must call it at the same step."""
        step = int(state["step"])
        if self._orbax.latest is not None and self._orbax.latest.step == step:
            return
        items = {"params": sampling_params(state), "train": only_for_training(state), "data": Position(data)}
        # Forced: while the previous save is under way, Orbax would otherwise skip this one without a word.
        self._orbax.save_checkpointables_async(step, items, force=True, custom_metadata=self._metadata)

    def restore(self, state: State, layout: State, data: Any) -> State | None:
        """The latest state in the shapes of `state` and the shardings of `layout`, with the data iterator moved to its
        place; None when the run has no checkpoint yet. Mesh and number of processes may have changed.

        Raises:
            UserError: it is damaged, or the run was started with other trainable parameters or another preset.
        """
        latest = self._orbax.latest
        if latest is None:
            return None
        wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
        items = {"params": sampling_params(wanted), "train": only_for_training(wanted), "data": Position(data)}
        try:
            loaded = self._orbax.load_checkpointables(latest.step, items)
        except Exception as error:  # Orbax raises many kinds; all mean the files are not what they should be
            raise UserError(
                f"{self._orbax.directory / str(latest.step)}: this run cannot go on ({type(error).__name__}): its "
                "checkpoint is damaged, or it was started with other options: choose another --output"
            ) from error
        params = loaded["params"]
        return {
            **loaded["train"],
            "frozen": {path: params[path] for path in state["frozen"]},
            "ema": {path: params[path] for path in state["ema"]},
        }


def only_for_training(state: State) -> State:
    """What `params` does not hold: step, raw trainable weights, moments."""
    return {name: part for name, part in state.items() if name not in ("frozen", "ema")}


class Position:
    """A grain iterator as Orbax saves it (one file per process), restored also when the number of processes changed.

    The processes go in step and the iterator is elastic, so that any one's position is everyone's.
    """

    def __init__(self, data: Any):
        self._data = data

    async def save(self, directory: Any) -> Awaitable[None]:
        return await self._data.save(directory)

    async def load(self, directory: Any) -> Awaitable[None]:
        if (directory / f"process_{jax.process_index()}-of-{jax.process_count()}.json").exists():
            return await self._data.load(directory)
        state = json.loads(next(directory.glob("process_0-of-*.json")).read_text())

        async def move() -> None:
            self._data.set_state(state)

        return move()
