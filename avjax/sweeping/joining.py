"""Datasets of one sweep that hold some of its samples each, as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.sweeping.floor import pooled_floors, without_floors


def join_samples(parts: Sequence[xr.Dataset], **how: Any) -> xr.Dataset:
    """Datasets as one along `sample`, with one noise floor of all of them.

    A part in which all metrics count alike does not say it for each; where another does, this one says it too. Why
    values are missing is said where it is said of any part.

    Args:
      how: of `xarray.concat`.
    """
    counts = dict.fromkeys(name for part in parts for name in _counts_of(part))
    reasons = {
        name: variable.attrs["missing"]
        for part in parts
        for name, variable in part.data_vars.items()
        if "missing" in variable.attrs
    }
    filled = [_with_counts(without_floors(part), counts, parts) for part in parts]
    joined = xr.concat(filled, "sample", **how)
    for name, reason in reasons.items():
        joined[name].attrs["missing"] = reason
    return joined.assign(pooled_floors(parts))


def without_equal_counts(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset without the counts of single metrics, where all metrics have the same."""
    equal = []
    for name in _counts_of(dataset):
        general = name.removeprefix(f"{dataset[name].attrs['counts_of']}_")
        alike = [n for n in _counts_of(dataset) if n.endswith(f"_{general}")]
        if all(np.array_equal(dataset[n].values, dataset[general].values) for n in alike):
            equal.append(name)
    return dataset.drop_vars(equal)


def _counts_of(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name, variable in dataset.data_vars.items() if "counts_of" in variable.attrs]


def _with_counts(part: xr.Dataset, names: Sequence[str] | dict[str, None], parts: Sequence[xr.Dataset]) -> xr.Dataset:
    missing = {}
    for name in names:
        if name not in part:
            attributes = next(other[name].attrs for other in parts if name in other)
            missing[name] = part[name.removeprefix(f"{attributes['counts_of']}_")].assign_attrs(attributes)
    return part.assign(missing)
