"""Sink tokens: those whose residual is all but one of a few outlier dimensions, and which modality attends to them.

Axes: T position, L layer, D embed, N heads, M token group, P largest dimensions of a residual.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.analysis.by_sample import with_prompts
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.overflow import refuse_overflow
from avjax.engine.reference import pad_inputs, reduced_prefill
from avjax.model import Model
from avjax.models.buckets import bucket
from avjax.models.decoder import Decoder
from avjax.models.layers import dot
from avjax.models.sites import Site
from avjax.models.top_k import top_k
from avjax.progress import Progress
from avjax.prompts.compat import Compat, checked_compat, compatible_prompt
from avjax.prompts.prompt import Inputs, Prompt, named_prompts
from avjax.prompts.selectors import KINDS, MODALITIES, BySample, as_indices, select
from avjax.provenance import provenance

PUBLISHED_THRESHOLD, PUBLISHED_WIDTH = 25.0, 3584
LEAST_THRESHOLD = 5.0
OUTLIER_SHARE = 0.5  # of the prompts in which a dimension must stand out
Kind = Literal["uni", "cross"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkStatistics:
    """Sink statistics of one prompt, from one pass.

    Attributes:
      peaks, dims: float32 and int [L, T, P], the largest values of |RMSNorm(h)| and their dimensions.
      largest: float32 [L, D], of |RMSNorm(h)| over positions.
      paid: float32 [2, L, T], mean attention that the later queries of each of two modalities pay a token; NaN where
        there is no later query.
    """

    peaks: np.ndarray
    dims: np.ndarray
    largest: np.ndarray
    paid: np.ndarray

    def at(self, dimensions: Sequence[int]) -> np.ndarray:
        """[L, T], the largest of |RMSNorm(h)| among these dimensions; 0 where they are not among the largest P."""
        return np.where(np.isin(self.dims, dimensions), self.peaks, 0.0).max(-1)


def default_threshold(embed_dim: int) -> float:
    """At which |RMSNorm(h)| makes a dimension an outlier: the published 25 of a model of width 3,584, at any width.

    A residual that is all outliers has sqrt(D / their number) in each of them, so that a threshold must grow as sqrt(D)
    to mean one thing: the published one is 17% of the squared norm in one dimension. Ours is 25 sqrt(D / 3584), but not
    below 5, which a dimension of a random residual passes less than once in a million.
    """
    return max(PUBLISHED_THRESHOLD * (embed_dim / PUBLISHED_WIDTH) ** 0.5, LEAST_THRESHOLD)


def find_sinks(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
    threshold: float | None = None,
    dimensions: Sequence[int] | None = None,
    modalities: tuple[str, str] = ("video", "audio"),
    compat: Compat | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Sink tokens of each prompt, and whether video or audio attends to each token; one pass per prompt.

    A token is a sink at a layer when |RMSNorm(h)|, without the norm's gain, of what the layer is fed exceeds the
    threshold in an outlier dimension. Those are the model's own: dimensions that exceed it at some token and layer of
    at least half of the prompts (the rule is ours; give several prompts).

    tiny-av has neither: no dimension of its residuals reaches the default threshold.

    Args:
      threshold: of |RMSNorm(h)|, below sqrt(D), which it cannot exceed; None is `default_threshold(D)`.
      dimensions: outlier dimensions that are known; None estimates them.
      modalities: whose later queries v and a are, in this order; of text, audio, video, image.
      compat: "published" counts a modality without later queries as one that pays nothing, so that the last tokens of
        a prompt have a score of 1 or -1 for that reason alone; by default their score is missing.

    Returns:
      `sink` and `peak` (sample, layer, position): whether a token is a sink, and its |RMSNorm(h)| in the outlier
      dimensions where that exceeds the threshold, else 0; `sink_layers` (sample, position): in how many layers.
      `paid` (modality, sample, layer, position): v and a, the mean attention of later queries, over heads.
      `mds` (sample, position): the modality dominance score (v - a) / (v + a), mean over layers; `mds_layer`, by layer.
      `token_modality` (sample, position), "" beyond a prompt's end. `dimension_peak` (layer, dimension): the largest
      |RMSNorm(h)| over prompts and tokens, from which a threshold can be chosen; `outlier` (dimension).

    Raises:
      ValueError: the threshold or a dimension is out of range, or a modality is unknown.

    Source: Kang et al. 2025 (sinks by outlier dimensions), Jung et al. 2026 (modality dominance score).
    """
    named, cfg = named_prompts(prompts), model.config.decoder
    threshold = _checked_threshold(threshold, cfg.embed_dim)
    known = None if dimensions is None else as_indices(dimensions, "dimensions")
    if known is not None and (not known or any(not 0 <= d < cfg.embed_dim for d in known)):
        raise ValueError(f"dimensions: expected one or more within 0:{cfg.embed_dim}, got {list(known)}")
    if len(set(modalities)) != 2 or set(modalities) - set(MODALITIES):
        raise ValueError(f"modalities: expected two of {', '.join(MODALITIES)}, got {modalities!r}")
    zero = checked_compat(compat) is not None
    named = {name: compatible_prompt(prompt, compat) for name, prompt in named.items()}
    for prompt in named.values():
        model.check(prompt)
    seen = {}
    with Progress("sinks", len(named), "prompts", enabled=progress) as bar:
        for name, prompt in named.items():
            seen[name] = _seen(model, name, prompt, threshold, modalities)
            bar.advance(1)
    outliers = known if known is not None else _outliers(list(seen.values()), threshold)
    about = {"threshold": threshold, "compat": compat, "outliers": "estimated" if known is None else "given"}
    attributes = provenance(model, analysis="sinks", **about)
    dataset = _dataset(named, seen, outliers, modalities, zero).assign_attrs(attributes)
    return with_prompts(dataset, named)


def _checked_threshold(threshold: float | None, embed_dim: int) -> float:
    checked = default_threshold(embed_dim) if threshold is None else float(threshold)
    if not 1 <= checked < embed_dim**0.5:
        raise ValueError(
            f"threshold: expected at least 1 and less than {embed_dim**0.5:.3g}, the largest |RMSNorm| possible at "
            f"width {embed_dim}, got {checked:g}"
        )
    return checked


def _seen(model: Model, name: Any, prompt: Prompt, threshold: float, modalities: Sequence[str]) -> SinkStatistics:
    masks = [select(prompt, modality) for modality in modalities]
    cfg = model.config.decoder
    lowered = lower(prompt, cfg, [()], num_decoded=0, clean=CleanRuns(model), selectors=masks)
    inputs = pad_inputs(model.encode(prompt, lowered.groups), bucket(len(prompt)))
    members = np.stack([lowered.members[mask.tobytes()] for mask in masks]).astype(np.float32)
    # More dimensions than this cannot exceed the threshold together: their squares sum to D.
    most = min(cfg.embed_dim, int(cfg.embed_dim / threshold**2) + 1)
    peaks, dims, largest, sums, fed = (
        np.asarray(x) for x in _read(model.network.decoder, inputs, jnp.asarray(members), most=most)
    )
    size = len(prompt)
    refuse_overflow(fed[:, :size], f"sample {name!r}")
    later = np.stack([mask[:-1].sum() - np.cumsum(mask[:-1]) for mask in masks])[:, None]
    paid = np.divide(sums[..., :size], later, out=np.full((2, cfg.num_layers, size), np.nan), where=later > 0)
    exceeds = np.where(peaks[:, :size] > threshold, peaks[:, :size], 0.0)
    return SinkStatistics(peaks=exceeds, dims=dims[:, :size], largest=largest, paid=paid)


@jax.jit(static_argnames="most")
def _read(
    decoder: Decoder, inputs: Inputs, members: jax.Array, *, most: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Peaks and their dimensions [L, T, P], the largest [L, D], summed attention [2, L, T], and `Site.PEAK`."""
    real = jnp.arange(inputs.embeddings.shape[0])[:, None] < inputs.length

    def reduce(seen: dict[Site, jax.Array], _: None) -> tuple[jax.Array, ...]:
        h_TD = seen[Site.RESID_PRE].astype(jnp.float32)
        size = jnp.abs(h_TD) * jax.lax.rsqrt(jnp.mean(h_TD**2, axis=-1, keepdims=True) + decoder.cfg.norm_eps)
        paid = dot("nmt,qm->qt", seen[Site.RECEIVED], members) / decoder.cfg.num_heads
        return *top_k(size, most), jnp.max(jnp.where(real, size, 0.0), axis=0), paid, seen[Site.PEAK]

    sites = (Site.RESID_PRE, Site.RECEIVED, Site.PEAK)
    peaks, dims, largest, paid, fed = reduced_prefill(decoder, inputs, None, capture=sites, reduce=reduce)[1]
    return peaks, dims, largest, paid.swapaxes(0, 1), fed


def _outliers(seen: Sequence[SinkStatistics], threshold: float) -> tuple[int, ...]:
    share = np.mean([(one.largest > threshold).any(0) for one in seen], axis=0)
    return tuple(np.flatnonzero(share >= OUTLIER_SHARE).tolist())


def dominance(v: np.ndarray, a: np.ndarray, published: bool = False) -> np.ndarray:
    """The modality dominance score (v - a) / (v + a) of mean attentions; missing where either is, or both are 0.

    Args:
      published: a missing one counts as 0, and two of them as a score of 0.
    """
    if published:
        v, a = np.nan_to_num(v), np.nan_to_num(a)
    total = v + a
    score = np.divide(v - a, total, out=np.full_like(total, np.nan), where=total > 0)
    return np.where(total > 0, score, 0.0) if published else score


def _dataset(
    named: Mapping[Any, Prompt],
    seen: Mapping[Any, SinkStatistics],
    outliers: Sequence[int],
    modalities: Sequence[str],
    published: bool,
) -> xr.Dataset:
    longest = max(map(len, named.values()))

    def joined(parts: Sequence[np.ndarray], fill: Any) -> np.ndarray:
        widths = [[(0, 0)] * (x.ndim - 1) + [(0, longest - x.shape[-1])] for x in parts]
        return np.stack([np.pad(x, w, constant_values=fill) for x, w in zip(parts, widths, strict=True)])

    peak = joined([one.at(outliers) for one in seen.values()], 0.0)
    paid = joined([one.paid for one in seen.values()], np.nan).swapaxes(0, 1)
    by_layer = dominance(paid[0], paid[1], published)
    there = np.isfinite(by_layer)
    mean = np.sum(np.where(there, by_layer, 0.0), 1) / np.where(there.any(1), there.sum(1), np.nan)
    exists = joined([np.ones(len(prompt), bool) for prompt in named.values()], False)
    largest = np.max([one.largest for one in seen.values()], axis=0)
    of_layer, of_token = ("sample", "layer", "position"), ("sample", "position")
    first, second = modalities
    score = f"({first} - {second}) / ({first} + {second})"
    variables = {
        "sink": (of_layer, peak > 0, "truth", "sink token"),
        "peak": (of_layer, peak, "ratio to root mean square", "|RMSNorm(h)| in the outlier dimensions"),
        "sink_layers": (of_token, np.sum(peak > 0, 1), "count", "layers at which a token is a sink"),
        "paid": (("modality", *of_layer), paid, "share of attention", "attention that later queries pay, mean"),
        "mds_layer": (of_layer, by_layer, score, "modality dominance score"),
        "mds": (of_token, np.where(exists, mean, np.nan), score, "modality dominance score, mean over layers"),
        "token_modality": (of_token, _kinds(named, longest), "text", "modality of a token"),
        "dimension_peak": (("layer", "dimension"), largest, "ratio to root mean square", "largest |RMSNorm(h)|"),
        "outlier": ("dimension", np.isin(np.arange(largest.shape[1]), outliers), "truth", "outlier dimension"),
    }
    data_vars = {
        name: (dims, x, {"units": units, "long_name": long}) for name, (dims, x, units, long) in variables.items()
    }
    coordinates = {"sample": list(named), "modality": list(modalities), "position": np.arange(longest)}
    coordinates |= {"layer": np.arange(len(largest)), "dimension": np.arange(largest.shape[1])}
    return xr.Dataset(data_vars, coordinates)


def _kinds(named: Mapping[Any, Prompt], longest: int) -> np.ndarray:
    names = np.array([*KINDS, ""])
    padded = [np.pad(p.kinds.astype(int), (0, longest - len(p)), constant_values=-1) for p in named.values()]
    return names[np.stack(padded)]


def select_sinks(
    found: xr.Dataset,
    modality: str,
    kind: Kind | None = None,
    *,
    min_layers: int = 1,
    uni_share: float = 0.5,
    most: float = 0.5,
) -> BySample:
    """Sink tokens of one modality as the selector of an edit, each sample's own:

        avjax.Knockout(query="answer", key=select_sinks(found, "video", kind="cross"))

    Args:
      found: of `find_sinks`.
      modality: of the sink tokens.
      kind: "uni" are those that their own modality dominates: the first `uni_share` of a sample's sinks, rounded down,
        when they are ranked by the dominance score towards `modality`; "cross" the rest. A sink without a score is
        neither. None takes all sinks.
      min_layers: at which a token must be a sink.
      most: share of the prompt's positions that may be sinks, all modalities together; of more, those that are sinks in
        the most layers stay. The published code's `k_divide` is 1 over it.

    Raises:
      ValueError: no sample has such a sink, or an argument is out of range. A sample without one is refused by the
        sweep that meets it.

    Source: Jung et al. 2026; halves, and at most half of the positions, are their code's defaults.
    """
    dominated = found["modality"].values.tolist()
    if modality not in MODALITIES or kind not in (None, "uni", "cross") or (kind and modality not in dominated):
        raise ValueError(
            f"sinks: expected a modality among {', '.join(MODALITIES)} with kind None, or "
            f"{' or '.join(dominated)} with kind 'uni' or 'cross'; got {modality!r} and {kind!r}"
        )
    if not 0 < uni_share < 1 or not 0 < most <= 1 or min_layers < 1:
        raise ValueError(
            f"sinks: expected uni_share within 0 to 1, most above 0 and at most 1, min_layers of at least 1; got "
            f"{uni_share}, {most} and {min_layers}"
        )
    sign = 1.0 if modality == dominated[0] else -1.0
    positions = {
        sample: _selected(found.isel(sample=i), modality, kind, sign, min_layers, uni_share, most)
        for i, sample in enumerate(found["sample"].values.tolist())
    }
    name = f"{modality} sinks" if kind is None else f"{kind}-modal {modality} sinks"
    if not any(positions.values()):
        _explain_none(found, modality, name)
    return BySample.of(positions, name)


def _selected(
    one: xr.Dataset, modality: str, kind: Kind | None, sign: float, min_layers: int, uni_share: float, most: float
) -> list[int]:
    sink, modalities, score = (one[name].values for name in ("sink", "token_modality", "mds"))
    layers = sink.sum(0)
    # The published order: most layers first, then the earliest layer, then the position.
    order = np.lexsort((np.arange(len(layers)), sink.argmax(0), -layers))
    order = order[layers[order] > 0][: int(most * np.sum(modalities != ""))]
    mine = [i for i in order.tolist() if modalities[i] == modality and layers[i] >= min_layers]
    if kind is not None:
        scored = [i for i in mine if np.isfinite(score[i])]
        ranked = sorted(scored, key=lambda i: -sign * score[i])
        split = int(uni_share * len(ranked))
        mine = ranked[:split] if kind == "uni" else ranked[split:]
    return sorted(mine)


def _explain_none(found: xr.Dataset, modality: str, name: str) -> None:
    sinks = found["sink"].any("layer").values & (found["token_modality"].values == modality)
    if not sinks.any():
        reason = (
            f"no {modality} token exceeds {found.attrs['threshold']:g} in an outlier dimension; dimension_peak holds "
            "the largest values; lower the threshold with find_sinks(threshold=...)"
        )
    else:
        reason = f"none of the {int(sinks.sum())} {modality} sinks is left after selection; see sink_layers and mds"
    raise ValueError(f"{name}: no sample has any: {reason}")
