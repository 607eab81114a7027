"""`avjax.sweep` with a store."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from avjax.grids import Grid, as_cells
from avjax.interventions import Edit
from avjax.metrics import Metric
from avjax.model import Model
from avjax.prompt import Prompt, named_prompts
from avjax.provenance import provenance
from avjax.runs.blocks import Run, Sample, execute
from avjax.runs.identity import digest, metric_json, model_identity
from avjax.runs.rows import Layout, dataset, decoded
from avjax.runs.store import Store
from avjax.sweeping import prepare

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
    several = [metrics] if isinstance(metrics, Metric) else list(metrics)
    named, cells = named_prompts(prompts), as_cells(grid, model.config.decoder)
    fixed = model_identity(model) | {name: settings[name] for name in DECIDING if settings[name] is not None}
    fixed["metrics"] = [metric_json(metric) for metric in several]
    samples = tuple(
        Sample(name=name, digest=prompt.fingerprint.hex(), prompt=lambda p=prompt: p, metrics=several)
        for name, prompt in named.items()
    )
    run = Run(digest=digest(fixed), cells=cells, samples=samples, settings=settings)
    place = Store(store)
    begin(place, model, run, fixed)
    execute(model, run, place, progress=progress)
    return read(place)


def begin(store: Store, model: Model, run: Run, fixed: Mapping[str, Any]) -> None:
    """Begins a run in a store, or goes on with it.

    Raises:
      ValueError: the store holds another one.
    """
    samples = {str(sample.name): sample.digest for sample in run.samples}
    identity = {**fixed, "samples": samples, "grid": run.grid_digest, "block_cells": run.block_cells}
    store.open(identity, {"layout": vars(run.layout), "provenance": provenance(model)})


def read(store: Store) -> xr.Dataset:
    """All that a store holds.

    Raises:
      ValueError: it is no run, or a part is not as it was written.
    """
    layout = Layout.from_json(store.read()["layout"])
    return dataset((decoded(store.load(part)) for part in store.parts().values()), layout)
