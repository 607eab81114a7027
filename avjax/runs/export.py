"""Stores as one file, and several stores of one run as one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from avjax.runs import captures
from avjax.runs.differences import changed_samples, identity_differences
from avjax.runs.reading import contents, tables
from avjax.runs.rows import CellLayout, dataset, flattened
from avjax.runs.store import Store

ENDINGS = (".csv", ".parquet", ".nc", ".zarr")


def export(store: Store, out: Path, *, partial: bool = False) -> str:
    """Writes all cells; what was written, in words.

    Args:
      partial: write what an unfinished run holds.

    Raises:
      ValueError: the ending is unknown, a part is damaged, the run is unfinished, or there is nothing to write.
      FileExistsError: `out` is there already.
    """
    if out.suffix not in ENDINGS:
        raise ValueError(f"{out}: expected {', '.join(ENDINGS)}, got {out.suffix or 'no ending'}")
    if out.exists():
        raise FileExistsError(f"{out}: it already exists; choose another name")
    parts = [*tables(store)]
    if not parts:
        raise ValueError(f"{store.path}: expected cells to write, got none yet")
    layout = CellLayout.from_json(store.read()["layout"])
    done, count = sum(map(len, parts)), (len(layout.cells) + 1) * len(layout.samples)
    if done < count and not partial:
        failed = len(store.failures())
        clips = f", and {failed:,} clip{'' if failed == 1 else 's'} failed" if failed else ""
        raise ValueError(
            f"{store.path}: expected a finished run, got {done:,} of {count:,} cells{clips}; run it again to "
            "continue, or write the cells so far with --partial (in Python partial=True)"
        )
    written = _written(out, parts, layout)
    return written if done == count else f"{written}, of an unfinished run: {done:,} of {count:,} cells"


def _written(out: Path, parts: list[pa.Table], layout: CellLayout) -> str:
    """Writes rows, or the dataset, by the file's ending; how many, in words."""
    if out.suffix in (".nc", ".zarr"):
        stored = dataset(parts, layout)
        if out.suffix == ".nc":
            stored.to_netcdf(out, engine="h5netcdf")
        else:
            _zarr(stored, out)
        return " x ".join(f"{size:,} {dim}" for dim, size in stored.sizes.items())
    table = flattened(_in_order(pa.concat_tables(parts, promote_options="permissive"), layout.samples))
    if out.suffix == ".parquet":
        pq.write_table(table, out)
    else:
        frame = table.to_pandas()
        for name in (field.name for field in table.schema if pa.types.is_nested(field.type)):
            frame[name] = [json.dumps(value) for value in table[name].to_pylist()]
        frame.to_csv(out, index=False)
    return f"{len(table):,} rows"


def _in_order(table: pa.Table, samples: Sequence[Any]) -> pa.Table:
    """Rows by sample and place in the grid, the unedited run first."""
    place = {name: i for i, name in enumerate(samples)}
    first = np.array([place[name] for name in table["sample"].to_pylist()], int)
    return table.take(pa.array(np.lexsort([table["cell_index"].to_numpy(), first])))


def _zarr(dataset: xr.Dataset, out: Path) -> None:
    """Format 2, whose texts every reader knows; they have one width each."""
    texts = {name: array.astype(str) for name, array in dataset.variables.items() if array.dtype.kind == "O"}
    dataset = dataset.assign({name: (array.dims, array.data, array.attrs) for name, array in texts.items()})
    dataset.to_zarr(out, mode="w-", zarr_format=2)


def merge(stores: Sequence[Store], into: Store) -> int:
    """Copies the parts of stores of one run into one, with what was captured; how many were new.

    Raises:
      ValueError: they are not of one run, or a part is damaged.
    """
    first = stores[0].read()
    for store in stores[1:]:
        _same(first, store)
    into.begin({key: value for key, value in first.items() if key != "format"})
    _same(first, into)
    added = 0
    for store in stores:
        for part, data in contents(store):
            block = part.name.split(".")[0]
            with into.claimed(block) as claim:
                if claim is not None:
                    captures.copy(block, store, into)
                    into.write(claim, data)
                    added += 1
        for sample, failure in store.failures().items():
            into.report_failure(sample, failure)
    into.tidy()
    return added


def _same(first: dict, store: Store) -> None:
    other = store.read()
    different = identity_differences(other, first, ("here", "in the first"))
    if [*other["samples"]] != [*first["samples"]]:
        different.append("the names of its samples")
    else:
        different += changed_samples([n for n in other["samples"] if other["samples"][n] != first["samples"][n]])
    if different:
        raise ValueError(
            f"{store.path}: expected a store of the same run, got one that differs in {'; '.join(different)}; merge "
            "stores of one specification"
        )
