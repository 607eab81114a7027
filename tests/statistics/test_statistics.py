"""Statistics over samples, against direct loops, normal theory and arithmetic by hand."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import avjax
from avjax import intervals, statistics

N, DRAWS = 12, 400


def data(values: np.ndarray, **attrs: Any) -> xr.DataArray:
    """[cell, sample]"""
    return xr.DataArray(values, dims=("cell", "sample"), attrs={"units": "nats", **attrs})


@pytest.fixture
def swept() -> xr.Dataset:
    """What a sweep of 3 cells and 12 samples gives: a metric with its clean value, ids, words and counts."""
    rng = np.random.default_rng(5)
    clean = rng.normal(3.0, 2.0, N)
    return xr.Dataset(
        {
            "kl": data(clean + rng.normal(1.0, 0.1, (3, N)), averages=1),
            "kl_clean": ("sample", clean, {"units": "nats", "averages": 1}),
            "top": data(rng.integers(0, 99, (3, N)), averages=0),
            "best": data(rng.integers(0, 99, (3, N)), averages=False),
            "caption": data(np.full((3, N), "a dog", object)),
            "found": data(rng.random((3, N)) > 0.5),
            "hits": data(rng.integers(0, 9, (3, N))),
            "per_layer": ("layer", np.zeros(4)),
        },
        coords={
            "cell": ["a", "b", "c"],
            "sample": list(range(N)),
            "split": ("sample", ["x"] * N),
            "seconds": (("cell", "sample"), np.ones((3, N))),
        },
        attrs={"model": "tiny"},
    )


def looped(values: np.ndarray, *, draws: int, level: float, seed: int) -> tuple[float, float]:
    """One column's interval: each resampled set written out, averaged, and the averages sorted."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=draws)
    means = []
    for row in counts:
        drawn = [v for v, times in zip(values.tolist(), row, strict=True) for _ in range(times) if not math.isnan(v)]
        if drawn:
            means.append(math.fsum(drawn) / len(drawn))
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@pytest.mark.parametrize("chunk", [2**24, 100, 1])
@pytest.mark.parametrize(("level", "seed"), [(0.95, 0), (0.5, 7)])
def test_equals_a_direct_loop(swept: xr.Dataset, monkeypatch: pytest.MonkeyPatch, chunk: int, level: float, seed: int):
    """With the same weights, whatever the chunks; with missing samples too."""
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", chunk)
    swept["kl"][1, [0, 4, 5]] = np.nan
    swept["kl"][2, 5:] = np.nan  # five are left: some draws have none of them
    got = statistics.bootstrap(swept, draws=DRAWS, level=level, seed=seed, method="percentile")
    change = swept.kl.to_numpy() - swept.kl_clean.to_numpy()
    for name, columns in (("kl", swept.kl.to_numpy()), ("kl_change", change)):
        expected = np.array([looped(column, draws=DRAWS, level=level, seed=seed) for column in columns])
        np.testing.assert_allclose(got[f"{name}_low"], expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose(got[f"{name}_high"], expected[:, 1], rtol=1e-12)
        np.testing.assert_allclose(got[name], np.nanmean(columns, axis=1), rtol=1e-12)
        np.testing.assert_array_equal(got[f"{name}_count"], [12, 9, 5])
    clean = looped(swept.kl_clean.to_numpy(), draws=DRAWS, level=level, seed=seed)
    np.testing.assert_allclose([got.kl_clean_low, got.kl_clean_high], clean, rtol=1e-12)
    assert int(got.kl_clean_count) == 12


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_coverage_on_normal_data(level: float):
    """2,000 experiments of 60 samples with the mean 3: so many intervals hold it."""
    values = np.random.default_rng(11).normal(3.0, 2.0, (2000, 60))
    got = avjax.bootstrap(xr.Dataset({"x": data(values)}), draws=2000, level=level)
    covered = float(((got.x_low < 3.0) & (got.x_high > 3.0)).mean())
    assert abs(covered - level) < 0.025, "the share's standard error is 1.1 % at most"
    t = {0.5: 0.67867, 0.9: 1.67109, 0.95: 2.00100}[level]  # of 59 degrees of freedom
    width = 2 * t * values.std(axis=1, ddof=1) / np.sqrt(60)
    np.testing.assert_allclose(float((got.x_high - got.x_low).mean()), width.mean(), rtol=0.02)


def test_pairs_cancel(swept: xr.Dataset):
    """What samples share does not widen the interval of a change; what cells share moves them together."""
    swept["kl"] = data(np.array([[0.5], [-2.0], [0.0]]) + swept.kl_clean.to_numpy())
    got = statistics.bootstrap(swept, draws=DRAWS)
    for bound in (got.kl_change, got.kl_change_low, got.kl_change_high):
        np.testing.assert_allclose(bound, [0.5, -2.0, 0.0], atol=1e-12)
    width = (got.kl_high - got.kl_low).to_numpy()
    assert (width > 1.0).all(), "the samples themselves vary"
    np.testing.assert_allclose(width, width[0], rtol=1e-12)
    np.testing.assert_allclose(got.kl_low - got.kl_clean_low, [0.5, -2.0, 0.0], atol=1e-12)


def test_what_is_skipped(swept: xr.Dataset):
    got = statistics.bootstrap(swept, draws=10)
    names = {f"{n}{s}" for n in ("kl", "kl_clean", "kl_change", "hits") for s in ("", "_low", "_high", "_count")}
    assert set(got.data_vars) == names
    assert got.attrs["skipped"] == "top, best, caption, found"
    assert got.attrs["interval"] == "studentised bootstrap over sample, level 0.95, n 12, 10 draws, seed 0"
    assert [got.attrs[key] for key in ("method", "level", "samples", "model")] == ["studentised", 0.95, N, "tiny"]
    assert not {"no_interval", "not_tested", "adjust"} & set(got.attrs), "nothing to say"
    assert got.kl.attrs == got.kl_low.attrs == got.kl_change.attrs == {"units": "nats"}
    assert got.kl_count.attrs["units"] == "count"
    assert got.kl.dims == ("cell",) and got.kl_clean.dims == () and list(got.cell.values) == ["a", "b", "c"]
    assert set(got.coords) == {"cell"}, "coordinates of samples have no place here"


def test_other_dimensions_stay():
    values = np.random.default_rng(0).normal(size=(2, N, 3, 4))
    dims = ("key", "prompt", "layer", "head")
    dataset = xr.Dataset({"mass": (dims, values), "mass_clean": (dims[1:], values[0])}, coords={"key": ["a", "v"]})
    got = statistics.bootstrap(dataset, over="prompt", draws=50, seed=3, method="percentile")
    assert got.mass.dims == ("key", "layer", "head") and got.mass_clean.dims == ("layer", "head")
    np.testing.assert_allclose(got.mass, values.mean(axis=1), rtol=1e-12)
    expected = looped(values[1, :, 2, 1], draws=50, level=0.95, seed=3)
    found = [float(got[name][1, 2, 1]) for name in ("mass_low", "mass_high")]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(got.mass_change[0], 0, atol=1e-15)
    np.testing.assert_allclose(got.mass_change[1], (values[1] - values[0]).mean(axis=0), rtol=1e-12)


def test_missing_samples_are_never_a_number(swept: xr.Dataset):
    swept["kl"][0, 3] = np.nan
    swept["kl"][1, 1:] = np.nan
    swept["kl"][2] = np.nan
    swept["kl_clean"][7] = np.nan
    got = statistics.bootstrap(swept, draws=DRAWS)
    kept = np.delete(swept.kl.to_numpy()[0], 3)
    assert float(got.kl[0]) == pytest.approx(kept.mean(), rel=1e-12)
    assert float(got.kl[1]) == pytest.approx(float(swept.kl[1, 0])) and math.isnan(got.kl[2])
    assert np.isnan(got.kl_low[1:]).all() and np.isnan(got.kl_high[1:]).all(), "one sample has no spread"
    assert got.attrs["no_interval"] == (
        "fewer than 5 samples along sample: kl (2 of 3 cells), kl_change (2 of 3 cells)"
    )
    assert got.kl_count.values.tolist() == [11, 1, 0]
    assert got.kl_change_count.values.tolist() == [10, 1, 0] and int(got.kl_clean_count) == 11
    both = np.delete((swept.kl - swept.kl_clean).to_numpy()[0], [3, 7])
    assert float(got.kl_change[0]) == pytest.approx(both.mean(), rel=1e-12)
    assert 0 < float(got.kl_low[0]) < float(got.kl[0]) < float(got.kl_high[0]) < kept.max()


def test_small_integers_do_not_wrap_round():
    dataset = xr.Dataset({"rank": data(np.full((1, 4), 3, np.uint8)), "rank_clean": ("sample", np.full(4, 250, "u1"))})
    assert float(statistics.bootstrap(dataset, draws=5).rank_change[0]) == -247.0


@given(
    scale=st.floats(0.01, 100),
    offset=st.floats(-1e4, 1e4),
    values=st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=5, max_size=20),
    method=st.sampled_from(intervals.METHODS),
)
def test_units_do_not_matter(scale: float, offset: float, values: list[float], method: intervals.Method):
    """The interval of a x + b is a times that of x, plus b; of -x, mirrored."""
    x = np.array(values)
    dataset = xr.Dataset({"x": ("sample", x), "scaled": ("sample", scale * x + offset), "mirror": ("sample", -x)})
    got = {str(k): float(v) for k, v in statistics.bootstrap(dataset, draws=60, method=method).items()}
    size = 1 + got["x_high"] - got["x_low"]
    slack = 1e-7 * (1 + abs(offset) + scale * (100 + size))
    for end, other in (("_low", "_high"), ("_high", "_low")):
        assert got[f"scaled{end}"] == pytest.approx(scale * got[f"x{end}"] + offset, abs=slack)
        assert got[f"mirror{end}"] == pytest.approx(-got[f"x{other}"], abs=1e-7 * size)
    if method == "percentile":
        assert x.min() - 1e-9 <= got["x_low"] <= got["x_high"] <= x.max() + 1e-9
    else:
        assert got["x_low"] <= got["x"] <= got["x_high"]


def test_the_seed_decides(swept: xr.Dataset):
    a, b, c = (statistics.bootstrap(swept, draws=DRAWS, seed=s) for s in (1, 1, 2))
    xr.testing.assert_identical(a, b)
    assert not np.array_equal(a.kl_low, c.kl_low) and np.array_equal(a.kl, c.kl)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda d: d, {"over": "prompt"}, r"expected a dimension 'prompt', got .*cell.*; pass over="),
        (lambda d: d.isel(sample=[]), {}, "expected samples along 'sample', got 0"),
        (lambda d: d, {"level": 0.0}, "level between 0 and 1, got 0.0"),
        (lambda d: d, {"level": 1.0}, "level between 0 and 1, got 1.0"),
        (lambda d: d, {"level": 95}, "level between 0 and 1, got 95"),
        (lambda d: d, {"level": math.nan}, "level between 0 and 1, got nan"),
        (lambda d: d, {"draws": 0}, "draws, at least 1, got 0"),
        (lambda d: d, {"draws": 1e4}, "draws, at least 1, got 10000.0"),
        (lambda d: d, {"method": "bca"}, "method among studentised, student, percentile, got 'bca'"),
        (lambda d: d, {"adjust": "holm"}, "adjust= benjamini-hochberg or None, got 'holm'"),
        (lambda d: d[["kl"]], {"adjust": "benjamini-hochberg"}, "a variable with its NAME_clean for adjust="),
        (lambda d: d.assign(kl_floor=d.kl_clean), {}, "kl_floor to be one noise floor of kl, got one along 'sample'"),
        (lambda d: d[["top", "caption", "per_layer"]], {}, "numeric variable with the dimension 'sample', got none"),
        (lambda d: d.assign(kl=d.kl.where(d.kl > d.kl.min(), -np.inf)), {}, "got 1 infinite ones in 'kl'"),
        (lambda d: d.assign(kl_low=d.kl), {}, "'kl_low' would be written twice"),
        (lambda d: d.assign(kl_change=d.kl), {}, "'kl_change' would be written twice"),
    ],
)
def test_refused(swept: xr.Dataset, change: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        statistics.bootstrap(change(swept), **{"draws": 5, **arguments})


@pytest.mark.exhaustive
def test_a_sweep(omni_model: avjax.Model):
    """The variables that a sweep marks as having no mean are the ones that are left out."""
    prompts = [omni_model.prompt(text) for text in ("What?", "Who is it?", "Why so?", "Where?", "And then?")]
    metrics = [avjax.metrics.LogProb(7), avjax.metrics.TopK(2)]
    swept = avjax.sweep(omni_model, prompts, "last->system", metrics, progress=False)
    got = avjax.bootstrap(swept, draws=100, method="percentile")
    ids = {str(n) for n in swept.data_vars if str(n).startswith("top")}
    assert ids and ids | {"edges", "positions", "blocked_queries"} == set(got.attrs["skipped"].split(", "))
    for name in ("log_prob", "log_prob_change"):
        clean = swept.log_prob_clean.to_numpy().astype(np.float64) if name == "log_prob_change" else 0.0
        values = swept.log_prob.to_numpy().astype(np.float64) - clean
        expected = looped(values, draws=100, level=0.95, seed=0)
        np.testing.assert_allclose([got[f"{name}_low"], got[f"{name}_high"]], expected, rtol=1e-9)
        assert expected[0] < expected[1]


def test_recovery_and_relative_change():
    clean, corrupt = np.array([4.0, 1.0, 2.0, 5.0]), np.array([2.0, 3.0, 2.0, math.nan])
    patched = np.array([3.0, 1.0, 7.0, 1.0])
    np.testing.assert_array_equal(statistics.recovery(patched, corrupt, clean), [0.5, 1.0, math.nan, math.nan])
    np.testing.assert_array_equal(statistics.recovery(corrupt, corrupt, clean)[:2], [0.0, 0.0])
    np.testing.assert_array_equal(statistics.recovery(patched, corrupt, clean, min_gap=2.5), np.full(4, math.nan))
    change = statistics.relative_change(np.array([3.0, 0.5, 1.0, -1.0]), np.array([2.0, 1.0, 0.0, -2.0]))
    np.testing.assert_array_equal(change, [50.0, -50.0, math.nan, 50.0], "-1 is above -2")
    assert float(statistics.relative_change(0.3, 0.2)) == pytest.approx(50.0)
    assert math.isnan(statistics.relative_change(1.0, 9e-7)) and not math.isnan(statistics.relative_change(1.0, 1.1e-6))
    assert float(statistics.relative_change(3e-8, 2e-8, min_base=1e-8)) == pytest.approx(50.0)
    assert math.isnan(statistics.recovery(1.0, 0.0, math.inf)), "an infinite gap would score any patch as 0"


def test_indirect_effects():
    restored, corrupt = np.array([0.7, 0.1]), np.array([0.2, 0.4])
    np.testing.assert_allclose(statistics.ie_clean(restored, corrupt), [0.5, -0.3])
    np.testing.assert_allclose(statistics.ie_corrupt(corrupt, restored), [-0.5, 0.3])
    assert float(statistics.ie_clean(p_restored=0.75, p_corrupt=0.25)) == 0.5
    assert float(statistics.ie_corrupt(p_corrupt=0.75, p_restored=0.25)) == 0.5
    assert float(statistics.ie_corrupt(np.uint8(1), np.uint8(2))) == -1.0


@pytest.mark.parametrize(
    ("function", "count", "units"),
    [
        (statistics.relative_change, 2, "percent"),
        (statistics.recovery, 3, "1"),
        (statistics.ie_clean, 2, "probability"),
        (statistics.ie_corrupt, 2, "probability"),
    ],
)
def test_labelled_arrays(function: Any, count: int, units: str):
    """A cell's values against the clean ones, which have no cells; the same numbers as of plain and device arrays."""
    rng = np.random.default_rng(2)
    full, *flat = (rng.random((3, N)).astype(np.float32), *(rng.random(N).astype(np.float32) for _ in range(count - 1)))
    cells = xr.DataArray(
        full, dims=("cell", "sample"), coords={"sample": range(N)}, name="prob", attrs={"units": "x", "averages": 0}
    )
    rest = [xr.DataArray(values, dims="sample", coords={"sample": range(N)}) for values in flat]
    got = function(cells, *rest)
    assert got.dims == ("cell", "sample") and got.attrs["units"] == units and "averages" not in got.attrs
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, function(full, *flat))
    np.testing.assert_array_equal(got, function(jnp.asarray(full), *map(jnp.asarray, flat)))
    assert not np.isnan(got).any()
    with pytest.raises(ValueError, match=r"equal coordinates.*select the same cells and samples"):
        function(cells, *(r.isel(sample=slice(1, None)) for r in rest))


@pytest.mark.parametrize("least", [0.0, -1.0, math.nan, math.inf])
def test_gaps_that_guard_nothing(least: float):
    with pytest.raises(ValueError, match="min_gap: expected a number above 0"):
        statistics.recovery(1.0, 0.0, 2.0, min_gap=least)
    with pytest.raises(ValueError, match="min_base: expected a number above 0"):
        statistics.relative_change(1.0, 2.0, min_base=least)


def test_the_public_face():
    assert avjax.statistics is statistics and avjax.bootstrap is statistics.bootstrap
