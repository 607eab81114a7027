"""Sweeps in which every sample has metrics of its own: what is heard differs from clip to clip."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from avjax.edits.edits import Edit
from avjax.edits.grids import Grid, as_cells
from avjax.edits.identities import refuse_identities
from avjax.engine.generate import checked_executor
from avjax.metrics import Metric
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, common_order, named_prompts, per_sample, token_counts
from avjax.runs.sweep import sweep
from avjax.sweeping.compute import prepare_slices
from avjax.sweeping.floor import measured_samples
from avjax.sweeping.joining import join_samples, without_equal_counts

Prompts = Prompt | Sequence[Prompt] | Mapping[Any, Prompt]
Metrics = Metric | Sequence[Metric]
MetricsBySample = Metrics | Mapping[Any, Metrics]


def sweep_samples(
    model: Model,
    prompts: Prompts,
    grid: Grid | Edit | str | Sequence[Any],
    metrics: MetricsBySample,
    *,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """`avjax.sweep`, where metrics may be given by sample.

    Args:
      metrics: for all samples, or by sample, such as `{name: LogitDiff(heard, suggested)}`; those of all samples have
        the same names. Metrics of one kind share a program, whatever their answers.
      options: of `avjax.sweep`.

    Raises:
      ValueError: a sample has no metrics, or metrics of other names; or several samples, each with its metrics, are to
        share a store.
    """
    named = named_prompts(prompts)
    if not isinstance(metrics, Mapping):
        return sweep(model, named, grid, metrics, progress=progress, **options)
    by_sample = metrics_of(named, metrics)
    refuse_identities(grid, options.get("allow_noop", False))
    if (store := options.pop("store", None)) is not None and len(named) == 1:
        [given] = by_sample.values()
        return sweep(model, named, grid, given, store=store, progress=progress, **options)
    if store is not None:
        raise ValueError(
            "store: expected one metric for all samples, got metrics by sample; use a specification instead, whose "
            "answers may contain {labels} of each clip"
        )
    executor = checked_executor(options.pop("executor", "replay"))
    measured = measured_samples(model, [*named], len(as_cells(grid, model.config.decoder).cells))
    prepared = {
        name: prepare_slices(
            model, {name: prompt}, grid, by_sample[name], **{"floor": name in measured, **options}
        )  # refuses before anything runs
        for name, prompt in named.items()
    }
    parts = []
    with Progress("sweep", len(named), "samples", enabled=progress) as bar:
        for name in named:
            parts.append(without_equal_counts(prepared.pop(name).compute(executor=executor, progress=False)))
            bar.advance(1)
    return joined(parts)


def with_prompts(dataset: xr.Dataset, prompts: Mapping[Any, Prompt]) -> xr.Dataset:
    """The dataset with what its samples' prompts hold: tokens of each modality, and where their words stand."""
    order = common_order(prompts.values())
    return dataset.assign_coords(token_counts(prompts)).assign_attrs({} if order is None else {"order": order})


def joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets of one sample each, as one; what differs between samples is in no attribute."""
    return join_samples(parts, combine_attrs="drop_conflicts", data_vars="minimal", coords="minimal")


def metrics_of(prompts: Mapping[Any, Prompt], metrics: MetricsBySample) -> dict[Any, list[Metric]]:
    """Each sample's metrics.

    Raises:
      ValueError: a sample has none, or others than the first.
    """
    given = per_sample(prompts, metrics, "metrics")
    as_lists = {name: [m] if isinstance(m, Metric) else list(m) for name, m in given.items()}
    first = next(iter(as_lists))
    for name, several in as_lists.items():
        kinds = [(type(m), m.name) for m in several]
        if kinds != [(type(m), m.name) for m in as_lists[first]] or not kinds:
            raise ValueError(
                f"metrics: expected the same kinds and names for each sample, got {[n for _, n in kinds]} for {name!r} "
                f"and {[m.name for m in as_lists[first]]} for {first!r}"
            )
    return as_lists
