"""Cells as rows of a table, and rows as a labelled dataset again.

A row holds one cell of one sample: `cell_key`, `sample`, the coordinates of the grid's axes, `cell` (what it does, in
words), `cell_index` (its place in the grid; -1 is the unedited run, which has no coordinates), the prompt's tokens of
each modality, what it touched, and a column per metric. `NAME_floor` of the unedited run's row is what was measured of
the metric's noise: its root mean square, and from how many draws. A metric with dimensions of its own is a list, of
lists where it has several.
"""

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from avjax.edits.grids import CLEAN, Cells
from avjax.edits.json_forms import to_json
from avjax.prompts.prompt import TOKEN_COUNTS
from avjax.sweeping.floor import Noise, floor
from avjax.sweeping.joining import without_equal_counts
from avjax.sweeping.names import CELL, COUNTS

ABOUT = b"avjax"  # in a field's metadata: units, dimensions and the rest of its attributes
SAMPLE, RUN = b"avjax.sample", b"avjax.run"  # in a part's metadata: what it is of
NOISE = "noise_draws"  # among attributes: the column is root mean square and number, in the row of the unedited run
OWN = ("cell_key", "cell_index")  # columns that are no part of the dataset


@dataclasses.dataclass(frozen=True)
class CellLayout:
    """A run's dataset before its values, as plain values.

    Attributes:
      samples: their names.
      coordinates: of each axis of the grid.
      notes: by coordinate name, the axis and what else is known of its points.
      cells: what each cell does, in row-major order of the axes.
    """

    samples: list[Any]
    coordinates: dict[str, list[Any]]
    notes: dict[str, tuple[str, list[Any]]]
    cells: list[str]

    @classmethod
    def of(cls, samples: Iterable[Any], cells: Cells) -> "CellLayout":
        if taken := sorted({*cells.dims, *cells.notes} & {*OWN}):
            raise ValueError(f"grid: the axis name {taken[0]!r} is also a column of the store; pass another name=")
        names = to_json(list(samples))
        if len({type(name) for name in names}) > 1:
            raise ValueError(f"samples: expected names that are all text or all numbers, got {names[:5]}")
        return cls(
            samples=names,
            coordinates={dim: to_json(cells.coordinates[dim]) for dim in cells.dims},
            notes={note: (dim, to_json(values)) for note, (dim, values) in cells.notes.items()},
            cells=[cell.name for cell in cells.cells],
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CellLayout":
        notes = {name: (dim, values) for name, (dim, values) in content["notes"].items()}
        return cls(content["samples"], content["coordinates"], notes, content["cells"])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.coordinates.values()))

    def columns(self, indices: np.ndarray) -> dict[str, pa.Array]:
        """The coordinates of cells; those of the unedited run are null."""
        if not self.coordinates:
            return {}
        edited = indices != CLEAN
        places = np.unravel_index(np.maximum(indices, 0), self.shape)
        by_dim = dict(zip(self.coordinates, places, strict=True))
        values = {dim: self.coordinates[dim] for dim in self.coordinates}
        columns = {dim: (dim, values[dim]) for dim in values} | self.notes
        return {
            name: _column(listed, [i if there else None for i, there in zip(by_dim[dim], edited, strict=True)])
            for name, (dim, listed) in columns.items()
        }


def _column(listed: Sequence[Any], places: Sequence[int | None]) -> pa.Array:
    """Some of a coordinate's values; of one type in every part, text where they are mixed."""
    kinds = {type(value) for value in listed}
    if kinds == {int, float}:
        listed = [float(value) for value in listed]
    elif len(kinds) > 1:
        listed = [str(value) for value in listed]
    whole = pa.array(list(listed))
    return whole.take(pa.array(places, pa.int64()))


def encoded(
    dataset_of_block: xr.Dataset,
    layout: CellLayout,
    sample: Any,
    indices: np.ndarray,
    keys: Sequence[str],
    clean: bool,
    of_run: str = "",
) -> bytes:
    """A part: Parquet of the cells of one block.

    Args:
      dataset_of_block: of `avjax.sweep` over a list of variants on one sample.
      indices: int [n], the variants' places in the grid.
      keys: of the rows, the unedited one first where there is one.
      clean: whether the unedited run is a row too.
      of_run: see `avjax.runs.identity.owner`.
    """
    rows = np.concatenate([[CLEAN], indices]) if clean else np.asarray(indices)
    columns: dict[str, pa.Array] = {
        "cell_key": pa.array(list(keys)),
        "sample": pa.array([sample] * len(rows)),
        **layout.columns(rows),
        CELL: pa.array(["clean" if i == CLEAN else layout.cells[i] for i in rows]),
        "cell_index": pa.array(rows.astype(np.int32)),
        **{
            name: pa.array(np.full(len(rows), int(dataset_of_block[name].item()), np.int32))
            for name in TOKEN_COUNTS
            if name in dataset_of_block
        },
    }
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    one = dataset_of_block.isel(sample=0)
    for name, variable in one.data_vars.items():
        if f"{name}_clean" not in one.data_vars and not _is_count(name, variable.attrs):
            continue  # itself of the unedited run
        counts = _is_count(name, variable.attrs)
        values, unedited = variable.values, 0 if counts else one[f"{name}_clean"].values
        if clean:
            values = np.concatenate(
                [np.broadcast_to(np.asarray(unedited, values.dtype), values.shape[1:])[None], values]
            )
        about = {"dims": list(variable.dims[1:]), **variable.attrs}
        columns[str(name)] = _nested(values)
        fields.append(pa.field(str(name), columns[str(name)].type, metadata={ABOUT: json.dumps(about)}))
        if not counts and variable.attrs.get("averages", True) and values.dtype.kind in "fiu":
            measured = one[f"{name}_floor"].attrs if clean and f"{name}_floor" in one else None
            columns[f"{name}_floor"], field = _noise(f"{name}_floor", variable.attrs["units"], measured, len(rows))
            fields.append(field)
    said = {ABOUT: json.dumps(dataset_of_block.attrs), SAMPLE: str(sample), RUN: of_run}
    table = pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, said))
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def decoded(part: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(part))


def dataset(tables: Iterable[pa.Table], layout: CellLayout) -> xr.Dataset:
    """The dataset of rows, as `avjax.sweep` gives it. What has no row yet is NaN, -1 or empty, and `done` is False.

    What parts say differently of a variable is left out of its attributes.
    """
    place = {name: i for i, name in enumerate(layout.samples)}
    shape = (len(layout.cells), len(layout.samples))
    done = np.zeros((len(layout.cells) + 1, len(layout.samples)), bool)
    values: dict[str, np.ndarray] = {}
    about: dict[str, dict[str, Any]] = {}
    noise: dict[str, list[Noise]] = {}
    attributes: dict[str, Any] | None = None
    counts = {name: np.full(len(layout.samples), -1) for name in TOKEN_COUNTS}
    for table in tables:
        rows = table["cell_index"].to_numpy()
        samples = np.array([place[name] for name in table["sample"].to_pylist()])
        done[rows, samples] = True  # CLEAN is the last row
        for name, by_sample in counts.items():
            if name in table.column_names:  # parts of older versions do not say
                by_sample[samples] = table[name].to_numpy()
        for field in table.schema:
            if not field.metadata or ABOUT not in field.metadata:
                continue
            about[field.name] = _agreed(about.get(field.name), json.loads(field.metadata[ABOUT]))
            if NOISE in about[field.name]:
                parts = [Noise(rms=pair[0], draws=int(pair[1])) for pair in table[field.name].to_pylist() if pair]
                noise.setdefault(field.name, []).extend(parts)
                continue
            array = _flat(table[field.name])
            if field.name not in values:
                values[field.name] = _empty((shape[0] + 1, shape[1], *array.shape[1:]), array.dtype)
            values[field.name][rows, samples] = array
        attributes = _agreed(attributes, json.loads(table.schema.metadata[ABOUT]))
    for name, metric in [(name, own.get("counts_of")) for name, own in about.items()]:
        if metric is not None:  # parts in which all metrics count alike do not say it again
            values[name] = np.where(values[name] < 0, values[name.removeprefix(f"{metric}_")], values[name])
    dims = (*layout.coordinates, "sample")
    variables: dict[str, Any] = {}
    for name, array in values.items():
        own = {k: v for k, v in about[name].items() if k != "dims"}
        inner = about[name]["dims"]
        counted = _is_count(name, own)
        edited = own if counted else own | {"cell": "edited"}
        variables[name] = ((*dims, *inner), array[:-1].reshape(*layout.shape, *array.shape[1:]), edited)
        if not counted:
            unedited = {k: v for k, v in own.items() if k != "missing"} | {"cell": "clean"}
            variables[f"{name}_clean"] = (("sample", *inner), array[-1], unedited)
    for name, parts in noise.items():
        if not parts:
            continue
        variables[name] = floor(parts, about[name]["units"], about[name].get("how", ""))
    if not done.all():
        variables["done"] = (dims, done[:-1].reshape(*layout.shape, -1), {"averages": 0})
    coordinates: dict[str, Any] = {**layout.coordinates, "sample": layout.samples}
    coordinates |= {name: ("sample", by_sample) for name, by_sample in counts.items()}
    coordinates[CELL] = (tuple(layout.coordinates), np.array(layout.cells, object).reshape(layout.shape))
    coordinates |= {note: (dim, values) for note, (dim, values) in layout.notes.items()}
    return without_equal_counts(xr.Dataset(variables, coordinates, attributes or {}))


def _noise(name: str, units: str, measured: Mapping[str, Any] | None, num_rows: int) -> tuple[pa.Array, pa.Field]:
    """The column of a noise floor, which every part has; what was measured is in the first row, the unedited run's."""
    first = [] if measured is None else [[measured["rms"], measured["draws"]]]
    column = pa.array([*first, *[None] * (num_rows - len(first))], pa.list_(pa.float64(), 2))
    attributes = {"dims": [], NOISE: 1, "units": units, "averages": 0} | (
        {} if measured is None else {"how": measured["how"]}
    )
    return column, pa.field(name, column.type, metadata={ABOUT: json.dumps(attributes)})


def _is_count(name: Any, attributes: Mapping[str, Any]) -> bool:
    """Whether a variable says how much a cell touches; the unedited run touches nothing."""
    return name in COUNTS or "counts_of" in attributes


def _agreed(before: dict[str, Any] | None, said: dict[str, Any]) -> dict[str, Any]:
    """What two parts say alike; and what either says of missing values and of noise."""
    if before is None:
        return said
    reasons = {k: v for about in (before, said) for k, v in about.items() if k in ("missing", "how")}
    return {k: v for k, v in before.items() if k in said and said[k] == v} | reasons


def is_metric(field: pa.Field) -> bool:
    """Whether a column holds values of a metric."""
    attributes = json.loads((field.metadata or {}).get(ABOUT, b"{}"))
    return bool(attributes) and NOISE not in attributes and "counts_of" not in attributes


def flattened(table: pa.Table) -> pa.Table:
    """Rows for other programs: each with its metrics' noise floors as numbers, and with counts of every metric."""
    for index, field in enumerate(table.schema):
        described = json.loads((field.metadata or {}).get(ABOUT, b"{}"))
        if NOISE in described:
            noise = [Noise(rms=pair[0], draws=int(pair[1])) for pair in table[field.name].to_pylist() if pair]
            values = pa.array(np.full(len(table), floor(noise, described["units"], "")[1]))
        elif "counts_of" in described:
            general = table[field.name.removeprefix(f"{described['counts_of']}_")]
            pairs = zip(table[field.name].to_pylist(), general.to_pylist(), strict=True)
            values = pa.array([most if own is None else own for own, most in pairs], field.type)
        else:
            continue
        attributes = {k: v for k, v in described.items() if k != NOISE}
        field = pa.field(field.name, values.type, metadata={ABOUT: json.dumps(attributes)})
        table = table.set_column(index, field, values)
    return table


def _nested(values: np.ndarray) -> pa.Array:
    """[rows, ...] as a column of lists of lists."""
    flat = values.reshape(-1)
    column = pa.array(flat.tolist(), pa.string()) if values.dtype.kind == "O" else pa.array(flat)
    for length in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return column


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """The column as [rows, ...]."""
    array, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    if pa.types.is_string(array.type):
        return np.array(array.to_pylist(), object).reshape(shape)
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if dtype.kind in "bu":
        raise ValueError(
            f"metric: expected a dtype that can mark missing values, got {dtype}; return floats or signed integers"
        )
    return np.full(shape, np.nan if dtype.kind == "f" else -1, dtype)
