"""Relative changes of any base, and recovery over gaps that differ."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from avjax.statistics import recovery, relative_change

SIZES = st.floats(1e-3, 1e3).flatmap(lambda x: st.sampled_from([x, -x]))


@given(p=st.floats(-1e3, 1e3), p0=SIZES)
def test_a_rise_is_above_zero_whatever_the_base(p: float, p0: float):
    change = float(relative_change(p, p0))
    assert np.sign(change) == np.sign(p - p0)
    assert change == pytest.approx(100 * (p - p0) / abs(p0))
    assert change == pytest.approx(-float(relative_change(-p, -p0)))


def test_the_attributes_say_what_a_change_is_relative_to():
    change = relative_change(xr.DataArray([-1.0, 1e-9]), xr.DataArray([-2.0, 1e-9]))
    assert float(change[0]) == 50.0 and np.isnan(change[1])
    assert change.attrs["base"].startswith("|p0|") and change.attrs["units"] == "percent"


def test_gaps_of_samples():
    patched = xr.DataArray([[0.5, 0.5, 0.5], [1.0, 2.0, np.nan]], dims=("cell", "sample"))
    corrupt, clean = xr.zeros_like(patched[0]), xr.DataArray([1.0, 0.01, 0.2], dims="sample")
    least = xr.DataArray([0.5, 0.05, 0.1], dims="sample")
    result = recovery(patched, corrupt, clean, min_gap=least)
    np.testing.assert_array_equal(result, [[0.5, np.nan, 2.5], [1.0, np.nan, np.nan]])
    assert result.attrs["missing_below_min_gap"] == 2 and result.attrs["min_gap"] == [0.05, 0.5]
    np.testing.assert_array_equal(recovery(patched.values, corrupt.values, clean.values, least.values), result)


@pytest.mark.parametrize("least", [0.05, np.float32(0.05), np.array(0.05), xr.DataArray(0.05)])
def test_one_gap_as_any_number(least):
    patched, corrupt = xr.DataArray([0.1, 0.1]), xr.DataArray([0.0, 0.0])
    result = recovery(patched, corrupt, xr.DataArray([0.04, 0.2]), min_gap=least)
    np.testing.assert_allclose(result, [np.nan, 0.5])
    assert result.attrs["missing_below_min_gap"] == 1 and result.attrs["min_gap"] == pytest.approx(0.05)


@pytest.mark.parametrize("least", [np.array([1.0, 0.0]), np.array([1.0, np.nan]), np.array([])])
def test_gaps_that_guard_nothing(least: np.ndarray):
    with pytest.raises(ValueError, match="min_gap: expected a number above 0"):
        recovery(np.ones(2), np.zeros(2), np.ones(2), min_gap=least)
