"""Two runs cell by cell: which cells differ, and by how much."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avjax.runs.differences import changed_samples, identity_differences, plain_differences
from avjax.runs.reading import tables as tables_of
from avjax.runs.rows import is_metric
from avjax.runs.store import Store

PLACE = ["sample", "cell_index"]  # of a cell in both runs, whatever has become of its key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A value that differs: a text, or a number in any bit.

    Attributes:
      index: the cell's place in the grid; -1 is the unedited run.
      absolute: the largest difference of a metric with several values; NaN where there is none, as of texts.
      relative: to the larger of 1 and the value before; infinite where there is no number to tell.
    """

    sample: Any
    index: int
    cell: str
    metric: str
    before: Any
    after: Any
    absolute: float
    relative: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a repeated run compares with the first.

    Attributes:
      cells: that both have.
      equal: of these, to the bit in all metrics.
      differing: values that differ, the largest difference first.
      missing, added: cells that only the first or the second has.
      unshared: metrics that only one of them has.
      about: what the runs' identities, provenance and clips differ in, in words; "now" is the second.
    """

    cells: int
    equal: int
    differing: tuple[Difference, ...]
    missing: int
    added: int
    unshared: tuple[str, ...]
    about: tuple[str, ...]

    def within(self, tolerance: float) -> bool:
        """Whether all cells and metrics are there, texts equal, and numbers within a relative tolerance."""
        whole = not (self.missing or self.added or self.unshared)
        return whole and all(d.relative <= tolerance for d in self.differing)


def compare(before: Store, after: Store, *, among: Collection[tuple[Any, int]] | None = None) -> Comparison:
    """What differs between two runs of one specification.

    Args:
      among: samples and places in the grid (-1 is the unedited run), such as those of a share; by default all.

    Raises:
      ValueError: one is no run, or a part is damaged.
    """
    tables: list[Any] = [_table(store) for store in (before, after)]
    first_has, second_has = (table.attrs["metrics"] for table in tables)
    metrics = [name for name in first_has if name in second_has]
    unshared = sorted({*first_has} ^ {*second_has})
    if among is not None:
        tables = [table[[place in among for place in _places(table)]] for table in tables]
    first_places, second_places = (set(_places(table)) for table in tables)
    both: Any = tables[0].merge(tables[1], on=PLACE, suffixes=("", " after"))
    differences = [_difference(both, row, metric) for metric in metrics for row in _unequal(both, metric)]
    unequal = {(one.sample, one.index) for one in differences}
    first, second = (store.read() for store in (before, after))
    changes = identity_differences(second, first)
    origins = [dict(run["provenance"]) for run in (second, first)]
    if any(change.startswith("checkpoint") for change in changes):  # with its place
        origins = [{key: value for key, value in origin.items() if key != "checkpoint"} for origin in origins]
    changes += plain_differences(origins[0], origins[1])
    digests = [run["samples"] for run in (first, second)]
    changes += changed_samples([n for n in digests[0] | digests[1] if digests[0].get(n) != digests[1].get(n)])
    changes += [f"the metric {name} (only in the {'earlier' if name in first_has else 'new'} run)" for name in unshared]
    return Comparison(
        cells=len(both),
        equal=len(both) - len(unequal),
        differing=tuple(sorted(differences, key=lambda d: -d.relative)),
        missing=len(first_places - second_places),
        added=len(second_places - first_places),
        unshared=tuple(unshared),
        about=tuple(changes),
    )


def _places(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name] for name in PLACE), strict=True))


def _unequal(both: pd.DataFrame, metric: str) -> np.ndarray:
    """The rows in which a metric is not the same to the bit."""
    before, after = both[metric].to_numpy(), both[f"{metric} after"].to_numpy()
    if before.dtype.kind == "O" or after.dtype.kind == "O":  # texts, and metrics of several values
        apart = (type(a) is not str or a != b for a, b in zip(before, after, strict=True))  # most are equal texts
        rows = np.flatnonzero(np.fromiter(apart, bool, len(both)))
        return rows[[_apart(before[row], after[row]) is not None for row in rows]]
    return np.flatnonzero(~_same_bits(before, after))


def _difference(both: pd.DataFrame, row: int, metric: str) -> Difference:
    before, after, sample, index, cell = (both[name].iat[row] for name in (metric, f"{metric} after", *PLACE, "cell"))
    apart = _apart(before, after)
    assert apart is not None
    where = {"sample": sample, "index": int(index), "cell": cell, "metric": metric}
    return Difference(**where, before=before, after=after, absolute=apart[0], relative=apart[1])


def _table(store: Store) -> pd.DataFrame:
    parts = [*tables_of(store)]
    if not parts:
        raise ValueError(f"{store.path}: expected cells to compare, got none yet")
    table = pa.concat_tables(parts, promote_options="permissive")
    frame = table.to_pandas()
    frame.attrs["metrics"] = [field.name for field in table.schema if is_metric(field)]
    return frame


def _apart(first: Any, second: Any) -> tuple[float, float] | None:
    """Absolute and relative difference; None for equal bits, (NaN, inf) for texts that differ."""
    a, b = (np.array(value.tolist() if isinstance(value, np.ndarray) else value) for value in (first, second))
    if a.shape != b.shape or a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu":
        return None if np.array_equal(a, b) else (float("nan"), float("inf"))
    differ = ~_same_bits(a, b)  # what both lack, or have as infinite, leaves the others their difference
    if not differ.any():
        return None
    a, b = a[differ], b[differ]
    whole = a.dtype.kind in "iu" and b.dtype.kind in "iu"
    kind = object if whole else np.float64  # integers beyond 2**53 have no float of their own
    gap = np.abs(a.astype(kind) - b.astype(kind)).astype(np.float64)
    if not np.isfinite(gap).all():
        return float(gap.max()), float("inf")
    return float(gap.max()), float((gap / np.maximum(1.0, np.abs(a))).max())


def _same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each entry; 0 and -0 are two numbers, NaN is one."""
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return a == b
    return ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))
