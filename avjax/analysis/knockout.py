"""Attention knockout: over windows of layers, head by head, and everything but one pathway.

Source: Geva et al. 2023; arXiv 2604.02605, figures 4 and 5; Cross-modal Information Flow in MLLMs (CVPR 2025).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.analysis.sampled import MetricsBySample, Prompts, metrics_of, sweep_samples
from avjax.grids import Placement, axis, each_head, each_layer, grid, windows
from avjax.interventions import Knockout, numbered
from avjax.model import Model
from avjax.prompt import Prompt, named_prompts
from avjax.report.progress import Progress
from avjax.sweeping import sweep
from avjax.tokens import Selector, select

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
    """What the queries still do when they attend to one pathway alone, against as many random keys.

    A prompt of up to 128 tokens takes one clean pass; of a longer one, two or more random draws share each.

    Args:
      pathways: the key groups that are kept, one at a time; every other key is cut.
      always: keys that are kept in any case, random ones too.
      layers: where; None is all layers.
      num_random: sets of random keys, each as large as the pathway, out of all keys that are not always kept.
      seed: of the random sets.
      options: of `avjax.sweep`, but its progress.

    Returns:
      Variables of the metrics over (pathway, sample), `NAME_random` over (draw, pathway, sample), `NAME_clean` over
      (sample), and `keys`, how many are kept beside those that always are.

    Raises:
      ValueError: a pathway has no keys, or has them all.

    Source: Map the Flow (ICLR 2026): keeping a pathway, against random masks of equal size.
    """
    if num_random < 1:
        raise ValueError(f"num_random: expected at least 1, got {num_random}; without it nothing says what is little")
    named = named_prompts(prompts)
    by_sample = metrics_of(named, metrics)
    sets = {name: _kept_keys(prompt, pathways, always) for name, prompt in named.items()}
    labels, parts = [s if isinstance(s, str) else str(list(s)) for s in pathways], []
    if len(set(labels)) < len(labels):
        labels = numbered(labels)
    with Progress("pathways", len(named) * (num_random + 1), "sets of keys", enabled=progress) as bar:
        for number, (name, prompt) in enumerate(named.items()):
            kept, free = sets[name]
            rng = np.random.default_rng([seed, number])
            orders = [rng.permutation(free) for _ in range(num_random)]  # one for all sizes: few token groups
            draws, found = [kept, *([order[: len(k)] for k in kept] for order in orders)], []
            while draws:
                together, draws = _split(draws, len(free))
                cut = [np.setdiff1d(free, keep).tolist() for draw in together for keep in draw]
                cells = [Knockout(query=query, key=keys, layers=layers) for keys in cut]
                swept = sweep(model, {name: prompt}, cells, by_sample[name], progress=False, **options)
                for i in range(len(together)):
                    own = swept.isel(variant=slice(i * len(kept), (i + 1) * len(kept)))
                    found.append(own.drop_vars("variant").rename(variant="pathway").assign_coords(pathway=labels))
                bar.advance(len(together))
            parts.append(_with_random(found).assign(keys=("pathway", [len(k) for k in kept])))
    joined = xr.concat(
        parts, "sample", data_vars="all", coords="minimal", compat="override", combine_attrs="drop_conflicts"
    )
    joined["keys"].attrs.update(units="count", averages=0)
    return joined.assign_attrs(query=str(query), always=str(always), random_draws=num_random, seed=seed)


def _split(draws: list[Any], num_keys: int) -> tuple[list[Any], list[Any]]:
    """As many draws as go into one sweep, since each multiplies the token groups, and the rest."""
    count = len(draws)
    while count > 1 and min(num_keys, (len(draws[0]) + 1) ** count) > MAX_GROUPS:
        count -= 1
    return draws[:count], draws[count:]


def _kept_keys(prompt: Prompt, pathways: Sequence[Selector], always: Selector) -> tuple[list[np.ndarray], np.ndarray]:
    """Prompt positions of each pathway, and all positions that may be cut."""
    free = ~select(prompt, always)[:-1]
    kept = []
    for pathway in pathways:
        positions = np.flatnonzero(select(prompt, pathway)[:-1] & free)
        if not 0 < len(positions) < free.sum():
            raise ValueError(
                f"pathway {pathway!r}: expected some of the {free.sum()} keys beside {always!r}, got {len(positions)}; "
                "name a group that the prompt has, and not all of it"
            )
        kept.append(positions)
    return kept, np.flatnonzero(free)


def _with_random(found: Sequence[xr.Dataset]) -> xr.Dataset:
    """The pathways' own dataset, with the metrics of random sets beside it."""
    own, random = found[0], xr.concat([f.drop_vars("cell") for f in found[1:]], "draw")
    names = [name for name in own.data_vars if f"{name}_clean" in own] + ["edges"]
    return own.assign({f"{name}_random": random[name] for name in names})
