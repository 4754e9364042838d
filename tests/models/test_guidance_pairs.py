"""Pairs of rows: in order, of either kind of array, and told from single rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.models.guidance_pairs import is_paired, pair, unpair


@pytest.mark.parametrize("array, kind", [(np.asarray, np.ndarray), (jnp.asarray, jnp.ndarray)])
def test_pairs_lie_side_by_side(array, kind):
    unconditional, conditional = array(np.arange(6.0).reshape(3, 2)), array(10 + np.arange(6.0).reshape(3, 2))
    rows = pair(unconditional, conditional)
    assert isinstance(rows, kind)
    np.testing.assert_array_equal(rows[:, 0], [0, 10, 2, 12, 4, 14])
    for got, expected in zip(unpair(rows), (unconditional, conditional), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert is_paired(rows, conditional) and not is_paired(conditional, conditional)
