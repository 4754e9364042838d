"""The weights that a run starts from."""

from __future__ import annotations

from collections.abc import Collection

import jax

from animate_jax.checkpoints import checkpoint
from animate_jax.config import TrainConfig
from animate_jax.models.lora import is_adapter
from animate_jax.models.params import Params, init_params
from animate_jax.presets import preset_of
from animate_jax.training.progress import say
from animate_jax.training.state import TrainState, split_teacher

STARTS_AS_IDENTITY = ("pose_guider", "reference_pose_guider", "motion_module", "appearance")


def starting_params(config: TrainConfig, abstract: TrainState) -> Params:
    """The parameters of `config.init`, or fresh ones, with the shardings of `abstract`.

    Parts of the model that start as identity, their last layer being zero, may be missing in `init` and start fresh, if
    they are trained or the stage does not use them: stage 1 can begin with Stable Diffusion and CLIP alone, as in the
    paper.

    Raises:
        UserError: the checkpoint is missing, of another shape, or lacks a part that is needed.
    """
    leaves, _ = split_teacher({**abstract.frozen, **abstract.trainable})
    shardings = {path: leaf.sharding for path, leaf in leaves.items() if not is_adapter(path)}

    def fresh(paths: Collection[str] | None = None) -> Params:
        arrays = jax.device_get(init_params(preset_of(config).model, config.seed, *([paths] if paths else [])))
        return {  # the same in every process
            path: jax.make_array_from_callback(array.shape, shardings[path], array.__getitem__)
            for path, array in arrays.items()
        }

    if config.init is None:
        return fresh()
    unused = {"stage1": {"motion_module"}, "vae": set(STARTS_AS_IDENTITY)}.get(config.stage, set())
    trained = set(map(checkpoint.part_of, abstract.trainable.keys() & shardings.keys()))
    optional = [part for part in STARTS_AS_IDENTITY if part in unused | trained and config.stage != "distill"]
    say(f"loading {config.init}")
    params = checkpoint.load(config.init, preset_of(config), shardings=shardings, optional=optional)[0]
    if lacking := shardings.keys() - params.keys():
        parts = checkpoint.missing_parts(params, shardings)
        say(f"{config.init}: has no {', '.join(parts)}: starting fresh, as identity")
        params |= fresh(sorted(lacking))
    return params
