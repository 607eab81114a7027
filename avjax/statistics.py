"""Statistics over samples: paired bootstrap intervals, relative change, recovery and indirect effects.

Pure functions of datasets and arrays; no model is needed.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

CHUNK_ELEMENTS = 2**24  # of one float64 intermediate: 128 MiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Draws:
    """The resampled samples of one bootstrap: how often each draw holds each sample."""

    draws: int
    level: float
    seed: int

    def weights(self, num_samples: int) -> Iterator[np.ndarray]:
        """float64 [some draws, n] with rows that sum to n. The same for every variable, however large the chunks."""
        rng = np.random.default_rng(self.seed)
        chunk = max(1, CHUNK_ELEMENTS // num_samples)
        for start in range(0, self.draws, chunk):
            size = min(chunk, self.draws - start)
            yield rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=size).astype(np.float64)


def bootstrap(
    dataset: xr.Dataset, over: str = "sample", draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> xr.Dataset:
    """Means over samples with percentile bootstrap intervals, paired: every variable and cell sees the same draws.

    A variable is averaged if it has the dimension `over`, its dtype is an integer or a float (booleans and text are
    not), and its attributes do not say `averages` = False, as those of token ids, captions and counts do. Others that
    have the dimension are named in the result's attribute `skipped`.

    A NaN is a missing sample: it is left out of the mean and of every draw, and a draw of missing samples alone is left
    out of the bounds. With fewer than 2 samples left the bounds are NaN.

    Args:
      dataset: as `avjax.sweep` returns it. Beside `NAME`, `NAME_clean` is the unedited run's value.
      over: the dimension that is resampled.
      draws: resampled sets; more make the bounds steadier.
      level: share of the draws within the bounds, between 0 and 1.
      seed: of the draws.

    Returns:
      Without the dimension `over`, in float64 and the variable's units: `NAME`, the mean; `NAME_low` and `NAME_high`,
      the bounds; `NAME_count`, the samples that were not missing. With `NAME_clean` also `NAME_change`, the mean of
      NAME - NAME_clean sample by sample, and its `_low`, `_high` and `_count`.

    Raises:
      ValueError: an argument is out of range, there is nothing to average, or a value is infinite.

    Source: Efron and Tibshirani 1993, chapter 13 (the percentile interval).
    """
    _check(dataset, over, draws, level)
    plan = _Draws(draws=draws, level=level, seed=seed)
    results: dict[str, xr.DataArray] = {}
    skipped = [str(n) for n, v in dataset.data_vars.items() if over in v.dims and not _averages(v, over)]
    for name, variable in _variables(dataset, over).items():
        for key, value in _summary(name, variable, over, plan).items():
            if key in results:
                raise ValueError(f"bootstrap: {key!r} would be written twice; rename the variable {name!r}")
            results[key] = value
    if not results:
        raise ValueError(
            f"bootstrap: expected a numeric variable with the dimension {over!r}, got none among "
            f"{', '.join(map(str, dataset.data_vars)) or 'no variables'}; add a metric whose mean has a meaning"
        )
    words = f"percentile bootstrap over {over}, level {level:g}, {draws} draws, seed {seed}"
    about = {**dataset.attrs, "interval": words, "samples": dataset.sizes[over], "skipped": ", ".join(skipped)}
    return xr.Dataset(results, attrs=about)


def relative_change(p: Any, p0: Any, min_base: float = 1e-6) -> Any:
    """100 (p - p0) / p0, in percent; NaN, which is missing, where |p0| is below `min_base`.

    Args:
      p, p0: DataArrays with equal coordinates, or arrays that broadcast.

    Raises:
      ValueError: `min_base` is not above 0, or coordinates differ.
    """
    p, p0 = _aligned(p, p0)
    return _about(100 * _ratio(p - p0, p0, "min_base", min_base), "percent", "relative change")


def recovery(patched: Any, corrupt: Any, clean: Any, min_gap: float = 1e-6) -> Any:
    """(patched - corrupt) / (clean - corrupt): 0 for the corrupt run's value, 1 for the clean run's.

    NaN, which is missing, where |clean - corrupt| is below `min_gap`: there was nothing to recover.

    Args:
      patched, corrupt, clean: a metric of the three runs; DataArrays with equal coordinates, or arrays that broadcast.

    Raises:
      ValueError: `min_gap` is not above 0, or coordinates differ.
    """
    patched, corrupt, clean = _aligned(patched, corrupt, clean)
    return _about(_ratio(patched - corrupt, clean - corrupt, "min_gap", min_gap), "1", "recovery")


def ie_clean(p_restored: Any, p_corrupt: Any) -> Any:
    """Indirect effect on the clean answer: what its probability gains by restoring, p_restored - p_corrupt.

    Args:
      p_restored, p_corrupt: probability of the clean answer; DataArrays with equal coordinates, or arrays.

    Source: Cross-modal Information Hubs (arXiv 2605.10815).
    """
    p_restored, p_corrupt = _aligned(p_restored, p_corrupt)
    return _about(p_restored - p_corrupt, "probability", "indirect effect, clean answer")


def ie_corrupt(p_corrupt: Any, p_restored: Any) -> Any:
    """Indirect effect on the corrupt answer: what its probability loses by restoring, p_corrupt - p_restored.

    Args:
      p_corrupt, p_restored: probability of the corrupt answer; DataArrays with equal coordinates, or arrays.

    Source: Cross-modal Information Hubs (arXiv 2605.10815).
    """
    p_corrupt, p_restored = _aligned(p_corrupt, p_restored)
    return _about(p_corrupt - p_restored, "probability", "indirect effect, corrupt answer")


def _check(dataset: xr.Dataset, over: str, draws: int, level: float) -> None:
    if over not in dataset.dims:
        dims = ", ".join(map(str, dataset.dims)) or "none"
        raise ValueError(f"bootstrap: expected a dimension {over!r}, got {dims}; pass over=")
    if dataset.sizes[over] < 2:
        raise ValueError(
            f"bootstrap: expected at least 2 samples along {over!r}, got {dataset.sizes[over]}; sweep more prompts"
        )
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: expected a level between 0 and 1, got {level!r}; 0.95 is 95 %")
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise ValueError(f"bootstrap: expected a whole number of draws, at least 1, got {draws!r}; 10000 is usual")


def _averages(variable: xr.DataArray, over: str) -> bool:
    return over in variable.dims and variable.dtype.kind in "iuf" and bool(variable.attrs.get("averages", True))


def _variables(dataset: xr.Dataset, over: str) -> dict[str, xr.DataArray]:
    """What is averaged, with each variable's change from its clean value."""
    found = {str(name): v for name, v in dataset.data_vars.items() if _averages(v, over)}
    for name, variable in list(found.items()):
        if (clean := found.get(f"{name}_clean")) is not None:
            # Differences of small integers must not wrap round.
            units = {key: value for key, value in variable.attrs.items() if key != "cell"}  # neither clean nor edited
            change = (variable.astype(np.float64) - clean.astype(np.float64)).drop_attrs(deep=False).assign_attrs(units)
            if f"{name}_change" in found:
                raise ValueError(f"bootstrap: {name + '_change'!r} would be written twice; rename that variable")
            found[f"{name}_change"] = change
    return found


def _summary(name: str, variable: xr.DataArray, over: str, plan: _Draws) -> dict[str, xr.DataArray]:
    ordered = variable.transpose(over, ...)
    of_samples = [key for key, coordinate in ordered.coords.items() if over in coordinate.dims]
    template = ordered.drop_vars(of_samples).isel({over: 0}).drop_attrs()
    values = ordered.to_numpy().astype(np.float64).reshape(ordered.sizes[over], -1)
    if np.isinf(values).any():
        raise ValueError(
            f"bootstrap: expected finite values or NaN, got {int(np.isinf(values).sum())} infinite ones in {name!r}; "
            "make them missing with dataset.where(np.isfinite(dataset))"
        )
    count = np.sum(~np.isnan(values), axis=0)
    mean = np.divide(np.nansum(values, axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
    low, high = _bounds(values, mean, plan)
    low, high = (np.where(count >= 2, bound, np.nan) for bound in (low, high))
    units = {k: v for k, v in variable.attrs.items() if k != "averages"}
    columns = {"": (mean, units), "_low": (low, units), "_high": (high, units), "_count": (count, {"units": "count"})}
    return {
        f"{name}{suffix}": template.copy(data=column.reshape(template.shape)).assign_attrs(attrs)
        for suffix, (column, attrs) in columns.items()
    }


def _bounds(values: np.ndarray, mean: np.ndarray, plan: _Draws) -> tuple[np.ndarray, np.ndarray]:
    """Interval bounds [C] of the mean of each column of values [n, C]."""
    block = max(1, CHUNK_ELEMENTS // plan.draws)
    tails = ((1 - plan.level) / 2, (1 + plan.level) / 2)
    bounds = [np.zeros((2, 0))]
    for start in range(0, values.shape[1], block):
        part = slice(start, start + block)
        # Deviations from the mean lose no digits to a large offset, and a constant has an interval of no width.
        drawn = mean[part, None] + _drawn_deviations(values[:, part] - mean[part], plan)
        empty = np.isnan(drawn).any(axis=1)  # some draw held missing samples only
        found = np.quantile(drawn, tails, axis=1)
        for column in np.flatnonzero(empty):
            kept = drawn[column][~np.isnan(drawn[column])]
            found[:, column] = np.quantile(kept, tails) if len(kept) else np.nan
        bounds.append(found)
    low, high = np.concatenate(bounds, axis=1)
    return low, high


def _drawn_deviations(deviations: np.ndarray, plan: _Draws) -> np.ndarray:
    """Mean over each draw [C, draws] of the samples that are not missing, from [n, C]; NaN where none is left."""
    num_samples, size = deviations.shape
    there = ~np.isnan(deviations)
    filled, all_there = np.where(there, deviations, 0.0), bool(there.all())
    out = np.empty((size, plan.draws))
    start = 0
    for weights in plan.weights(num_samples):
        part = slice(start, start + len(weights))
        total = num_samples if all_there else there.T.astype(np.float64) @ weights.T
        with np.errstate(invalid="ignore"):  # 0 / 0 is missing
            out[:, part] = (filled.T @ weights.T) / total
        start += len(weights)
    return out


def _ratio(numerator: Any, denominator: Any, name: str, least: float) -> Any:
    if not 0 < least < math.inf:
        raise ValueError(f"{name}: expected a number above 0, got {least!r}; it bounds what is divided by")
    usable = (abs(denominator) >= least) & np.isfinite(denominator)
    return numerator / xr.where(usable, denominator, np.nan)


def _aligned(*values: Any) -> list[Any]:
    """The same, as arrays of numbers; DataArrays whose coordinates differ are refused, not cut to what they share."""
    arrays = [v if isinstance(v, xr.DataArray) else np.asarray(v) for v in values]
    # Differences of unsigned integers would wrap round.
    arrays = [a if a.dtype.kind == "f" else a.astype(np.float64) for a in arrays]
    try:
        xr.align(*(a for a in arrays if isinstance(a, xr.DataArray)), join="exact")
    except ValueError as error:
        raise ValueError(
            f"expected DataArrays with equal coordinates, got others ({error}); select the same cells and samples"
        ) from error
    return arrays


def _about(value: Any, units: str, long_name: str) -> Any:
    if isinstance(value, xr.DataArray):
        value = value.drop_attrs().assign_attrs(units=units, long_name=long_name).rename(None)
    return value
