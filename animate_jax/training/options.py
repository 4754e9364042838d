"""Which of a run's options may differ when it goes on."""

from __future__ import annotations

import json
from typing import Any

from animate_jax.renamed import current_options, current_preset

# These decide neither the order of the data nor what a step computes. All others are compared.
MAY_CHANGE = (
    "output", "init", "steps", "accumulate", "remat", "lpips_weights", "log_every", "save_every", "save_minutes",
    "keep_last", "keep_every", "hang_minutes", "allow_changes", "plan", "profile", "wandb", "data.num_workers",
    "data.max_bad",
)  # fmt: skip
MAY_CHANGE_GROUPS = ("mesh.", "preview.")
# Compared as part of the preset, which they change.
IN_PRESET = ("preset", "size", "prediction", "zero_terminal_snr")
# What training takes from a preset, and the flag that replaces it.
PRESET_FLAGS = {
    "schedule.prediction": "--prediction",
    "schedule.zero_terminal_snr": "--zero-terminal-snr",
    "frames.width": "--size",
    "frames.height": "--size",
}
PRESET_PARTS = ("model.", "schedule.", "frames.")


def differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two runs' `{"preset": ..., "config": ...}` and decides the result, as "--flag old -> new".

    Options that only one of them has, of an older or newer version of the program, are left out.
    """
    bases = stored.get("base", {}), now.get("base", {})  # of a LoRA
    stored = {**stored, "preset": current_preset(stored["preset"])}
    stored, now = ({part: _flat(values[part]) for part in ("config", "preset")} for values in (stored, now))
    stored["config"] = current_options(stored["config"])
    found = []
    names = stored["preset"].get("name"), now["preset"]["name"]
    for path, old, new in _changed(stored["preset"], now["preset"]):
        if path.startswith(PRESET_PARTS):
            flag = PRESET_FLAGS.get(path, f"--preset {names[0]} -> {names[1]}:" if names[0] != names[1] else "--preset")
            found.append(f"{flag} {'' if path in PRESET_FLAGS else path + ' '}{old} -> {new}")
    for path, old, new in _changed(stored["config"], now["config"]):
        if path not in IN_PRESET + MAY_CHANGE and not path.startswith(MAY_CHANGE_GROUPS):
            found.append(f"--{path.replace('_', '-')} {old} -> {new}")
    if all(values.get("checksum") for values in bases) and bases[0]["checksum"] != bases[1]["checksum"]:
        found.append(f"--init {bases[0].get('checkpoint')} -> other weights, {bases[1].get('checkpoint')}")
    return found


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(path, old[path], value) for path, value in new.items() if path in old and old[path] != value]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value, as JSON gives them back."""
    flat = {}
    for name, value in json.loads(json.dumps(values)).items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
