"""p-values of changes, adjusted for the cells of a grid."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import avjax
from avjax.intervals import METHODS, Method, Resampling, means_of

BH = "benjamini-hochberg"


def grid(change: np.ndarray, seed: int = 0) -> xr.Dataset:
    """change [cell, sample] from a clean run that varies much more."""
    clean = np.random.default_rng(seed).normal(0, 10, change.shape[1])
    return xr.Dataset({"x": (("cell", "sample"), clean + change), "x_clean": ("sample", clean)})


@pytest.mark.parametrize("seed", range(4))
def test_equals_scipy(seed: int):
    rng = np.random.default_rng(seed)
    change = rng.normal(rng.choice([0, 1], (30, 1)), 1, (30, 8))
    change[3, 4:] = np.nan  # four samples: no interval, and no part of the family
    change[5] = np.nan
    change[7, 0] = np.nan
    means = avjax.bootstrap(grid(change), method="student", adjust=BH)
    family = np.delete(np.arange(30), [3, 5])
    p = scipy.stats.ttest_1samp(change[family], 0, axis=1, nan_policy="omit").pvalue
    np.testing.assert_allclose(means.x_change_p[family], scipy.stats.false_discovery_control(p), rtol=1e-9)
    assert np.isnan(means.x_change_p[[3, 5]]).all()
    assert means.attrs["adjust"].startswith("Benjamini-Hochberg over the cells of each NAME_change, false discovery")
    assert "rate 0.05" in means.attrs["adjust"] and "over 28 cells" in means.x_change_p.attrs["long_name"]


def test_all_dimensions_of_a_grid_are_one_family():
    values = np.random.default_rng(0).normal(0.6, 1, (2, 3, 12, 4))
    dims = ("key", "layer", "sample", "head")
    dataset = xr.Dataset({"x": (dims, values), "x_clean": (("sample",), np.zeros(12))})
    means = avjax.bootstrap(dataset, method="student", adjust=BH)
    assert means.x_change_p.dims == means.x_change.dims == ("key", "layer", "head")
    p = scipy.stats.ttest_1samp(values, 0, axis=2).pvalue
    expected = scipy.stats.false_discovery_control(p.reshape(-1)).reshape(p.shape)
    np.testing.assert_allclose(means.x_change_p, expected, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [5, 12, 30])
def test_p_says_what_the_interval_says(n: int, method: Method):
    rng = np.random.default_rng(n)
    values = rng.normal(rng.uniform(-1, 1, 800), 1, (n, 800))
    for level in (0.5, 0.95, 0.99):
        means = means_of(values, method, level, Resampling(draws=2000, seed=0))
        excludes = (means.low > 0) | (means.high < 0)
        assert np.mean(excludes == (means.p < 1 - level)) > 0.99, "but for what lies on the bound"
    assert ((means.p >= 0) & (means.p <= 1)).all()


@pytest.mark.parametrize("method", ["studentised", "student"])
@pytest.mark.parametrize("n", [5, 10, 30])
def test_p_of_no_effect_is_uniform(n: int, method: Method):
    """Or too large below 0.05, never too small."""
    values = np.random.default_rng(n).normal(size=(n, 6000))
    p = means_of(values, method, 0.95, Resampling(draws=2000, seed=0)).p
    for alpha, slack in ((0.5, 0.025), (0.1, 0.015), (0.05, 0.012)):
        assert abs(np.mean(p <= alpha) - alpha) < slack, alpha
    for alpha, slack in ((0.01, 0.004), (0.003, 0.002), (0.001, 0.0012)):
        assert np.mean(p <= alpha) < alpha + slack, alpha


@pytest.mark.parametrize("method", ["studentised", "student"])
@pytest.mark.parametrize(("n", "effects"), [(10, 0), (10, 10), (20, 10)])
def test_the_false_discovery_rate_is_kept(n: int, effects: int, method: Method):
    """150 grids of 100 cells, some with an effect: the mean share of false ones among what is found."""
    rng = np.random.default_rng(7)
    effect = np.where(np.arange(100) < effects, 1.5, 0.0)
    values = rng.normal(effect, 1, (n, 150, 100)).reshape(n, -1)
    p = means_of(values, method, 0.95, Resampling(draws=1000, seed=0)).p.reshape(150, 100)
    found = scipy.stats.false_discovery_control(p, axis=1) <= 0.05
    shares = (found & (effect == 0)).sum(1) / np.maximum(1, found.sum(1))
    # 0.05 without an effect, 0.045 with 10; standard errors 0.018 and 0.006.
    assert shares.mean() < (0.06 if effects else 0.09)
    if effects:
        assert found[:, :effects].mean() > 0.5


@pytest.mark.parametrize("method", ["studentised", "student"])
def test_one_effect_among_thousands_is_found(method: Method):
    """A p-value is not bounded by the number of draws."""
    change = np.random.default_rng(3).normal(0, 1, (2000, 16))
    change[1234] += 4
    means = avjax.bootstrap(grid(change), draws=500, method=method, adjust=BH)
    assert np.flatnonzero(means.x_change_p < 0.05).tolist() == [1234]


def test_without_adjustment_there_is_no_p():
    means = avjax.bootstrap(grid(np.ones((3, 6))), draws=10)
    assert "x_change_p" not in means and "adjust" not in means.attrs
