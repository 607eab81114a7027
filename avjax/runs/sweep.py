"""`sweep`: every cell of a grid on every prompt, reduced to metrics, in memory or in a store."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from avjax.edits.edits import Edit
from avjax.edits.grids import Grid, as_cells
from avjax.edits.identities import refuse_identities
from avjax.edits.json_forms import to_json
from avjax.engine.generate import Executor, checked_executor
from avjax.metrics import Metric
from avjax.model import Model, refuse_no_model
from avjax.prompts.compat import Compat
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.runs.begin import begin
from avjax.runs.execute import execute
from avjax.runs.identity import digest, metric_json, model_identity, prompt_digest
from avjax.runs.reading import read
from avjax.runs.run import CELLS_PER_BLOCK, Sample, StoredRun
from avjax.runs.store import Store
from avjax.sweeping.compute import computed
from avjax.sweeping.joining import without_equal_counts
from avjax.sweeping.metric_checks import as_metrics
from avjax.sweeping.prepare import prepare
from avjax.sweeping.slices import slices_here

DECIDING = ("executor", "compat", "allow_noop")  # settings that decide numbers; memory changes their rounding


def sweep(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    store: str | os.PathLike[str] | None = None,
    executor: Executor = "replay",
    memory_bytes: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    floor: bool = True,
    progress: bool = True,
) -> xr.Dataset:
    """Every cell of a grid on every prompt.

    Args:
      prompts: one, several, or several by name.
      grid: `avjax.grid(...)`; or an edit, a rule string, or a list of variants, whose dimension is then `variant`.
      metrics: of `avjax.metrics`, or your own.
      store: a directory, local or of an object store (gs://...), that keeps cells as they are done: a sweep that was
        stopped goes on where it was, and several processes share it. See `avjax.runs`.
      executor: "replay" computes only what each cell changes; "reference" runs a full forward pass per cell. Both
        give the same to rounding.
      memory_bytes: what the sweep may use beside the parameters; by default half of what the device has free.
      compat, allow_noop: see `avjax.run`. With `allow_noop`, what a cell's edits cannot reach of a metric is missing.
      floor: measure the noise floor. In float32 that takes one cell more of each sample; in narrower types a few of the
        samples, spread over all, run a handful of their cells again with float32 activations.
      progress: show a bar with rate and time left when it takes long.

    Returns:
      A dataset whose dimensions are the grid's axes and `sample`, with a variable per metric; beside each the unedited
      run's as `NAME_clean`, and `NAME_floor`, the noise floor: changes of at most its size are rounding. `edges`,
      `positions` and `blocked_queries` say what each cell touched, `cell` what it does; where metrics differ, because
      they are fed other continuations, `NAME_edges` and so on say it for each.

    Raises:
      ValueError: something does not fit, such as a store that holds another sweep, or an edit that cannot reach what a
        metric reads; all of it is found before anything is compiled.
      OverflowError: a cell's activations grew beyond float32; the cell is named.
    """
    refuse_no_model(model)
    settings = {"executor": checked_executor(executor), "memory_bytes": memory_bytes, "compat": compat}
    settings |= {"allow_noop": allow_noop, "floor": floor, "progress": progress}
    refuse_identities(grid, allow_noop)
    if store is None:
        return without_equal_counts(computed(model, prompts, grid, metrics, **settings))
    return _stored_sweep(model, prompts, grid, metrics, store, **settings)


def _stored_sweep(
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
    whole = prepare(model, prompts, grid, metrics, **checks)  # refuses before anything is written
    several = as_metrics(metrics)
    named, cells = named_prompts(prompts), as_cells(grid, model.config.decoder)
    fixed = model_identity(model) | {name: settings[name] for name in DECIDING if settings[name] is not None}
    fixed["metrics"] = [metric_json(metric) for metric in several]
    samples = tuple(
        Sample(name=to_json(name), digest=prompt_digest(prompt), prompt=lambda p=prompt: p, metrics=several)
        for name, prompt in named.items()
    )
    run = StoredRun(digest=digest(fixed), cells=cells, samples=samples, settings=settings, block_cells=CELLS_PER_BLOCK)
    opened = Store(store)
    begin(opened, model, run, fixed)
    if len(cells.cells) > CELLS_PER_BLOCK or slices_here(model)[0].count > 1:
        whole = None  # blocks are prepared one by one, and its sessions would stay
    execute(model, run, opened, progress=progress, prepared=whole)
    return read(opened)
