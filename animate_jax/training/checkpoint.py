"""A run's checkpoints: everything needed to go on exactly where it stopped, and to sample from it."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from animate_jax.config import Preset, TrainConfig, to_dict
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
        metadata = {"preset": to_dict(preset), "config": to_dict(config)}
        self._metadata = metadata
        self._orbax = ocp.training.Checkpointer(directory, preservation_policy=keep, custom_metadata=metadata)

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
        self._orbax.save_checkpointables_async(step, items, custom_metadata=self._metadata)

    def restore(self, state: State, data: Any) -> State | None:
        """The latest state in the shapes and shardings of `state`, with the data iterator moved to its place;
        None when the run has no checkpoint yet."""
        if self._orbax.latest is None:
            return None
        abstract = lambda tree: jax.tree.map(  # noqa: E731
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
        wanted = {"step": state["step"], "trainable": state["trainable"], "opt": state["opt"]}
        items = {"params": abstract(sampling_params(state)), "train": abstract(wanted), "data": data}
        loaded = self._orbax.load_checkpointables(self._orbax.latest.step, items)
        params = loaded["params"]
        return {
            **loaded["train"],
            "frozen": {path: params[path] for path in state["frozen"]},
            "ema": {path: params[path] for path in state["ema"]},
        }
