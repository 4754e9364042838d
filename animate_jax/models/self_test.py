"""Compares a device's results with NumPy's: some releases of JAX silently compute wrongly on some devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from animate_jax.models.attention import attend

HEADS = 2
# Relative to the largest expected value: rounding of the inputs, of sums of up to a thousand products, and of results.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}


class Case(NamedTuple):
    name: str
    compute: Callable[..., Array]
    inputs: tuple[np.ndarray, ...]
    expected: Float[np.ndarray, "..."]
    tolerance: float  # relative to the largest expected value


class WrongResult(NamedTuple):
    name: str
    expected: float
    actual: float  # at the largest error, or not a number


def wrong_results(device: jax.Device) -> Iterator[WrongResult]:  # pyright: ignore[reportInvalidTypeForm]  # jax.Device is untyped
    """What one device computes wrongly, eagerly or under jit.

    Raises:
        jax.errors.JaxRuntimeError: it cannot compute at all.
    """
    tests = cases()
    inputs = [jax.device_put(case.inputs, device) for case in tests]

    def compute(inputs):
        return [case.compute(*arrays) for case, arrays in zip(tests, inputs, strict=True)]

    # At their default precision TPUs and GPUs round the inputs of products.
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        for suffix, results in (("", compute(inputs)), (" compiled", jax.jit(compute)(inputs))):
            for case, result in zip(tests, results, strict=True):
                actual = np.asarray(result, np.float64)
                error = np.abs(actual - case.expected)
                if not (error <= case.tolerance * np.abs(case.expected).max()).all():  # also true for NaN
                    worst = np.nanargmax(np.where(np.isnan(error), np.inf, error))
                    yield WrongResult(case.name + suffix, float(case.expected.flat[worst]), float(actual.flat[worst]))


def cases() -> list[Case]:
    """Small programs, and NumPy's results in float64."""
    row = np.arange(32769, dtype=np.float32)
    points = np.stack((row, 0 * row, 0 * row), axis=1)
    result = [
        # jax-ml/jax#39103: only wrong where the matrix is a constant of the program.
        Case("sums of squares", _squares, (points,), row.astype(np.float64) ** 2, 1e-6),
        # jax-ml/jax#40633
        Case("sqrt(512)", lambda: jnp.sqrt(512.0), (), np.sqrt(np.array(512.0)), 1e-6),
        Case("ones(4) + 1", lambda: jnp.ones(4) + 1, (), np.full(4, 2.0), 1e-6),
        # Five standard errors of the mean.
        Case("normal numbers", _moments, (), np.array([0.0, 1.0]), 0.02),
    ]
    for dtype, tolerance in TOLERANCE.items():
        for name, compute, reference, shapes in (
            ("matrix product", jnp.matmul, np.matmul, [(256, 256), (256, 256)]),
            ("convolution", _convolution, _convolution_in_numpy, [(2, 16, 16, 32), (3, 3, 32, 32)]),
            ("attention", lambda q, k, v: attend(q, k, v, HEADS), _attention_in_numpy, [(1, 256, HEADS * 64)] * 3),
        ):
            rng = np.random.default_rng(0)
            arrays = tuple(rng.standard_normal(shape).astype(jnp.dtype(dtype)) for shape in shapes)
            expected = reference(*(array.astype(np.float64) for array in arrays))
            # The attention kernel on TPUs rounds the inputs of its products.
            loose = name == "attention" and jax.default_backend() == "tpu"
            result.append(Case(f"{name} in {dtype}", compute, arrays, expected, 0.02 if loose else tolerance))
    return result


def _squares(points: Float[Array, "n 3"]) -> Float[Array, " n"]:
    matrix = jnp.asarray(np.eye(3, dtype=np.float32))
    return jax.vmap(lambda point: jnp.sum((matrix @ point) ** 2))(points)


def _moments() -> Float[Array, "2"]:
    samples = jax.random.normal(jax.random.key(0), (65536,))
    return jnp.stack([samples.mean(), samples.std()])


def _convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolution_in_numpy(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = itertools.product(range(3), range(3))
    return np.sum([x[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in taps], axis=0)


def _attention_in_numpy(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    results = []
    for q, k, v in zip(*(np.split(x, HEADS, axis=-1) for x in (query, key, value)), strict=True):
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        results.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.concatenate(results, axis=-1)
