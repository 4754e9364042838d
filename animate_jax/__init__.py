"""Animate Anyone in JAX: one picture and a driving motion become a video of that character moving."""

import importlib

from animate_jax.xla_flags import avoid_wrong_fusions

__version__ = "0.1.0"
avoid_wrong_fusions()

# Public names, imported when they are asked for: `animate-jax --version` needs no JAX.
_PUBLIC = {
    "Pipeline": "animate_jax.sampling.pipeline",
    "Animation": "animate_jax.sampling.results",
    "AnimationStream": "animate_jax.sampling.results",
    "DrivingMotion": "animate_jax.sampling.inputs",
    "Keypoints": "animate_jax.pose.keypoints",
    "DWPose": "animate_jax.pose.dwpose",
    "find_preset": "animate_jax.presets",
    "UserError": "animate_jax.errors",
    "read_poses": "animate_jax.pose.files",
    "write_poses": "animate_jax.pose.files",
}


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'animate_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
