"""Means as plain text, those within the noise floor marked."""

import numpy as np
import xarray as xr

MARK = "~"


def mean_table(values: xr.DataArray, below: xr.DataArray | None = None) -> str:
    """Rows and columns of an array: its first dimension in columns, the others in rows.

    Args:
      below: where a mean is within the noise floor, as of `avjax.statistics.below_floor`; those end with `MARK`.
    """
    if below is not None and bool(below.any()):
        values = xr.apply_ufunc(_marked, *xr.broadcast(values, below), vectorize=True, output_dtypes=[object])
    if not values.dims:
        return f"  {_text(values.item())}"
    if len(values.dims) == 1:
        return values.to_pandas().round(4).to_string()
    # pandas would sort windows such as 0:4 and 10:14 as text.
    first, *others = map(str, values.dims)
    columns = values.stack(row=others) if len(others) > 1 else values.rename({others[0]: "row"})
    frame = columns.transpose("row", first).to_pandas()
    return frame.round(4).to_string()


def floor_line(below: xr.DataArray | None, floor: xr.DataArray | None, units: str = "") -> str:
    """What the mark means, in a line under the table; empty where nothing is marked."""
    if below is None or floor is None or not bool(below.any()):
        return ""
    size = f"{float(floor.max()):.2g} {units}".strip()
    return f"{MARK} changes the clean run by no more than the noise floor, {size}: rounding, not an effect"


def row_of(values: xr.DataArray, below: xr.DataArray | None, digits: int, width: int) -> str:
    """Numbers in columns of a width, a mark or a space behind each; `below` has the dimensions of `values`."""
    marks = np.zeros(values.shape, bool) if below is None else below.transpose(*values.dims).values
    pairs = zip(values.values, marks, strict=True)
    return "".join(f"{value:{width - 1}.{digits}f}{MARK if mark else ' '}" for value, mark in pairs)


def _marked(value: float, below: bool) -> str:
    """Padded, so that digits stand under digits."""
    return _text(value) + (MARK if below else " ")


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else "NaN" if np.isnan(value) else f"{value:.4f}"
