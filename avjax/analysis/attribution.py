"""Attribution patching: what every knock-out would do, estimated from one backward pass, beside what the strongest do.

Axes: Q query selector, K key selector, G group selector, L layer, N heads, M token group, C candidate.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.scipy.stats import rankdata

from avjax.analysis.by_sample import with_prompts
from avjax.analysis.gradient_cases import Case, Metrics, cases, exact, of_one_kind, refuse_missing
from avjax.analysis.gradient_pass import Rows, Target, prepared, watched_objective
from avjax.edits.edits import Edit, Knockout, Scale
from avjax.engine.overflow import refuse_overflow
from avjax.metrics import Metric
from avjax.model import Model
from avjax.models.config import DecoderConfig
from avjax.models.decoder import Decoder
from avjax.models.intervention import Intervention
from avjax.models.sites import FLOW, Site, SiteEdit, SiteSources, num_site_heads, site_shape
from avjax.nearest import did_you_mean
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import MODALITIES, Selector
from avjax.provenance import provenance

EDGE = "edge"  # the kind of a candidate that cuts edges; others are named by their site
SITES = ("z", "value", "attn_out", "mlp_out", "resid_post")
HEAD_DIMS = {Site.Z: "head", Site.VALUE: "kv_head"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Screening:
    """What is differentiated, checked."""

    cases: dict[Any, Case]
    queries: tuple[Selector, ...]
    keys: tuple[Selector, ...]
    groups: tuple[Selector, ...]
    sites: tuple[Site, ...]

    def masks(self, case: Case) -> list[np.ndarray]:
        return [case.select(s) for s in (*self.queries, *self.keys, *self.groups)]

    def split(self, members: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float64 [Q, M], [K, M] and [G, M]: which token groups make up each selector."""
        ends = np.cumsum([len(self.queries), len(self.keys)])
        size = members[0].shape[0]
        parts = np.split(np.reshape(np.asarray(members, np.float64), (-1, size)), ends)
        return parts[0], parts[1], parts[2]


def attribute(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
    metric: Metrics,
    *,
    queries: Sequence[Selector] | Selector = ("answer",),
    keys: Sequence[Selector] | Selector | None = None,
    sites: Sequence[str] | str = SITES,
    groups: Sequence[Selector] | Selector | None = None,
    top: int = 20,
    progress: bool = True,
) -> xr.Dataset:
    """First-order estimates of every knock-out's effect on a metric, and the exact effects of the strongest.

    One backward pass per prompt gives the slope of the metric along every edge gate (layer, head, query group, key
    group) and every scale (layer, head, group). A gate or scale goes from 1 to 0, so the estimate is minus the slope.
    It is a screen: saturated attention and norms bend what it takes for straight. The `top` candidates of each kind, by
    the size of their mean estimate, then go through `avjax.sweep` as the edits that they stand for.

    On tiny-av under conflict, for the true sound's logit over the suggested one's, cutting answer->video is estimated
    to help, most of all in deep layers, and cutting answer->audio to hurt. Estimates order the edges well, but the
    exact effects of the strongest are a multiple of theirs, since the attention that they cut is saturated.

    Args:
      prompts: one, several, or several by name.
      metric: a differentiable one number of `avjax.metrics` (LogitDiff, LogProb, Prob, LogLikelihood), or by sample.
      queries, keys: selectors whose edges are screened; keys are by default the modalities that every prompt has.
      sites: whose activations are scaled, among z, value, attn_in, attn_out, mlp_in, mlp_out, resid_pre, resid_mid and
        resid_post.
      groups: selectors of the scaled tokens; by default the modalities that every prompt has.
      top: candidates of each kind that are verified; 0 verifies none.
      progress: show a bar when it takes long.

    Returns:
      In the metric's units: `edge_estimate` [sample, layer, head, query, key], `SITE_estimate` [sample, layer, (head or
      kv_head), group], `clean` [sample]; as counts `edges` [sample, query, key] and `positions` [sample, group]. With
      `top`, along `candidate`: `estimate` and `exact` [candidate, sample], each candidate's `kind`, and per `kind` the
      Spearman `rank_correlation` of their means.

    Raises:
      ValueError: something does not fit, all of it found before anything is compiled; or a value is not finite.

    Source: Nanda 2023 (attribution patching); Syed et al. 2023 (edge attribution patching).
    """
    plan = _planned(model, prompts, metric, (queries, keys, groups), sites)
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 0:
        raise ValueError(f"top: expected a whole number of candidates, at least 0, got {top!r}")
    name, unit = of_one_kind(plan.cases)
    columns: dict[str, list[np.ndarray]] = {}
    with Progress("attribution", len(plan.cases) * (2 if top else 1), "samples", enabled=progress) as bar:
        for case in plan.cases.values():
            for key, value in _screened(model, plan, case).items():
                columns.setdefault(key, []).append(value)
            bar.advance(1)
        data = _dataset(plan, {key: np.stack(values) for key, values in columns.items()}, name, unit)
        if top:
            data = _verified(model, plan, data, int(top), bar)
    data = with_prompts(data, {sample: case.prompt for sample, case in plan.cases.items()})
    return data.assign_attrs(provenance(model, metric=name, estimate="minus the slope at the clean run"))


def _planned(model: Model, prompts: Any, metric: Metrics, selectors: Sequence[Any], sites: Any) -> _Screening:
    planned_cases = cases(model, prompts, metric)
    present = [m for m in MODALITIES if all(case.select(m).any() for case in planned_cases.values())]
    queries, keys, groups = (tuple(present) if s is None else _several(s) for s in selectors)
    names = [sites] if isinstance(sites, str) else list(sites)
    editable = [site for site in FLOW if site is not Site.EMBED]
    if wrong := [name for name in names if name not in editable]:
        hint = "; embed is resid_pre of layer 0" if "embed" in wrong else did_you_mean(wrong[0], editable)
        raise ValueError(f"sites: expected some of {', '.join(editable)}, got {', '.join(map(repr, wrong))}{hint}")
    plan = _Screening(
        cases=planned_cases, queries=queries, keys=keys, groups=groups, sites=tuple(dict.fromkeys(map(Site, names)))
    )
    if not (queries and keys) and not (plan.sites and groups):
        raise ValueError("attribute: expected queries and keys, or sites and groups, got neither")
    for what, several in (("queries", queries), ("keys", keys), ("groups", groups)):
        if len({str(s) for s in several}) < len(several):
            raise ValueError(f"{what}: expected different selectors, got {list(several)}")
        refuse_missing(planned_cases, several, what)
    if queries and keys:
        for case in planned_cases.values():
            if not any(case.edges(query, key) for query in queries for key in keys):
                raise ValueError(
                    f"queries and keys: sample {case.sample!r} has no such edge, since no query comes at or after a key"
                )
    return plan


def _several(given: Any) -> tuple[Selector, ...]:
    """Selectors of one or several; a list of positions is one."""
    if isinstance(given, str) or (len(given) and all(isinstance(x, int | np.integer) for x in given)):
        return (given,)
    return tuple(given)


def _screened(model: Model, plan: _Screening, case: Case) -> dict[str, np.ndarray]:
    """One sample's estimates and counts by variable."""
    ready = prepared(model, case, plan.masks(case))
    (value, largest), gradient = gate_slopes(
        model.network.decoder, ready.rows, ready.target, metric=case.metric.compiled_form(), sites=plan.sites
    )
    refuse_overflow(largest, f"sample {case.sample!r}")
    leaves = [value, *jax.tree.leaves(gradient)]
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves):
        raise ValueError(f"sample {case.sample!r}: the metric or its gradient is not finite; look at its clip")
    queries, keys, groups = plan.split(ready.members)
    factor, scales = gradient
    screened: dict[str, np.ndarray] = {"clean": np.asarray(value, np.float64)}
    if len(queries) and len(keys):
        estimate = -np.einsum("lnab,qa,kb->lnqk", np.asarray(factor, np.float64), queries, keys)
        screened[f"{EDGE}_estimate"] = estimate
        screened["edges"] = np.array([[case.edges(query, key) for key in plan.keys] for query in plan.queries])
    if len(groups) and plan.sites:
        for site, scale in scales.items():
            slope = np.asarray(scale, np.float64)
            screened[f"{site}_estimate"] = -np.einsum("lm...,gm->l...g", slope, groups)
        screened["positions"] = np.array([case.select(group).sum() for group in plan.groups])
    return screened


Gates = tuple[jax.Array, dict[Site, jax.Array]]  # L N M M; L M [N]


@functools.partial(jax.jit, static_argnames=("metric", "sites"))
def gate_slopes(
    decoder: Decoder, rows: Rows, target: Target, *, metric: Metric, sites: tuple[Site, ...]
) -> tuple[tuple[jax.Array, jax.Array], Gates]:
    """The clean metric [], and its slope along every gate and scale, in one backward pass.

    Beside the metric is the largest size of what a norm was fed.
    """
    cfg, size = decoder.cfg, rows.num_groups
    ones: Gates = (
        jnp.ones((cfg.num_layers, cfg.num_heads, size, size), jnp.float32),
        {site: jnp.ones(_scale_shape(site, cfg, size), jnp.float32) for site in sites},
    )

    def value(gates: Gates) -> tuple[jax.Array, jax.Array]:
        factor, scales = gates
        edits = {site: _scaled(scale) for site, scale in scales.items()}
        sources = {site: _nothing(site, cfg, len(rows.groups)) for site in sites}
        edit = Intervention(attention_factor=factor, sites=edits, sources=sources)
        return watched_objective(decoder, rows, edit, target, metric)

    return jax.value_and_grad(value, has_aux=True)(ones)


def _scale_shape(site: Site, cfg: DecoderConfig, num_groups: int) -> tuple[int, ...]:
    heads = num_site_heads(site, cfg)
    return (cfg.num_layers, num_groups, *(() if heads is None else (heads,)))


def _scaled(scale: jax.Array) -> SiteEdit:
    nothing = jnp.zeros((*scale.shape, 0), jnp.float32)
    return SiteEdit(scale=scale, dense_weight=nothing, vector_weight=nothing)


def _nothing(site: Site, cfg: DecoderConfig, size: int) -> SiteSources:
    shape = site_shape(site, cfg)
    return SiteSources(
        dense=jnp.zeros((cfg.num_layers, 0, size, *shape)), vectors=jnp.zeros((cfg.num_layers, 0, *shape))
    )


def _dataset(plan: _Screening, found: Mapping[str, np.ndarray], name: str, unit: str) -> xr.Dataset:
    descriptions = {
        "clean": f"{name} of the clean run",
        "edges": "visible query-key pairs of one head and layer",
        "positions": "tokens of the group",
        f"{EDGE}_estimate": f"first-order effect on {name} of cutting the edges",
    }
    variables = {}
    for key, values in found.items():
        long_name = descriptions.get(
            key, f"first-order effect on {name} of scaling {key.removesuffix('_estimate')} to 0"
        )
        units = "count" if key in ("edges", "positions") else unit
        attrs = {"units": units, "long_name": long_name, "averages": int(units != "count")}
        variables[key] = (_dims(key), values, attrs)
    shown = {"query": plan.queries, "key": plan.keys, "group": plan.groups}
    coordinates: dict[str, Any] = {"sample": list(plan.cases)}
    for key, values in found.items():
        for dim, size in zip(_dims(key), values.shape, strict=True):
            coordinates.setdefault(dim, [str(s) for s in shown[dim]] if dim in shown else np.arange(size))
    return xr.Dataset(variables, coordinates)


def _dims(variable: str) -> tuple[str, ...]:
    match variable:
        case "clean":
            return ("sample",)
        case "edges":
            return ("sample", "query", "key")
        case "positions":
            return ("sample", "group")
        case "edge_estimate":
            return ("sample", "layer", "head", "query", "key")
        case _:
            head = HEAD_DIMS.get(Site(variable.removesuffix("_estimate")))
            return ("sample", "layer", *([head] if head else []), "group")


def _verified(model: Model, plan: _Screening, data: xr.Dataset, top: int, bar: Progress) -> xr.Dataset:
    """With the strongest candidates of each kind, their estimates and their exact effects."""
    chosen = [(kind, at) for kind in (EDGE, *plan.sites) for at in _strongest(data, kind, top)]
    estimates = np.stack([data[f"{kind}_estimate"].isel(at).to_numpy() for kind, at in chosen])
    effects = np.zeros_like(estimates)
    kinds = list(dict.fromkeys(kind for kind, _ in chosen))
    of_kind = [np.array([kind == one for kind, _ in chosen]) for one in kinds]
    edits = [_edit(plan, *one) for one in chosen]
    for column, case in enumerate(plan.cases.values()):
        for rows in of_kind:  # apart: a sweep has arrays for every site that it edits anywhere
            values, clean = exact(model, case, [[edits[row]] for row in np.flatnonzero(rows)])
            effects[rows, column] = values - clean
        bar.advance(1)
    ranks = [_rank_correlation(estimates[rows].mean(1), effects[rows].mean(1)) for rows in of_kind]
    name, unit = of_one_kind(plan.cases)
    attrs = [
        {"units": unit, "long_name": f"effect on {name}, {how}"} for how in ("first order", "exact, by avjax.sweep")
    ]
    spearman = "Spearman correlation of mean estimates and mean exact effects, over this kind's candidates"
    return data.assign(
        estimate=(("candidate", "sample"), estimates, attrs[0]),
        exact=(("candidate", "sample"), effects, attrs[1]),
        rank_correlation=("kind", ranks, {"units": "1", "long_name": spearman, "averages": 0}),
    ).assign_coords(
        candidate=list(map(str, edits)),
        candidate_kind=("candidate", [kind for kind, _ in chosen]),
        kind=kinds,
    )


def _strongest(data: xr.Dataset, kind: str, top: int) -> list[dict[str, int]]:
    """Where the largest mean estimates of a kind are, largest first; edges that no sample has are left out."""
    if f"{kind}_estimate" not in data:
        return []
    mean = data[f"{kind}_estimate"].mean("sample")
    if kind == EDGE:
        mean = mean.where((data["edges"] > 0).all("sample"))
    size = np.abs(mean.to_numpy()).ravel()
    order = np.argsort(-np.where(np.isnan(size), -1.0, size), kind="stable")[: min(top, int(np.isfinite(size).sum()))]
    places = np.stack(np.unravel_index(order, mean.shape), axis=-1)
    return [dict(zip(map(str, mean.dims), place.tolist(), strict=True)) for place in places]


def _edit(plan: _Screening, kind: str, at: Mapping[str, int]) -> Edit:
    """A candidate's edit."""
    layers, heads = [at["layer"]], [at[dim] for dim in ("head", "kv_head") if dim in at] or None
    if kind == EDGE:
        query, key = plan.queries[at["query"]], plan.keys[at["key"]]
        return Knockout(query=query, key=key, layers=layers, heads=heads)
    return Scale(plan.groups[at["group"]], 0.0, site=kind, layers=layers, heads=heads)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN, which is missing, for fewer than 3 candidates or without spread."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    ranks = np.stack([np.asarray(rankdata(jnp.asarray(x)), np.float64) for x in (a, b)])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])
