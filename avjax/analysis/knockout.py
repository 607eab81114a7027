"""Attention knockout: over windows of layers, head by head, and everything but one pathway.

Source: Geva et al. 2023; arXiv 2604.02605, figures 4 and 5; Cross-modal Information Flow in MLLMs (CVPR 2025).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.analysis.by_sample import MetricsBySample, Prompts, metrics_of, sweep_samples
from avjax.analysis.random_keys import KeyEdges
from avjax.edits.edits import Knockout, numbered
from avjax.edits.grids import Placement, axis, each_head, each_layer, grid, windows
from avjax.metrics import Caption, Metric
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import Selector, select
from avjax.runs.sweep import sweep
from avjax.sweeping.floor import measured_samples, pooled_floors, without_floors
from avjax.sweeping.joining import join_samples

MAX_GROUPS = 128  # of tokens in one sweep; ours
WIDTH = 4  # layers; ours, since the paper's is unknown


def knockout_windows(
    model: Model,
    prompts: Prompts,
    metrics: MetricsBySample,
    *,
    query: Selector = "answer",
    keys: Sequence[Selector] = ("audio", "video"),
    width: int = WIDTH,
    stride: int = 1,
    placement: Placement = "centred",
    **options: Any,
) -> xr.Dataset:
    """Each window of layers in which the queries cannot attend to each key group.

    Args:
      metrics: for all samples, or by sample.
      query: "generated" is the published behaviour; see `avjax.Knockout`.
      width, stride, placement: see `avjax.windows`.
      options: of `avjax.sweep`.

    Returns:
      Variables of the metrics over (key, layers, sample), and `NAME_clean` over (sample).
    """
    edit = Knockout(query=query, key=axis("key", keys), layers=windows(width, stride=stride, placement=placement))
    return sweep_samples(model, prompts, grid(edit), metrics, **options)


def knockout_heads(
    model: Model,
    prompts: Prompts,
    metrics: MetricsBySample,
    *,
    query: Selector = "answer",
    keys: Sequence[Selector] = ("audio", "video"),
    **options: Any,
) -> xr.Dataset:
    """Each head of each layer that cannot attend from the queries to each key group.

    Args, Returns: as for `knockout_windows`, over (key, layers, heads, sample).
    """
    edit = Knockout(query=query, key=axis("key", keys), layers=each_layer(), heads=each_head())
    return sweep_samples(model, prompts, grid(edit), metrics, **options)


def edge_sufficiency(
    model: Model,
    prompts: Prompts,
    metrics: MetricsBySample,
    *,
    query: Selector = "answer",
    pathways: Sequence[Selector] = ("audio", "video", "text"),
    always: Selector = "answer",
    layers: Sequence[int] | None = None,
    num_random: int = 10,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """What the queries still do when they attend to one pathway alone, against random keys with as many edges.

    An edge is a query and a key that it may attend to, in one head and layer: a key that comes early has more of them
    than one that comes late, where several tokens ask. A prompt of up to 128 tokens takes one clean pass; of a longer
    one, two or more random draws share each.

    Args:
      pathways: the key groups that are kept, one at a time; every other key is cut.
      always: keys that are kept in any case, random ones too.
      layers: where; None is all layers.
      num_random: sets of random keys, each with the pathway's number of edges, out of all keys that some query sees
        and that are not always kept. They have its number of keys, too, unless only sets close to the pathway itself
        have both; where no set has the very number of edges, the nearest is taken. A metric that generates counts
        edges as if it came to its limit.
      seed: of the random sets.
      options: of `avjax.sweep`, but its progress.

    Returns:
      Variables of the metrics over (pathway, sample), `NAME_random` over (draw, pathway, sample), `NAME_clean` over
      (sample). Beside those that always are, `keys` are kept, and `kept_edges` of them in each head and layer;
      `edges` are cut in all. `keys_random`, `kept_edges_random` and `edges_random` are the same of each random set.

    Raises:
      ValueError: a pathway has no keys that a query sees, or has them all.

    Source: Map the Flow (ICLR 2026): keeping a pathway, against random masks of equal size.
    """
    if num_random < 1:
        raise ValueError(
            f"num_random: expected at least 1, got {num_random}; random keys are the baseline to compare with"
        )
    named = named_prompts(prompts)
    by_sample = metrics_of(named, metrics)
    sets = {name: _kept_keys(model, prompt, query, pathways, always, by_sample[name]) for name, prompt in named.items()}
    labels, parts = [s if isinstance(s, str) else str(list(s)) for s in pathways], []
    if len(set(labels)) < len(labels):
        labels = numbered(labels)
    measured = measured_samples(model, [*named], len(pathways) * (num_random + 1))
    floors: list[xr.Dataset] = []
    with Progress("pathways", len(named) * (num_random + 1), "sets of keys", enabled=progress) as bar:
        for number, (name, prompt) in enumerate(named.items()):
            keys, kept_keys = sets[name]
            draws = _with_draws(keys, kept_keys, num_random, np.random.default_rng([seed, number]))
            left, datasets = draws, []
            while left:
                together, left = _split(left)
                cells = [
                    Knockout(query=query, key=keys.positions[~mask].tolist(), layers=layers)
                    for masks in together
                    for mask in masks
                ]
                settings = {"floor": name in measured, **options, "progress": False}
                swept = sweep(model, {name: prompt}, cells, by_sample[name], **settings)
                floors.append(swept)
                for i in range(len(together)):
                    of_pathway = without_floors(swept).isel(variant=slice(i * len(kept_keys), (i + 1) * len(kept_keys)))
                    datasets.append(
                        of_pathway.drop_vars("variant").rename(variant="pathway").assign_coords(pathway=labels)
                    )
                bar.advance(len(together))
            parts.append(_with_random([_counted(f, keys, masks) for f, masks in zip(datasets, draws, strict=True)]))
    how = {"data_vars": "all", "coords": "minimal", "compat": "override", "combine_attrs": "drop_conflicts"}
    joined = join_samples(parts, **how).assign(pooled_floors(floors))
    return joined.assign_attrs(query=str(query), always=str(always), random_draws=num_random, seed=seed)


Masks = list[np.ndarray]  # of each pathway, bool [K]: the keys that are kept


def _with_draws(keys: KeyEdges, kept: Masks, num_random: int, rng: np.random.Generator) -> list[Masks]:
    """The pathways' own keys, and after them those of each random draw."""
    orders = [rng.permutation(len(keys.positions)) for _ in range(num_random)]  # one for all pathways: few token groups
    drawn = [keys.drawn(mask, orders, rng) for mask in kept]
    return [kept, *([of_pathway[i] for of_pathway in drawn] for i in range(num_random))]


def _split(draws: list[Masks]) -> tuple[list[Masks], list[Masks]]:
    """As many draws as go into one sweep, since each multiplies the token groups, and the rest."""
    count = 1
    while count < len(draws) and _num_groups(draws[: count + 1]) <= MAX_GROUPS:
        count += 1
    return draws[:count], draws[count:]


def _num_groups(draws: Sequence[Masks]) -> int:
    return np.unique(np.stack([mask for masks in draws for mask in masks]), axis=1).shape[1]


def _kept_keys(
    model: Model,
    prompt: Prompt,
    query: Selector,
    pathways: Sequence[Selector],
    always: Selector,
    metrics: Sequence[Metric],
) -> tuple[KeyEdges, Masks]:
    """The keys that may be cut, and which of them each pathway keeps."""
    free = ~select(prompt, always)[:-1]
    keys = KeyEdges.of(select(prompt, query), free, max(_num_fed(model, metric) for metric in metrics))
    kept = []
    for pathway in pathways:
        named = select(prompt, pathway)[:-1]
        mask = named[keys.positions]
        if not 0 < mask.sum() < len(mask):
            why = ""
            if (named & free).any() and not mask.any():
                why = f" (no query {query!r} comes at or after one of its {(named & free).sum()} keys)"
            raise ValueError(
                f"pathway {pathway!r}: expected some, but not all, of the {len(mask)} keys outside {always!r}, got "
                f"{mask.sum()}{why}; name a group that the prompt has and that does not cover all of it"
            )
        kept.append(mask)
    return keys, kept


def _num_fed(model: Model, metric: Metric) -> int:
    """How many generated tokens a metric feeds back, at most."""
    if isinstance(metric, Caption):
        return metric.limit - 1
    return max((len(continuation) - 1 for continuation in metric.continuations(model)), default=0)


def _counted(found: xr.Dataset, keys: KeyEdges, masks: Masks) -> xr.Dataset:
    """With what one draw keeps beside the keys that always are."""
    attributes = {"units": "count", "averages": 0}
    dims, num_keys = ("pathway", "sample"), [[int(mask.sum())] for mask in masks]
    kept_edges = [[int(keys.edges[mask].sum())] for mask in masks]
    return found.assign(
        keys=(dims, num_keys, attributes | {"long_name": "keys that are kept"}),
        kept_edges=(dims, kept_edges, attributes | {"long_name": "edges that are kept in each head and layer"}),
    )


def _with_random(found: Sequence[xr.Dataset]) -> xr.Dataset:
    """The pathways' own dataset, with the metrics of random sets beside it."""
    own, random = found[0], xr.concat([f.drop_vars("cell") for f in found[1:]], "draw")
    names = [name for name in own.data_vars if f"{name}_clean" in own] + ["edges", "keys", "kept_edges"]
    return own.assign({f"{name}_random": random[name] for name in names})
