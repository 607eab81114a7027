"""Modality scaling: what a model does when it hears louder or sees fainter."""

from collections.abc import Sequence
from typing import Any, Literal

import xarray as xr

from avjax.analysis.by_sample import MetricsBySample, Prompts, sweep_samples
from avjax.edits.edits import Scale, ScaleAttention
from avjax.edits.grids import Placement, axis, grid, windows
from avjax.model import Model
from avjax.nearest import did_you_mean
from avjax.prompts.selectors import Selector

FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
What = Literal["embed", "value", "attention"]


def scale_modalities(
    model: Model,
    prompts: Prompts,
    metrics: MetricsBySample,
    *,
    what: What = "attention",
    modalities: Sequence[Selector] = ("audio", "video"),
    factors: Sequence[float] = FACTORS,
    width: int | None = None,
    stride: int = 1,
    placement: Placement = "centred",
    query: Selector = "answer",
    **options: Any,
) -> xr.Dataset:
    """Dose-response curves: each modality times each factor, in all layers or in windows of them.

    Args:
      what: "embed", the embeddings of the modality's tokens; "value", their values; "attention", the weights that
        queries give them before the softmax normalises.
      factors: 1 leaves the model alone, 0 removes.
      width: layers of a window; None is all layers at once. Embeddings have no layers.
      stride, placement: see `avjax.windows`.
      query: whose attention is scaled.
      options: of `avjax.sweep`.

    Returns:
      Variables of the metrics over (modality, factor, layers, sample), without `layers` where `width` is None.

    Raises:
      ValueError: embeddings are to be scaled in windows, or an argument is out of range.
    """
    if what not in ("embed", "value", "attention"):
        hint = did_you_mean(what, ("embed", "value", "attention"))
        raise ValueError(f"scale: expected what= to be embed, value or attention, got {what!r}{hint}")
    if what == "embed" and width is not None:
        raise ValueError("scale: embeddings have no layers; leave width out, or scale values or attention")
    modality: Any = axis("modality", modalities)
    factor: Any = axis("factor", [float(f) for f in factors])
    layers = None if width is None else windows(width, stride=stride, placement=placement)
    if what == "attention":
        edit = ScaleAttention(query=query, key=modality, factor=factor, layers=layers)
    else:
        edit = Scale(modality, factor=factor, site=what, layers=layers)
    dataset = sweep_samples(model, prompts, grid(edit), metrics, **options).assign_attrs(scaled=what)
    dataset["factor"].attrs.update(units="1", long_name=f"factor of {what}")
    return dataset
