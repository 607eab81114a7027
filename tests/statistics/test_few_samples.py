"""Below five samples there are means and no intervals, and the dataset says so."""

import numpy as np
import pytest
import xarray as xr

import avjax
from avjax.intervals import METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_interval(n: int, method):
    values = np.random.default_rng(n).normal(size=(3, n))
    dataset = xr.Dataset({"x": (("cell", "sample"), values), "x_clean": ("sample", values[0])})
    means = avjax.bootstrap(dataset, method=method, adjust="benjamini-hochberg")
    np.testing.assert_allclose(means.x, values.mean(axis=1))
    np.testing.assert_allclose(means.x_change, (values - values[0]).mean(axis=1))
    for name in ("x_low", "x_high", "x_change_low", "x_change_high", "x_change_p", "x_clean_low"):
        assert np.isnan(means[name]).all(), name
    assert (means.x_count == n).all()
    assert means.attrs["no_interval"] == "fewer than 5 samples along sample: x, x_clean, x_change"
    assert means.attrs["interval"].startswith(f"none: {n} samples along sample, at least 5 are needed")
    assert means.attrs["samples"] == n and means.attrs["method"] == method


def test_five_are_enough():
    means = avjax.bootstrap(xr.Dataset({"x": ("sample", np.arange(5.0))}))
    assert float(means.x_low) < 2 < float(means.x_high)
    assert "no_interval" not in means.attrs and means.attrs["interval"].startswith("studentised bootstrap")


def test_what_counts_is_what_is_not_missing():
    values = np.random.default_rng(0).normal(size=(3, 9))
    values[1, :4] = np.nan  # five are left
    values[2, :5] = np.nan  # four
    means = avjax.bootstrap(xr.Dataset({"x": (("cell", "sample"), values), "y": ("sample", values[0])}))
    assert means.x_count.values.tolist() == [9, 5, 4]
    assert np.isnan(means.x_low).values.tolist() == [False, False, True]
    np.testing.assert_allclose(means.x[2], values[2, 5:].mean())
    assert means.attrs["no_interval"] == "fewer than 5 samples along sample: x (1 of 3 cells)"


def test_attributes_name_method_level_and_number():
    dataset = xr.Dataset({"x": ("clip", np.arange(8.0))}, attrs={"model": "tiny"})
    about = avjax.bootstrap(dataset, "clip", level=0.9, draws=50, seed=4).attrs
    assert about["interval"] == "studentised bootstrap over clip, level 0.9, n 8, 50 draws, seed 4"
    assert (about["method"], about["level"], about["samples"], about["model"]) == ("studentised", 0.9, 8, "tiny")
    about = avjax.bootstrap(dataset, "clip", method="student").attrs
    assert about["interval"] == "Student's t over clip, level 0.95, n 8"


def test_the_result_can_be_written(tmp_path):
    dataset = xr.Dataset({"x": ("sample", np.arange(3.0)), "x_clean": ("sample", np.zeros(3)), "x_floor": 0.1})
    means = avjax.bootstrap(dataset, adjust="benjamini-hochberg")
    means.to_netcdf(tmp_path / "means.nc")
    with xr.open_dataset(tmp_path / "means.nc") as read:
        assert read.attrs["no_interval"] == means.attrs["no_interval"]
