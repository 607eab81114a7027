"""A parameter's checksum is the same on the host and on a device, and depends on every value and its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avjax.runs.identity import _checksum, _checksum_on_devices, _checksum_on_host


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@given(shape=st.lists(st.integers(1, 5), max_size=3), seed=st.integers(0, 9))
def test_host_and_device_agree(dtype: str, shape: list[int], seed: int):
    values = jnp.asarray(np.random.default_rng(seed).normal(scale=50, size=shape), dtype)
    assert _checksum_on_host(np.asarray(values)) == np.asarray(_checksum_on_devices(values)).tolist()


def test_every_value_and_place_counts():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    seen = [_checksum(jnp.asarray(values)), _checksum(jnp.asarray(np.flip(values, axis=2)))]
    for place in np.ndindex(values.shape):
        changed = values.copy()
        changed[place] += 0.5
        seen.append(_checksum(jnp.asarray(changed)))
    assert len({tuple(sums) for sums in seen}) == 26


def test_a_large_one_is_computed_where_it_lies(monkeypatch: pytest.MonkeyPatch):
    values = jax.random.normal(jax.random.key(0), (8, 5))
    small = _checksum(values)
    monkeypatch.setattr("avjax.runs.identity.SMALL", 0)
    assert _checksum(values) == small
