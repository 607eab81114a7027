"""What is within the noise floor is marked, and a distance is never tested against 0."""

import numpy as np
import pytest
import xarray as xr

import avjax
from avjax.statistics import below_floor, ie_clean, ie_corrupt

CHANGES = np.array([0.0, 0.9e-3, -0.9e-3, 1.1e-3, -1.1e-3, 2.0])


def swept(floor: float | None, **attrs) -> xr.Dataset:
    """Six cells whose mean changes are CHANGES, and their distance from the clean run."""
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=7), rng.normal(size=(6, 7))
    noise -= noise.mean(axis=1, keepdims=True)
    dims = ("cell", "sample")
    dataset = xr.Dataset(
        {
            "prob": (dims, clean + CHANGES[:, None] + 1e-3 * noise, {"units": "probability"}),
            "prob_clean": ("sample", clean),
            "kl": (dims, np.abs(CHANGES)[:, None] + 1e-5 * noise, {"units": "nats", "distance": 1}),
            "kl_clean": ("sample", np.zeros(7), {"units": "nats", "distance": 1}),
        }
    )
    if floor is not None:
        dataset["prob_floor"] = ((), floor, {"units": "probability", "averages": 0, **attrs})
        dataset["kl_floor"] = ((), floor, {"units": "nats"})
    return dataset


def test_a_distance_is_not_tested():
    means = avjax.bootstrap(swept(None), draws=50, adjust="benjamini-hochberg")
    assert not [name for name in means if str(name).startswith("kl_change")]
    assert {"kl", "kl_low", "kl_high", "kl_count", "prob_change", "prob_change_p"} <= set(means)
    np.testing.assert_allclose(means.kl, np.abs(CHANGES), atol=1e-12)
    assert means.attrs["not_tested"].startswith("kl: a distance from the clean run")
    with pytest.raises(ValueError, match="a variable with its NAME_clean for adjust=, got none"):
        avjax.bootstrap(swept(None)[["kl", "kl_clean"]], adjust="benjamini-hochberg")


@pytest.mark.parametrize("floor", [1e-3, 0.0, 5.0])
def test_means_within_the_floor_are_marked(floor: float):
    dataset = swept(floor, how="replay of the clean cell")
    means = avjax.bootstrap(dataset, draws=50)
    expected = np.abs(CHANGES) <= floor + 1e-12
    for name in ("prob_below_floor", "kl_below_floor"):
        assert means[name].dtype == bool and means[name].dims == ("cell",)
        np.testing.assert_array_equal(means[name][1:], expected[1:])
        np.testing.assert_array_equal(below_floor(dataset, name.removesuffix("_below_floor"))[1:], expected[1:])
    xr.testing.assert_identical(means.prob_floor, dataset.prob_floor)
    assert not [name for name in means if "floor_" in str(name)], "a floor has no bounds, no count and no change"
    np.testing.assert_allclose(means.prob_change, CHANGES, atol=1e-12)  # nothing is subtracted


def test_without_a_floor_nothing_is_marked():
    for dataset in (swept(None), swept(np.nan)):
        means = avjax.bootstrap(dataset, draws=50)
        assert not [name for name in means if str(name).endswith("_below_floor")]
        assert below_floor(dataset, "prob") is None and below_floor(dataset, "kl") is None
    assert np.isnan(means.prob_floor), "not measured: carried as it is"


def test_a_mean_that_is_missing_is_not_marked():
    dataset = swept(1e-3)
    dataset["prob"][0] = np.nan
    means = avjax.bootstrap(dataset, draws=50)
    assert means.prob_below_floor.values.tolist() == [False, True, True, False, False, False]


def test_a_variable_that_is_called_floor_without_being_one():
    dataset = xr.Dataset({"first_floor": ("sample", np.arange(6.0))})
    assert float(avjax.bootstrap(dataset, draws=10).first_floor) == 2.5


def test_indirect_effects_are_changes_themselves():
    data = swept(1e-3)
    for function, sign in ((ie_clean, 1), (ie_corrupt, -1)):
        args = (data.prob, data.prob_clean) if sign > 0 else (data.prob_clean, data.prob)
        dataset = xr.Dataset({"ie": function(*args), "ie_floor": 1e-3})
        np.testing.assert_array_equal(below_floor(dataset, "ie")[1:], np.abs(CHANGES[1:]) <= 1e-3)
        np.testing.assert_array_equal(avjax.bootstrap(dataset, draws=9).ie_below_floor[1:], np.abs(CHANGES[1:]) <= 1e-3)


def test_a_level_without_its_clean_run_is_not_marked():
    assert below_floor(swept(1e-3).drop_vars("prob_clean"), "prob") is None
    assert "prob_below_floor" not in avjax.bootstrap(swept(1e-3).drop_vars("prob_clean"), draws=9)
