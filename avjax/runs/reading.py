"""Reading what a store holds."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from etils import epath

from avjax.prompts.prompt import TOKEN_COUNTS
from avjax.runs.identity import owner
from avjax.runs.rows import RUN, SAMPLE, CellLayout, dataset, decoded
from avjax.runs.store import Store


def contents(store: Store) -> Iterator[tuple[epath.Path, bytes]]:
    """Each part and its bytes, in the order of blocks' names.

    Raises:
      ValueError: it is no run, or a part is not as it was written, or of another run.
    """
    content = store.read()
    for part in store.parts().values():
        data = store.load(part)
        if not _is_of(data, content):
            raise ValueError(
                f"{part}: expected cells of this run, got another run's; `avjax run SPEC --repair` puts it aside"
            )
        yield part, data


def tables(store: Store) -> Iterator[pa.Table]:
    """The rows of each part.

    Raises:
      ValueError: as `contents`.
    """
    return (decoded(data) for _, data in contents(store))


def unusable(store: Store) -> list[epath.Path]:
    """Parts that are damaged or of another run. Reads all of them."""
    if not (store.path / "run.json").exists():
        return store.damaged()
    content = store.read()
    return store.damaged(lambda data: not _is_of(data, content))


def _is_of(part: bytes, about: Mapping[str, Any]) -> bool:
    """Whether a part says that it is of the run that `about` describes."""
    metadata = pq.read_schema(io.BytesIO(part)).metadata or {}
    return metadata.get(RUN, b"").decode() == owner(about, metadata.get(SAMPLE, b"").decode())


def read(store: Store) -> xr.Dataset:
    """All that a store holds.

    Raises:
      ValueError: as `contents`.
    """
    return dataset(tables(store), CellLayout.from_json(store.read()["layout"]))


def summary(place: str | os.PathLike[str]) -> dict[str, Any]:
    """What a store holds; each part's checksum is looked at, its columns are not.

    Raises:
      ValueError: as `contents`.
    """
    store = Store(place)
    content = store.read()
    if missing := [key for key in ("layout", "provenance") if key not in content]:
        raise ValueError(f"{store.path}: expected a run, got a run.json without {', '.join(missing)}")
    layout = CellLayout.from_json(content["layout"])
    parts = [pq.read_metadata(io.BytesIO(data)) for _, data in contents(store)]
    return {
        "store": str(store.path),
        "checkpoint": Path(content["provenance"]["checkpoint"]).name,
        "samples": len(layout.samples),
        "cells": (len(layout.cells) + 1) * len(layout.samples),
        "done": sum(part.num_rows for part in parts),
        "tokens": _token_ranges(parts),
        "failed": len(store.failures()),
    }


def _token_ranges(parts: Sequence[pq.FileMetaData]) -> dict[str, list[int]]:
    """The fewest and the most tokens of each modality that a prompt has, from the statistics of the parts' columns."""
    ranges: dict[str, list[int]] = {}
    for part in parts:
        for group in map(part.row_group, range(part.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema in TOKEN_COUNTS:
                    modality, statistics = column.path_in_schema.removesuffix("_tokens"), column.statistics
                    ends = [*ranges.get(modality, []), statistics.min, statistics.max]
                    ranges[modality] = [min(ends), max(ends)]
    return ranges
