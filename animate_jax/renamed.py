"""Names of earlier releases; the rest of the package knows the current ones only.

Command lines accept the old flags for one release. Presets and options that checkpoints and runs have stored under old
names stay readable.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from animate_jax.config import FrameConfig

# Options of a training run as dotted paths, old -> new.
TRAIN_OPTIONS = {
    "freeze": "frozen",
    "half": "frozen_bf16",
    "keep": "keep_last",
    "data.span": "data.clip_frames",
    "data.margin": "data.min_reference_distance",
    "data.workers": "data.num_workers",
    "loss.person": "loss.person_weight",
    "loss.flicker": "loss.flicker_weight",
    "loss.perceptual": "loss.perceptual_weight",
    "loss.pixels": "loss.pixels_weight",
    "vae_loss.mse": "vae_loss.mse_weight",
    "vae_loss.perceptual": "vae_loss.perceptual_weight",
    "vae_loss.kl": "vae_loss.kl_weight",
}
# Command -> old flag -> new flag.
FLAGS = {
    "train": {f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in TRAIN_OPTIONS.items()},
    "weights": {"--motion": "--motion-module"},
    "sample": {"--no-retarget": "--align=none", "--retarget": "--align=bones"},
    "web": {"--waiting": "--queue-size"},
}
SAMPLING_FIELDS = {"reuse": "deepcache_interval"}  # of a preset


def current_flags(command: str, arguments: list[str]) -> list[str]:
    """A command's arguments with old flags replaced."""
    flags = FLAGS.get(command, {})
    current = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        current.append(flags.get(flag.replace("_", "-"), flag) + equals + value)
    return current


def current_preset(values: Any) -> Any:
    """A stored preset's fields in the current layout. Those of `frames` were among those of `sampling` once."""
    if not isinstance(values, dict) or not isinstance(values.get("sampling"), dict):
        return values
    sampling = {SAMPLING_FIELDS.get(name, name): value for name, value in values["sampling"].items()}
    if sampling.get("blend") == "centre":
        sampling["blend"] = "center"
    if "frames" in values:
        return {**values, "sampling": sampling}
    names = {field.name for field in dataclasses.fields(FrameConfig)}
    frames = {name: sampling.pop(name) for name in names & sampling.keys()}
    return {**values, "frames": frames, "sampling": sampling}


def current_options(options: dict[str, Any]) -> dict[str, Any]:
    """A training run's stored options, dotted path -> value, under their current names."""
    return {TRAIN_OPTIONS.get(path, path): value for path, value in options.items()}
