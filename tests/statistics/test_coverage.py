"""Intervals hold the true mean as often as they say, wherever samples are enough to say it.

Shares of simulated experiments; the standard error of a share near 95% of 3,000 is 0.4%.
"""

import numpy as np
import pytest
import xarray as xr

import avjax
from sweeps.bench import coverage

EXPERIMENTS, DRAWS, SIZES = 3000, 1000, (5, 10, 20, 50)


def share(values: np.ndarray, mean: float, **options) -> float:
    """Of the intervals of values [experiment, sample], those that hold the mean."""
    means = avjax.bootstrap(xr.Dataset({"x": (("experiment", "sample"), values)}), draws=DRAWS, **options)
    return float(((means.x_low <= mean + 1e-9) & (means.x_high >= mean - 1e-9)).mean())


@pytest.mark.parametrize("n", SIZES)
def test_the_default_covers_93_to_97_percent_of_normal_data(n: int):
    values = np.random.default_rng(n).normal(2.0, 3.0, (EXPERIMENTS, n))
    assert 0.93 < share(values, 2.0) < 0.97
    assert 0.93 < share(values, 2.0, method="student") < 0.97


@pytest.mark.parametrize("n", SIZES)
def test_changes_are_paired(n: int):
    """What runs of a sample share does not count; the interval of the change covers as any other."""
    rng = np.random.default_rng(n)
    clean = rng.normal(0, 30, (EXPERIMENTS, n))
    dims = ("experiment", "sample")
    dataset = xr.Dataset({"x": (dims, clean + rng.normal(1.0, 1.0, clean.shape)), "x_clean": (dims, clean)})
    means = avjax.bootstrap(dataset, draws=DRAWS)
    assert 0.93 < float(((means.x_change_low < 1) & (means.x_change_high > 1)).mean()) < 0.97


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_other_levels(level: float):
    values = np.random.default_rng(1).normal(size=(EXPERIMENTS, 8))
    assert abs(share(values, 0.0, level=level) - level) < 0.025


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_default_is_the_best_on_skewed_data(n: int):
    values = np.random.default_rng(n).lognormal(size=(EXPERIMENTS, n))
    by_method = {m: share(values, float(np.exp(0.5)), method=m) for m in ("studentised", "student", "percentile")}
    assert by_method["studentised"] > 0.87
    assert by_method["studentised"] > by_method["student"] + 0.03 > by_method["percentile"] + 0.03


@pytest.mark.parametrize("p", [0.5, 0.2])
@pytest.mark.parametrize("n", SIZES)
def test_the_default_is_not_worse_on_binary_data(n: int, p: float):
    """Where draws have no spread their pivots are infinite: no bound is, and none is narrower for it."""
    values = (np.random.default_rng(n).random((EXPERIMENTS, n)) < p).astype(float)
    assert share(values, p) > share(values, p, method="student") - 0.01
    means = avjax.bootstrap(xr.Dataset({"x": (("experiment", "sample"), values)}), draws=DRAWS)
    assert np.isfinite(means.x_low).all() and np.isfinite(means.x_high).all()
    assert float(means.x_high.max()) < 3 and float(means.x_low.min()) > -2


def test_percentile_intervals_are_too_narrow_for_few_samples():
    """That is why they are no longer the default."""
    values = np.random.default_rng(0).normal(size=(EXPERIMENTS, 5))
    assert share(values, 0.0, method="percentile") < 0.88


@pytest.mark.parametrize("left", [5, 9])
def test_missing_samples_do_not_change_the_share(left: int):
    rng = np.random.default_rng(left)
    values = rng.normal(size=(EXPERIMENTS, 12))
    for row in values:
        row[rng.permutation(12)[left:]] = np.nan
    assert 0.93 < share(values, 0.0) < 0.97


def test_a_missing_sample_is_as_one_that_was_never_there():
    rng = np.random.default_rng(3)
    values = rng.lognormal(size=(4, 9))
    gaps = np.full((4, 14), np.nan)
    gaps[:, np.sort(rng.permutation(14)[:9])] = values
    dims = ("cell", "sample")
    one, other = (avjax.bootstrap(xr.Dataset({"x": (dims, v)}), draws=300) for v in (values, gaps))
    for name in ("x", "x_low", "x_high", "x_count"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12)


@pytest.mark.parametrize("method", ["studentised", "student", "percentile"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_equal_samples_have_an_interval_of_no_width(method, value: float):
    dataset = xr.Dataset({"x": ("sample", np.full(7, value)), "x_clean": ("sample", np.zeros(7))})
    means = avjax.bootstrap(dataset, draws=200, method=method, adjust="benjamini-hochberg")
    np.testing.assert_allclose([means.x_low, means.x_high], value, rtol=1e-12)
    assert float(means.x_change_p) == (1.0 if value == 0 else 0.0)


def test_the_simulation_of_the_documentation():
    shares = coverage.coverage("lognormal, log sd 1", 5, experiments=200, draws=200, level=0.95)
    assert list(shares) == ["studentised", "student", "percentile", "BCa"]
    assert all(0.5 < share < 1 and width > 0 for share, width in shares.values())
    assert shares["studentised"][0] > shares["BCa"][0]
