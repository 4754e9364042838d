"""A tensor in a file: its offset, dtype and shape. It is read when it is used, and not cached."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from animate_jax import limits
from animate_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """`np.asarray(tensor)` reads it. Reading rather than mapping keeps a file of many gigabytes out of memory."""

    path: pathlib.Path
    offset: int  # bytes from the beginning of the file to the first element
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None  # elements; None is C-contiguous

    def squeeze(self, rank: int) -> Tensor:
        """Without its last axes, all of length 1: a 1x1 convolution as a linear layer."""
        return dataclasses.replace(
            self, shape=self.shape[:rank], strides=None if self.strides is None else self.strides[:rank]
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.strides is None or not math.prod(self.shape):
            count = math.prod(self.shape)
        else:
            count = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        data = np.fromfile(self.path, np.uint8, count * self.dtype.itemsize, offset=self.offset)
        if len(data) != count * self.dtype.itemsize:
            raise UserError(f"{self.path}: ends too early; it is truncated: take a whole copy")
        array = data.view(self.dtype)
        if self.strides is None or not math.prod(self.shape):
            array = array.reshape(self.shape)
        else:
            steps = tuple(stride * self.dtype.itemsize for stride in self.strides)
            array = np.lib.stride_tricks.as_strided(array, self.shape, steps)
        return array if dtype is None else array.astype(dtype, copy=False)


StateDict: TypeAlias = Mapping[str, Tensor | np.ndarray]  # torch keys -> arrays in torch's layout


def checked_tensor(
    path: pathlib.Path, dtype: np.dtype, begin: int, size: int, shape: Any, strides: Any = None, first: Any = (0,)
) -> Tensor:
    """A tensor as a file describes it, with everything checked.

    Args:
        begin, size: the bytes of the file that it must lie in, and all of them if it has no strides.
        shape, strides: a list or a tuple of elements.
        first: offsets of the first element from `begin`, in elements, which are added up.

    Raises:
        ValueError: an impossible shape, or one that exceeds those bytes.
    """
    numbers = (*shape, *(strides or ()), *first)
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or len(shape) > limits.TENSOR_DIMENSIONS:
        raise ValueError("a tensor of an impossible shape")
    count = reach = math.prod(shape)
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 1 << 62:
        raise ValueError("a tensor of an impossible shape")
    if strides is None and count * dtype.itemsize != size:
        raise ValueError("a tensor has more or fewer bytes than its shape wants")
    if strides is not None:
        if len(strides) != len(shape):
            raise ValueError("a tensor of an impossible shape")
        if count:
            reach = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count and (sum(first) + reach) * dtype.itemsize > size:
        raise ValueError("a tensor reaches beyond its storage")
    offset = begin + sum(first) * dtype.itemsize
    return Tensor(path, offset, dtype, tuple(shape), None if strides is None else tuple(strides))
