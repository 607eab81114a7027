"""Statistics over samples: paired bootstrap intervals, relative change, recovery and indirect effects.

Pure functions of datasets and arrays; no model is needed.
"""

from typing import Any, Literal

import numpy as np
import xarray as xr

from avjax.intervals import METHODS, MIN_SAMPLES, Means, Method, Resampling, means_of

ADJUSTMENTS = ("benjamini-hochberg",)
NOT_TESTED = "a distance from the clean run, which is 0 or more: its mean is never tested against 0"


def bootstrap(
    dataset: xr.Dataset,
    over: str = "sample",
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    *,
    method: Method = "studentised",
    adjust: Literal["benjamini-hochberg"] | None = None,
) -> xr.Dataset:
    """Means over samples with confidence intervals, paired: of changes from the clean run sample by sample.

    A variable is averaged if it has the dimension `over`, its dtype is an integer or a float (booleans and text are
    not), and its attributes do not say `averages` = False, as those of token ids, captions and counts do. Others that
    have the dimension are named in the result's attribute `skipped`.

    A NaN is a missing sample: it is left out of the mean and of every draw. With fewer than 5 samples left there is no
    interval: bounds and p-values are NaN, and the attribute `no_interval` says of which variables and how many cells.

    Args:
      dataset: as `avjax.sweep` returns it. Beside `NAME`, `NAME_clean` is the unedited run's value and the scalar
        `NAME_floor` the noise floor: changes of at most its size are rounding.
      over: the dimension that is resampled.
      draws: resampled sets, the same for every variable and cell; more make the bounds steadier.
      level: share of the intervals that should hold the true mean, between 0 and 1.
      seed: of the draws.
      method: "studentised" bootstrap; "student" is Student's t, without draws; "percentile" is too narrow for few
        samples. `sweeps/bench/RESULTS.md` has what each covers.
      adjust: "benjamini-hochberg" adds `NAME_change_p`, the p-value of the mean change adjusted for the cells of its
        grid, for a false discovery rate of 1 - level. Each NAME_change is a family of its own; cells without an
        interval are left out of it.

    Returns:
      Without the dimension `over`, in float64 and the variable's units: `NAME`, the mean; `NAME_low` and `NAME_high`,
      the bounds; `NAME_count`, the samples that were not missing. With `NAME_clean` also `NAME_change`, the mean of
      NAME - NAME_clean sample by sample, and its `_low`, `_high` and `_count`; but not for a distance from the clean
      run (attribute `distance` = 1), whose mean is never tested against 0. `NAME_floor` as it is, and where it is
      measured the booleans `NAME_below_floor`: the mean change, or the mean distance, is at most the floor. The
      attributes name the method, the level and the number of samples.

    Raises:
      ValueError: an argument is out of range, there is nothing to average or to adjust, or a value is infinite.

    Source: Efron and Tibshirani 1993, chapters 12 and 13; Benjamini and Hochberg 1995.
    """
    _check(dataset, over, draws, level, method, adjust)
    variables, plan = _variables(dataset, over), Resampling(draws=draws, seed=seed)
    if not variables:
        raise ValueError(
            f"bootstrap: expected a numeric variable with the dimension {over!r}, got none among "
            f"{', '.join(map(str, dataset.data_vars)) or 'no variables'}; add a metric that can be averaged"
        )
    if adjust is not None and not any(_is_change(name, variables) for name in variables):
        raise ValueError("bootstrap: expected a variable with its NAME_clean for adjust=, got none; leave adjust out")
    columns: dict[str, xr.DataArray] = {}
    too_few: list[str] = []
    for name, variable in variables.items():
        template, means = _averaged(name, variable, over, method, level, plan)
        _add(columns, _summary(name, variable, template, means), name)
        if adjust is not None and _is_change(name, variables):
            _add(columns, {f"{name}_p": _adjusted(template, means, method)}, name)
        if cells := int(np.sum(means.count < MIN_SAMPLES)):
            too_few.append(name if cells == means.count.size else f"{name} ({cells} of {means.count.size} cells)")
    for name in variables:
        if (floor := _floor(dataset, name, over)) is not None:
            _add(columns, {f"{name}_floor": floor}, name)
            below = _marks(columns.get(name if _is_change_itself(dataset[name]) else f"{name}_change"), floor)
            _add(columns, {} if below is None else {f"{name}_below_floor": below}, name)
    attributes = _attributes(dataset.sizes[over], over, plan, level, method, adjust)
    attributes["skipped"] = ", ".join(
        str(n) for n, v in dataset.data_vars.items() if over in v.dims and n not in variables
    )
    if too_few:
        attributes["no_interval"] = f"fewer than {MIN_SAMPLES} samples along {over}: {', '.join(too_few)}"
    if distances := [n for n, v in variables.items() if v.attrs.get("distance") and not n.endswith("_clean")]:
        attributes["not_tested"] = f"{', '.join(distances)}: {NOT_TESTED}"
    return xr.Dataset(columns, attrs={**dataset.attrs, **attributes})


def below_floor(dataset: xr.Dataset, name: str, dims: Any = "sample") -> xr.DataArray | None:
    """Whether the mean change of a variable over `dims` is at most its noise floor: rounding, not an effect.

    Args:
      dataset: of samples, with the scalar `NAME_floor`; it may be absent or NaN, not measured.
      dims: what the mean is over, where the variable has it.

    Returns:
      Booleans over the other dimensions of |mean of NAME - NAME_clean| <= NAME_floor, and of |mean of NAME| for a
      distance (attribute `distance` = 1) or a variable that is a change itself (attribute `change` = 1); None without
      a floor, or where there is nothing to compare with it.
    """
    floor = _floor(dataset, name, None)
    if floor is None:
        return None
    values, clean = dataset[name], dataset.get(f"{name}_clean")
    if not _is_change_itself(values):
        if clean is None:
            return None
        values = values.astype(np.float64) - clean.astype(np.float64)
    dims = [dims] if isinstance(dims, str) else dims
    return _marks(values.mean([d for d in dims if d in values.dims]), floor)


def relative_change(p: Any, p0: Any, min_base: float = 1e-6) -> Any:
    """100 (p - p0) / |p0|, in percent: above 0 where p is above p0, whatever the sign of the base p0.

    NaN, which is missing, where |p0| is below `min_base`.

    Args:
      p, p0: DataArrays with equal coordinates, or arrays that broadcast.

    Returns:
      A DataArray's attributes say what the change is relative to (`base`).

    Raises:
      ValueError: `min_base` is not above 0, or coordinates differ.
    """
    p, p0 = _aligned(p, p0)
    ratio = _ratio(p - p0, abs(p0), "min_base", min_base)
    return _about(100 * ratio, "percent", "relative change", base="|p0|: a rise is above 0 for a negative base too")


def recovery(patched: Any, corrupt: Any, clean: Any, min_gap: Any = 1e-6) -> Any:
    """(patched - corrupt) / (clean - corrupt): 0 for the corrupt run's value, 1 for the clean run's.

    NaN, which is missing, where |clean - corrupt| is below `min_gap`: there was nothing to recover.

    Args:
      patched, corrupt, clean: a metric of the three runs; DataArrays with equal coordinates, or arrays that broadcast.
      min_gap: above the metric's noise floor, such as 10 times; a number, or an array or DataArray of several.

    Returns:
      A DataArray's attributes count the values that are missing because of `min_gap` (`missing_below_min_gap`), and
      give its range where it has several values.

    Raises:
      ValueError: `min_gap` is not above 0, or coordinates differ.
    """
    patched, corrupt, clean, least = _aligned(patched, corrupt, clean, min_gap)
    ratio = _ratio(patched - corrupt, clean - corrupt, "min_gap", least)
    missing = (abs(clean - corrupt) < least) & np.isfinite(patched - corrupt)
    sizes = sorted({float(np.min(least)), float(np.max(least))})
    attributes = {
        "min_gap": sizes[0] if len(sizes) == 1 else sizes,
        "missing_below_min_gap": int(np.sum(np.asarray(missing))),
    }
    return _about(ratio, "1", "recovery", **attributes)


def ie_clean(p_restored: Any, p_corrupt: Any) -> Any:
    """Indirect effect on the clean answer: what its probability gains by restoring, p_restored - p_corrupt.

    Args:
      p_restored, p_corrupt: probability of the clean answer; DataArrays with equal coordinates, or arrays.

    Source: Cross-modal Information Hubs (arXiv 2605.10815).
    """
    p_restored, p_corrupt = _aligned(p_restored, p_corrupt)
    return _about(p_restored - p_corrupt, "probability", "indirect effect, clean answer", change=1)


def ie_corrupt(p_corrupt: Any, p_restored: Any) -> Any:
    """Indirect effect on the corrupt answer: what its probability loses by restoring, p_corrupt - p_restored.

    Args:
      p_corrupt, p_restored: probability of the corrupt answer; DataArrays with equal coordinates, or arrays.

    Source: Cross-modal Information Hubs (arXiv 2605.10815).
    """
    p_corrupt, p_restored = _aligned(p_corrupt, p_restored)
    return _about(p_corrupt - p_restored, "probability", "indirect effect, corrupt answer", change=1)


def _check(dataset: xr.Dataset, over: str, draws: int, level: float, method: str, adjust: str | None) -> None:
    if over not in dataset.dims:
        dims = ", ".join(map(str, dataset.dims)) or "none"
        raise ValueError(f"bootstrap: expected a dimension {over!r}, got {dims}; pass over=")
    if dataset.sizes[over] < 1:
        raise ValueError(f"bootstrap: expected samples along {over!r}, got 0; sweep some prompts")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: expected a level between 0 and 1, got {level!r}; 0.95 is 95 %")
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise ValueError(f"bootstrap: expected a whole number of draws, at least 1, got {draws!r}; 10000 is usual")
    if method not in METHODS:
        raise ValueError(f"bootstrap: expected a method among {', '.join(METHODS)}, got {method!r}; choose one of them")
    if adjust is not None and adjust not in ADJUSTMENTS:
        raise ValueError(f"bootstrap: expected adjust= {ADJUSTMENTS[0]} or None, got {adjust!r}; choose one of them")


def _is_change_itself(variable: xr.DataArray) -> bool:
    """Whether a variable says how far a cell is from the unedited run: a distance, or a difference."""
    return bool(variable.attrs.get("distance") or variable.attrs.get("change"))


def _is_change(name: str, variables: dict[str, xr.DataArray]) -> bool:
    base = name.removesuffix("_change")
    return base != name and base in variables and f"{base}_clean" in variables


def _averages(name: str, variable: xr.DataArray, over: str, dataset: xr.Dataset) -> bool:
    if name.endswith("_floor") and name.removesuffix("_floor") in dataset:
        return False
    return over in variable.dims and variable.dtype.kind in "iuf" and bool(variable.attrs.get("averages", True))


def _variables(dataset: xr.Dataset, over: str) -> dict[str, xr.DataArray]:
    """What is averaged, with each variable's change from its clean value; distances are changes themselves."""
    variables = {str(name): v for name, v in dataset.data_vars.items() if _averages(str(name), v, over, dataset)}
    for name, variable in list(variables.items()):
        clean = variables.get(f"{name}_clean")
        if clean is None or variable.attrs.get("distance"):
            continue
        if f"{name}_change" in variables:
            raise ValueError(f"bootstrap: {name + '_change'!r} would be written twice; rename that variable")
        # Differences of small integers must not wrap round.
        units = {key: value for key, value in variable.attrs.items() if key != "cell"}  # neither clean nor edited
        change = (variable.astype(np.float64) - clean.astype(np.float64)).drop_attrs(deep=False).assign_attrs(units)
        variables[f"{name}_change"] = change
    return variables


def _averaged(
    name: str, variable: xr.DataArray, over: str, method: Method, level: float, plan: Resampling
) -> tuple[xr.DataArray, Means]:
    """The variable at its first sample, without what is of samples; and the means of all its cells, in its order."""
    ordered = variable.transpose(over, ...)
    of_samples = [key for key, coordinate in ordered.coords.items() if over in coordinate.dims]
    template = ordered.drop_vars(of_samples).isel({over: 0}).drop_attrs()
    values = ordered.to_numpy().astype(np.float64).reshape(ordered.sizes[over], -1)
    if np.isinf(values).any():
        raise ValueError(
            f"bootstrap: expected finite values or NaN, got {int(np.isinf(values).sum())} infinite ones in {name!r}; "
            "make them missing with dataset.where(np.isfinite(dataset))"
        )
    return template, means_of(values, method, level, plan)


def _summary(name: str, variable: xr.DataArray, template: xr.DataArray, means: Means) -> dict[str, xr.DataArray]:
    attributes = {k: v for k, v in variable.attrs.items() if k != "averages"}
    columns = {"": means.value, "_low": means.low, "_high": means.high}
    arrays = {name + suffix: _like(template, column, attributes) for suffix, column in columns.items()}
    return {**arrays, f"{name}_count": _like(template, means.count, {"units": "count"})}


def _like(template: xr.DataArray, column: np.ndarray, attributes: dict[str, Any]) -> xr.DataArray:
    return template.copy(data=column.reshape(template.shape)).assign_attrs(attributes)


def _adjusted(template: xr.DataArray, means: Means, method: Method) -> xr.DataArray:
    """p-values of a change of 0, adjusted over the cells that have one."""
    from scipy.stats import false_discovery_control

    p, family = means.p.copy(), ~np.isnan(means.p)
    if family.any():
        p[family] = false_discovery_control(p[family], method="bh")
    words = f"adjusted p-value of a mean change of 0, Benjamini-Hochberg over {int(family.sum())} cells, {method}"
    return _like(template, p, {"units": "1", "long_name": words})


def _add(columns: dict[str, xr.DataArray], more: dict[str, xr.DataArray], source: str) -> None:
    for name, column in more.items():
        if name in columns:
            raise ValueError(f"bootstrap: {name!r} would be written twice; rename the variable {source!r}")
        columns[name] = column


def _floor(dataset: xr.Dataset, name: str, over: str | None) -> xr.DataArray | None:
    """A variable's noise floor; None where there is none.

    Raises:
      ValueError: it is of samples.
    """
    if name not in dataset or f"{name}_floor" not in dataset:
        return None
    floor = dataset[f"{name}_floor"]
    if over in floor.dims:
        raise ValueError(
            f"bootstrap: expected {name}_floor to be one noise floor of {name}, got one along {over!r}; take the "
            "largest of them, or rename that variable"
        )
    return floor


def _marks(means: xr.DataArray | None, floor: xr.DataArray) -> xr.DataArray | None:
    """Where means are at most the floor in size; None where no floor was measured."""
    if means is None or not bool(floor.notnull().any()):
        return None
    words = "|mean| is at most the noise floor: rounding"
    return (abs(means) <= floor).drop_attrs().assign_attrs(units="1", long_name=words).rename(None)


def _attributes(
    n: int, over: str, plan: Resampling, level: float, method: Method, adjust: str | None
) -> dict[str, Any]:
    drawn = "" if method == "student" else f", {plan.draws} draws, seed {plan.seed}"
    words = {"studentised": "studentised bootstrap", "student": "Student's t", "percentile": "percentile bootstrap"}
    interval = f"{words[method]} over {over}, level {level:g}, n {n}{drawn}"
    if n < MIN_SAMPLES:
        interval = f"none: {n} samples along {over}, at least {MIN_SAMPLES} are needed ({interval})"
    attributes = {"interval": interval, "method": method, "level": level, "samples": n}
    if adjust is not None:
        attributes["adjust"] = (
            f"Benjamini-Hochberg over the cells of each NAME_change, false discovery rate {1 - level:.4g}; cells "
            "without an interval are left out"
        )
    return attributes


def _ratio(numerator: Any, denominator: Any, name: str, least: Any) -> Any:
    sizes = np.asarray(least)
    if not (sizes.size and np.all((sizes > 0) & np.isfinite(sizes))):
        raise ValueError(f"{name}: expected a number above 0, got {least!r}; it is the smallest denominator allowed")
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
            f"expected DataArrays with equal coordinates, got unequal ones ({error}); select the same cells and samples"
        ) from error
    return arrays


def _about(value: Any, units: str, long_name: str, **attributes: Any) -> Any:
    if isinstance(value, xr.DataArray):
        value = value.drop_attrs().assign_attrs(units=units, long_name=long_name, **attributes).rename(None)
    return value
