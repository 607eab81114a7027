"""`avjax.sweep` with a store."""

import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from etils import epath

from avjax.edits.edits import Edit
from avjax.edits.grids import Grid, as_cells
from avjax.edits.json_forms import to_json
from avjax.metric_checks import as_metrics
from avjax.metrics import Metric
from avjax.model import Model
from avjax.prompts.prompt import TOKEN_COUNTS, Prompt, named_prompts
from avjax.provenance import of_run
from avjax.runs.blocks import CELLS_PER_BLOCK, Run, Sample, execute
from avjax.runs.differences import changed_samples, identity_differences, listed
from avjax.runs.identity import digest, metric_json, model_identity, owner, prompt_digest
from avjax.runs.rows import RUN, SAMPLE, Layout, dataset, decoded
from avjax.runs.store import Store
from avjax.sweeping.plan import prepare

DECIDING = ("executor", "compat", "allow_noop")  # settings that decide numbers; memory changes their rounding


def stored_sweep(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    store: str | os.PathLike[str],
    *,
    progress: bool,
    **settings: Any,
) -> xr.Dataset:
    """Computes the cells that a store does not hold yet, and reads all of them.

    Raises:
      ValueError: as `avjax.sweep`; or the store holds another sweep.
    """
    checks = {name: value for name, value in settings.items() if name != "executor"}
    prepare(model, prompts, grid, metrics, **checks)  # refuses before anything is written
    several = as_metrics(metrics)
    named, cells = named_prompts(prompts), as_cells(grid, model.config.decoder)
    fixed = model_identity(model) | {name: settings[name] for name in DECIDING if settings[name] is not None}
    fixed["metrics"] = [metric_json(metric) for metric in several]
    samples = tuple(
        Sample(name=to_json(name), digest=prompt_digest(prompt), prompt=lambda p=prompt: p, metrics=several)
        for name, prompt in named.items()
    )
    run = Run(digest=digest(fixed), cells=cells, samples=samples, settings=settings, block_cells=CELLS_PER_BLOCK)
    place = Store(store)
    begin(place, model, run, fixed)
    execute(model, run, place, progress=progress)
    return read(place)


def begin(
    store: Store,
    model: Model,
    run: Run,
    fixed: Mapping[str, Any],
    spec: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> None:
    """Begins a run in a store, or goes on with it.

    Args:
      fixed: what decides the values of all samples.
      spec: of the run, as plain values.
      directory: that the specification's files are relative to.

    Raises:
      ValueError: the store holds another one.
    """
    samples = {str(sample.name): sample.digest for sample in run.samples}
    identity = json.loads(json.dumps({**fixed, "grid": run.grid_digest, "block_cells": run.block_cells}))
    about = {"identity": identity, "samples": samples, "layout": vars(run.layout)}
    about["provenance"] = of_run(model, directory or Path(), seed=None if spec is None else spec["seed"])
    if spec is not None and directory is not None:
        about |= {"spec": spec, "directory": str(directory.absolute())}
    found = store.begin(about)
    different = identity_differences(about, found)
    if different and not store.parts() and not store.claims.exists():  # nothing was kept, and nobody works on it
        store.amend(about)
        return
    if [*found["samples"]] != [*samples]:
        different.append(f"the names of its samples (now {listed(samples)}; then {listed(found['samples'])})")
    if not different and found["samples"] != samples:
        different = changed_samples(_changed(store, run, found["samples"]), about, found)
        if not different:
            store.amend({"samples": samples})
    if different:
        raise ValueError(
            f"{store.path}: it holds another run, which differs in {'; '.join(different)}; choose another store, or go "
            "back to what this one was begun with"
        )


def _changed(store: Store, run: Run, before: Mapping[str, str]) -> list[str]:
    """Names of samples whose clip or words changed after cells of them were kept."""
    old = dataclasses.replace(
        run, samples=tuple(dataclasses.replace(s, digest=before[str(s.name)]) for s in run.samples)
    )
    done = store.parts()
    kept = {old.samples[block.sample] for block in old.blocks() if block.name in done}
    now = {str(sample.name): sample.digest for sample in run.samples}
    return [repr(s.name) for s in old.samples if s in kept and now[str(s.name)] != s.digest]


def contents(store: Store) -> Iterator[tuple[epath.Path, bytes]]:
    """Each part and its bytes, in the order of blocks' names.

    Raises:
      ValueError: it is no run, or a part is not as it was written, or of another run.
    """
    about = store.read()
    for part in store.parts().values():
        data = store.load(part)
        if not _is_of(data, about):
            raise ValueError(
                f"{part}: expected cells of this run, got another's; `avjax run SPEC --repair` puts it aside"
            )
        yield part, data


def tables(store: Store) -> Iterator[pa.Table]:
    """The rows of each part.

    Raises:
      ValueError: as `contents`.
    """
    return (decoded(data) for _, data in contents(store))


def unusable(store: Store) -> list[epath.Path]:
    """Parts that are not as they were written, or of another run. Reads all of them."""
    if not (store.path / "run.json").exists():
        return store.damaged()
    about = store.read()
    return store.damaged(lambda data: not _is_of(data, about))


def _is_of(part: bytes, about: Mapping[str, Any]) -> bool:
    """Whether a part says that it is of the run that `about` describes."""
    said = pq.read_schema(io.BytesIO(part)).metadata or {}
    return said.get(RUN, b"").decode() == owner(about, said.get(SAMPLE, b"").decode())


def read(store: Store) -> xr.Dataset:
    """All that a store holds.

    Raises:
      ValueError: as `contents`.
    """
    return dataset(tables(store), Layout.from_json(store.read()["layout"]))


def summary(place: str | os.PathLike[str]) -> dict[str, Any]:
    """What a store holds; each part's checksum is looked at, its columns are not.

    Raises:
      ValueError: as `contents`.
    """
    store = Store(place)
    found = store.read()
    if missing := [key for key in ("layout", "provenance") if key not in found]:
        raise ValueError(f"{store.path}: expected a run, got a run.json without {', '.join(missing)}")
    layout = Layout.from_json(found["layout"])
    parts = [pq.read_metadata(io.BytesIO(data)) for _, data in contents(store)]
    return {
        "store": str(store.path),
        "checkpoint": Path(found["provenance"]["checkpoint"]).name,
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
