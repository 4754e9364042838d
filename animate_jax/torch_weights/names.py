"""Torch keys and parameter paths, which differ in the last word and in the axes of kernels only.

torch  down_blocks.0.attentions.0.proj_in.weight  [out, in, height, width] or [out, in]
ours   down_blocks.0.attentions.0.proj_in.kernel  [height, width, in, out] or [in, out]
"""

from __future__ import annotations

import re

import numpy as np

# Buffers of some files, which are computed here.
BUFFERS = r"(?:\.|^)(?:pos_encoder\.pe|position_ids)$"
# In a Stable Diffusion UNet, but not in ReferenceNet.
HEAD = r"^(?:conv_norm_out|conv_out)\."

_OLD_VAE_ATTENTION = re.compile(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
_NEW_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def torch_key(path: str) -> str:
    """The torch key of a parameter path; direct parameters, as CLIP's `class_embedding`, keep their name."""
    module, _, leaf = path.rpartition(".")
    return f"{module}.weight" if leaf in ("kernel", "scale", "embedding") else path


def current_key(key: str) -> str:
    """A torch key as current diffusers writes it (it renamed the VAE's attention)."""
    return _OLD_VAE_ATTENTION.sub(lambda match: _NEW_VAE_ATTENTION[match[0]], key)


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a torch file of a parameter with our `shape`."""
    return tuple(shape[axis] for axis in _torch_axes(path, len(shape)))


def to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """A view of our array in torch's layout."""
    return array.transpose(_torch_axes(path, array.ndim))


def from_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch_layout`, also a view."""
    return array.transpose(np.argsort(_torch_axes(path, array.ndim)))


def _torch_axes(path: str, rank: int) -> tuple[int, ...]:
    axes = tuple(range(rank))
    return (rank - 1, rank - 2, *axes[:-2]) if path.endswith("kernel") else axes
