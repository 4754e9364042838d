"""Checks the fields of presets: their types, ranges, and how they fit together."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from animate_jax.config import (
    ImageEncoderConfig,
    Preset,
    SamplingConfig,
    ScheduleConfig,
    UNetConfig,
    VAEConfig,
)

# Name of a field -> its smallest and largest value; other integers are 1 to 65536.
RANGES: dict[str, tuple[float, float]] = {
    "steps_offset": (0, 100), "train_steps": (1, 100_000), "beta_start": (1e-8, 0.999), "beta_end": (1e-8, 0.999),
    "width": (32, 4096), "height": (32, 4096), "overlap": (0, 4096), "window": (1, 4096),
    "motion_max_length": (1, 4096), "layers_per_block": (1, 64), "num_hidden_layers": (1, 256),
    "guidance": (-100, 100), "guidance_rescale": (0, 1), "guidance_interval": (0, 1), "fps": (0.01, 1000),
    "scaling_factor": (1e-4, 1e4), "deepcache_interval": (1, 1000), "deflicker": (0, 255),
}  # fmt: skip


def problem(config: Any) -> tuple[str, Any, str] | None:
    """The first field of a preset or of one of its groups that has another type than annotated, is out of its range, or
    contradicts another field: (dotted path, value, what it must be)."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            if found := problem(value):
                return f"{field.name}.{found[0]}", *found[1:]
        elif rule := field_problem(field.name, value, hint):
            return field.name, value, rule
    return next(((name, getattr(config, name), rule) for name, rule in _contradictions(config)), None)


def field_problem(name: str, value: Any, hint: Any) -> str | None:
    """The rule that a field's value breaks, if any."""
    origin, words = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return None if value in words and isinstance(value, str) else f"one of {', '.join(words)}"
    if origin in (types.UnionType, typing.Union):
        return None if value is None else field_problem(name, value, words[0])
    if origin is tuple:
        any_length = words[-1] is Ellipsis
        if not isinstance(value, tuple) or not (1 <= len(value) <= 64 if any_length else len(value) == len(words)):
            return f"a list of {'1 to 64' if any_length else len(words)}"
        return next(filter(None, (field_problem(name, item, words[0]) for item in value)), None)
    if hint in (bool, str):
        valid = isinstance(value, hint) and (not isinstance(value, str) or 0 < len(value) < 256)
        return None if valid else {bool: "true or false", str: "a name"}[hint]
    low, high = RANGES.get(name, (1, 65536) if hint is int else (-1e9, 1e9))
    number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if number and low <= value <= high:  # false for NaN
        return None
    return f"a {'whole ' if hint is int else ''}number from {low:g} to {high:g}"


def _contradictions(config: Any) -> Iterator[tuple[str, str]]:
    """Fields that contradict others of their group, with what they must be."""
    match config:
        case UNetConfig():
            if len(config.attention_levels) != len(config.block_out_channels):
                yield "attention_levels", "as long as block_out_channels"
            heads = "num_attention_heads", "motion_num_attention_heads"
            for name in ("norm_num_groups", "motion_norm_num_groups", *heads):
                if any(width % getattr(config, name) for width in config.block_out_channels):
                    yield name, f"a divisor of {', '.join(map(str, config.block_out_channels))}"
        case VAEConfig():
            if any(width % config.norm_num_groups for width in config.block_out_channels):
                yield "norm_num_groups", f"a divisor of {', '.join(map(str, config.block_out_channels))}"
        case ImageEncoderConfig():
            if config.hidden_size % config.num_attention_heads:
                yield "num_attention_heads", f"a divisor of {config.hidden_size}"
            if config.patch_size > config.image_size:
                yield "patch_size", f"at most {config.image_size}"
        case ScheduleConfig():
            if config.beta_start > config.beta_end:
                yield "beta_end", f"at least beta_start, {config.beta_start}"
        case SamplingConfig():
            if config.overlap >= config.window:
                yield "overlap", f"less than the window, {config.window}"
            if config.guidance_interval[0] > config.guidance_interval[1]:
                yield "guidance_interval", "ascending"
        case Preset():
            if config.sampling.window > config.model.unet.motion_max_length:
                yield "sampling", f"of windows of at most {config.model.unet.motion_max_length} frames"
            if config.sampling.steps > config.schedule.train_steps:
                yield "sampling", f"of at most {config.schedule.train_steps} steps"
