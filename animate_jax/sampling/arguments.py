"""Arguments as Python's users give them: names of other libraries, numbers of NumPy, dtypes, devices, lists."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.config import DType, Switch
from animate_jax.errors import UserError
from animate_jax.sampling.arrays import is_array, is_picture, to_images

T = TypeVar("T")

# What Diffusers and the PyTorch implementations call arguments -> their names here.
ELSEWHERE = {
    "num_inference_steps": "steps", "guidance_scale": "guidance", "cfg": "guidance", "generator": "seed",
    "num_frames": "frames", "video_length": "frames", "context_frames": "window", "context_overlap": "overlap",
    "scheduler": "sampler", "torch_dtype": "dtype", "image": "reference", "ref_image": "reference", "video": "driving",
    "pose_images": "driving",
}  # fmt: skip


def unexpected(name: str, known: Sequence[str]) -> UserError:
    """The error of an argument that there is not, with the one that may be meant."""
    similar = difflib.get_close_matches(name, known, 1)
    if name in ELSEWHERE:
        advice = f"it is called {ELSEWHERE[name]} here"
    elif similar:
        advice = f"did you mean {similar[0]}?"
    else:
        advice = f"choose of {', '.join(word for word in dict.fromkeys(known) if word not in ('self', 'overrides'))}"
    return UserError(f"{name}: there is no such argument: {advice}")


def plain(value: Any, kind: Any) -> Any:
    """NumPy's numbers as Python's, lists as tuples, and True and False as the words of a switch."""
    if kind == Switch and isinstance(value, bool):
        return "auto" if value else "off"
    value = value.item() if isinstance(value, np.generic) else tuple(value) if isinstance(value, list) else value
    return float(value) if kind is float and type(value) is int else value


def dtype_name(dtype: Any) -> DType:
    """Of a name or a dtype of NumPy, JAX or PyTorch.

    Raises:
        UserError: the model cannot be in it.
    """
    try:
        name = "float32" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype).removeprefix("torch.")
    if name not in get_args(DType):
        raise UserError(f"--dtype {name}: choose float32 or bfloat16")
    return name  # pyright: ignore[reportReturnType]  # one of them


def find_device(name: str) -> Any:
    """JAX's device of a name like "cpu" or "cuda:1".

    Raises:
        UserError: there is none.
    """
    kind, _, number = name.partition(":")
    try:
        return jax.devices(kind)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        there = ", ".join(f"{device.platform}:{index}" for index, device in enumerate(jax.devices()))
        raise UserError(f"--device {name}: JAX finds no such device: choose of {there}") from None


def motions_of(driving: Any) -> tuple[list[Any], bool]:
    """The driving motions of an argument, arrays and lists of pictures being one video each, and whether it was a list
    of motions.

    Raises:
        UserError: an array or pictures that are no video.
    """
    several = isinstance(driving, list | tuple) and not (driving and all(map(is_picture, driving)))
    motions = []
    for motion in driving if several else [driving]:
        frames = is_array(motion) or isinstance(motion, list | tuple)
        motions.append(to_images(motion, "the driving frames") if frames else motion)
    return motions, several


def as_list(inputs: T | list[T] | tuple[T, ...]) -> list[T]:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]
