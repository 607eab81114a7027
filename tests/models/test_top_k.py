"""Against `jax.lax.top_k`, with many equal entries, and rows that are no multiple of a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avjax.models.top_k import top_k


@pytest.mark.parametrize(("size", "k"), [(50, 3), (5120, 5), (5121, 5), (32_000, 5), (9000, 8)])
@pytest.mark.parametrize("levels", [3, 1000, None])
def test_equals_a_full_sort(size: int, k: int, levels: int | None):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, 3, size)) if levels is None else rng.integers(0, levels, (2, 3, size))
    x = jnp.asarray(x, jnp.float32)
    for got, expected in zip(top_k(x, k), jax.lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(got, expected)
