"""Two runs cell by cell: which cells differ, and by how much."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avjax.runs.rows import ABOUT, decoded
from avjax.runs.store import Store, differences

PLACE = ["sample", "cell_index"]  # of a cell in both runs, whatever has become of its key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A value that differs: texts at all, numbers in any bit.

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
    """What became of a run that was repeated.

    Attributes:
      cells: that both have.
      equal: of these, to the bit in all metrics.
      differing: values that are others, the largest first.
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
    tables = [_table(store) for store in (before, after)]
    first_has, second_has = (table.attrs["metrics"] for table in tables)
    metrics = [name for name in first_has if name in second_has]
    unshared = sorted({*first_has} ^ {*second_has})
    joined: Any = tables[0].merge(tables[1], "outer", on=PLACE, suffixes=("", " after"), indicator=True)
    if among is not None:
        joined = joined[[place in among for place in joined[PLACE].itertuples(index=False, name=None)]]
    both = joined[joined["_merge"] == "both"].to_dict("records")
    found = [one for row in both for metric in metrics if (one := _difference(row, metric)) is not None]
    unequal = {(one.sample, one.index) for one in found}
    first, second = (store.read() for store in (before, after))
    about = [said for key in ("identity", "provenance") for said in differences(second[key], first[key])]
    about += [f"the clip or words of {said}" for said in differences(second["samples"], first["samples"])]
    about += [f"the metric {name} (only {'then' if name in first_has else 'now'})" for name in unshared]
    return Comparison(
        cells=len(both),
        equal=len(both) - len(unequal),
        differing=tuple(sorted(found, key=lambda d: -d.relative)),
        missing=int((joined["_merge"] == "left_only").sum()),
        added=int((joined["_merge"] == "right_only").sum()),
        unshared=tuple(unshared),
        about=tuple(about),
    )


def _difference(row: dict[Any, Any], metric: str) -> Difference | None:
    before, after = row[metric], row[f"{metric} after"]
    apart = _apart(before, after)
    if apart is None:
        return None
    absolute, relative = apart
    where = {"sample": row["sample"], "index": row["cell_index"], "cell": row["cell"], "metric": metric}
    return Difference(**where, before=before, after=after, absolute=absolute, relative=relative)


def _table(store: Store) -> pd.DataFrame:
    parts = [decoded(store.load(part)) for part in store.parts().values()]
    if not parts:
        raise ValueError(f"{store.path}: expected cells to compare, got none yet")
    table = pa.concat_tables(parts, promote_options="permissive")
    frame = table.to_pandas()
    frame.attrs["metrics"] = [field.name for field in table.schema if field.metadata and ABOUT in field.metadata]
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
