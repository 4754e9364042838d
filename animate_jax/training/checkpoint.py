"""A run's checkpoints: everything needed to go on exactly where it stopped, and to sample from it."""

from __future__ import annotations

import pathlib
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
    and a step's directory appears only when complete.
    """

    def __init__(self, config: TrainConfig, preset: Preset):
        keep = ocp.training.preservation_policies.LatestN(config.keep)
        directory = pathlib.Path(config.output).absolute() / "checkpoints"
        self._metadata = {"preset": to_dict(preset), "config": to_dict(config)}
        self._orbax = ocp.training.Checkpointer(directory, preservation_policy=keep, custom_metadata=self._metadata)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._orbax.close()

    def save(self, state: State, data: Any) -> None:
        step = int(state["step"])
        if self._orbax.latest is not None and self._orbax.latest.step == step:
            return
        train = {"step": state["step"], "trainable": state["trainable"], "opt": state["opt"]}
        items = {"params": sampling_params(state), "train": train, "data": data}
        # Forced: while the previous save is under way, Orbax would otherwise skip this one without a word.
        self._orbax.save_checkpointables_async(step, items, force=True, custom_metadata=self._metadata)

    def restore(self, state: State, layout: State, data: Any) -> State | None:
        """The latest state in the shapes of `state` and the shardings of `layout`, with the data iterator moved to its
        place; None when the run has no checkpoint yet.

        Raises:
            UserError: it is damaged, or the run was started with other trainable parameters or another preset.
        """
        latest = self._orbax.latest
        if latest is None:
            return None
        wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
        train = {"step": wanted["step"], "trainable": wanted["trainable"], "opt": wanted["opt"]}
        items = {"params": sampling_params(wanted), "train": train, "data": data}
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
