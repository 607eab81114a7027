"""Two runs cell by cell: which cells differ, and by how much."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avjax.runs.rows import ABOUT, decoded
from avjax.runs.store import Store, differences

PLACE = ["sample", "cell_index"]  # of a cell in both runs, whatever has become of its key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A value that differs: texts and counts at all, numbers in any bit.

    Attributes:
      index: the cell's place in the grid; -1 is the unedited run.
      absolute: the largest difference of a metric with several values; NaN for texts.
      relative: to the larger of 1 and the value before.
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
      about: what the runs' identities, provenance and clips differ in, in words; "now" is the second.
    """

    cells: int
    equal: int
    differing: tuple[Difference, ...]
    missing: int
    added: int
    about: tuple[str, ...]

    def within(self, tolerance: float) -> bool:
        """Whether all cells are there, texts and counts equal, and numbers within a relative tolerance."""
        return not self.missing and not self.added and all(d.relative <= tolerance for d in self.differing)


def compare(before: Store, after: Store) -> Comparison:
    """What differs between two runs of one specification.

    Raises:
      ValueError: one is no run, or a part is damaged.
    """
    tables = [_table(store) for store in (before, after)]
    metrics = [name for name in tables[0].columns if name in tables[0].attrs["metrics"] and name in tables[1].columns]
    joined: Any = tables[0].merge(tables[1], "outer", on=PLACE, suffixes=("", " after"), indicator=True)
    both = joined[joined["_merge"] == "both"].to_dict("records")
    found = [one for row in both for metric in metrics if (one := _difference(row, metric)) is not None]
    unequal = {(one.sample, one.index) for one in found}
    runs = [store.read() for store in (before, after)]
    first, second = runs
    about = [said for key in ("identity", "provenance") for said in differences(second[key], first[key])]
    about += [f"the clip or words of {said}" for said in differences(second["samples"], first["samples"])]
    return Comparison(
        cells=len(both),
        equal=len(both) - len(unequal),
        differing=tuple(sorted(found, key=lambda d: -d.relative)),
        missing=int((joined["_merge"] == "left_only").sum()),
        added=int((joined["_merge"] == "right_only").sum()),
        about=tuple(about),
    )


def _difference(row: dict[Any, Any], metric: str) -> Difference | None:
    before, after = row[metric], row[f"{metric} after"]
    absolute, relative = _apart(before, after)
    if not relative:
        return None
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


def _apart(first: Any, second: Any) -> tuple[float, float]:
    """Absolute and relative difference; (0, 0) for equal bits, (NaN, inf) for texts that differ."""
    a, b = (np.array(value.tolist() if isinstance(value, np.ndarray) else value) for value in (first, second))
    if a.shape != b.shape or a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu":
        return (0.0, 0.0) if np.array_equal(a, b) else (float("nan"), float("inf"))
    if np.array_equal(a, b, equal_nan=True):
        return 0.0, 0.0
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    if np.isnan(gap).any():
        return float("nan"), float("inf")
    return float(gap.max()), float((gap / np.maximum(1.0, np.abs(a))).max())
