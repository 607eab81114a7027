"""Edits of one prompt as operations on positions: selectors resolved, sources found, everything checked.

Axes: L layer, T position, N heads, K kv heads.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from avjax.edits.edits import Ablate, EdgeEdit, Edit, Patch, PositionEdit, Scale, Steer
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.sources import Source, ablation_source, patch_source, steer_source
from avjax.models.config import DecoderConfig
from avjax.models.sites import FLOW, Site, num_site_heads
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import BySample, Selector, select


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeOp:
    """Multiplies exp(score) of edges."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    query: np.ndarray  # bool T + 1, as all position masks: the last entry stands for generated tokens
    key: np.ndarray
    factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteOp:
    """Scales activations, then adds a source times its weight."""

    site: Site
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None  # None where the site has none
    where: np.ndarray
    scale: float
    source: Source | None = None
    weight: float = 0.0
    shift: int = 0  # layers by which the edit was moved; its source is that of so many layers before

    @property
    def adds(self) -> bool:
        return self.source is not None and bool(np.float32(self.weight) != 0)


Op = EdgeOp | SiteOp


def operations(
    edits: Sequence[Edit],
    prompt: Prompt,
    config: DecoderConfig,
    *,
    num_decoded: int,
    allow_noop: bool,
    clean: CleanRuns,
) -> tuple[Op, ...]:
    """The operations of one variant, in the order in which the forward pass meets them.

    Args:
      num_decoded: how many generated tokens can become queries; 0 when nothing is generated.
      clean: activations of clean passes; sources ask for them when they are assembled.

    Raises:
      ValueError: a selector, layer or head is out of range, a source does not fit, or an edit touches nothing; the edit
        is named.
    """
    ops: list[Op] = []
    for edit in edits:
        if isinstance(edit, EdgeEdit):
            ops.append(_edge_op(edit, prompt, config, num_decoded, allow_noop))
        elif isinstance(edit, PositionEdit):
            ops.extend(_site_ops(edit, prompt, config, num_decoded, allow_noop, clean))
        else:
            raise TypeError(f"expected an intervention, got {type(edit).__name__}: {edit!r}")
    return tuple(sorted(ops, key=lambda op: FLOW.index(op.site) if isinstance(op, SiteOp) else -1))


def _edge_op(edit: EdgeEdit, prompt: Prompt, config: DecoderConfig, num_decoded: int, allow_noop: bool) -> EdgeOp:
    query, key = _selected(edit, prompt, edit.query), _selected(edit, prompt, edit.key)
    layers, heads = edit.layer_indices(config), edit.head_indices(config)
    reason = None if allow_noop else _why_no_edge(edit, query, key, num_decoded)
    _refuse_noop(edit, reason)
    return EdgeOp(layers=layers, heads=heads, query=query, key=key, factor=edit.multiplier)


def _site_ops(
    edit: PositionEdit,
    prompt: Prompt,
    config: DecoderConfig,
    num_decoded: int,
    allow_noop: bool,
    clean: CleanRuns,
) -> list[SiteOp]:
    where = _selected(edit, prompt, edit.where)
    site, layers, heads = Site(edit.site), edit.layer_indices(config), edit.head_indices(config)
    reason = None
    if not where.any():
        reason = f"the prompt has no {edit.where} tokens"
    elif not where[:-1].any() and num_decoded == 0:
        reason = "it edits generated tokens, but none is fed back in this run"
    _refuse_noop(edit, None if allow_noop else reason)
    if reason is not None:
        return []
    place = {
        "site": site,
        "layers": layers,
        "heads": heads if num_site_heads(site, config) is not None else None,
        "where": where,
    }
    with _named(edit):
        match edit:
            case Scale():
                return [SiteOp(**place, scale=edit.factor)]
            case Steer():
                weight = edit.scale if np.any(np.asarray(edit.vector)) else 0.0
                return [SiteOp(**place, scale=1.0, source=steer_source(edit, site, config), weight=weight)]
            case Ablate(mode="zero"):
                return [SiteOp(**place, scale=0.0)]
            case Ablate():
                source = ablation_source(edit, site, where, prompt, clean, num_decoded)
                if edit.mode == "noise":
                    return [SiteOp(**place, scale=1.0, source=source, weight=1.0 if np.float32(edit.noise) else 0.0)]
                return [SiteOp(**place, scale=0.0, source=source, weight=1.0)]
            case Patch():
                source = patch_source(edit, site, where, prompt, config, clean, num_decoded)
                return [SiteOp(**place, scale=0.0, source=source, weight=1.0)]
    raise TypeError(f"expected an intervention, got {type(edit).__name__}: {edit!r}")


class _named:
    """Puts the edit's own name in front of what is wrong with it."""

    def __init__(self, edit: Edit):
        self.edit = edit

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"rule {self.edit}: {error}") from error


def _selected(edit: Edit, prompt: Prompt, selector: Selector | BySample) -> np.ndarray:
    with _named(edit):
        return select(prompt, selector)


def _refuse_noop(edit: Edit, reason: str | None) -> None:
    if reason is not None:
        raise ValueError(f"rule {edit} touches nothing: {reason}; change it or pass allow_noop=True")


def _why_no_edge(edit: EdgeEdit, query: np.ndarray, key: np.ndarray, num_decoded: int) -> str | None:
    for name, selector, mask in (("query", edit.query, query), ("key", edit.key, key)):
        if not mask.any():
            return f"the prompt has no {selector} tokens ({name})"
    if not query[:-1].any() and num_decoded == 0:
        return (
            "its queries are generated tokens, but none is fed back in this run (the last prompt position predicts the "
            "first one; use query 'answer' or 'last' to edit that one)"
        )
    if count_edges(query, key, num_decoded) == 0:
        return "no query comes at or after one of its keys, so causal attention has no such edge"
    return None


def count_edges(query: np.ndarray, key: np.ndarray, num_decoded: int) -> int:
    """Visible (query, key) pairs of one head and layer."""
    keys_before = np.cumsum(key[:-1])
    edges = int(keys_before[query[:-1]].sum())
    if query[-1]:
        edges += num_decoded * int(key[:-1].sum())
        edges += num_decoded * (num_decoded + 1) // 2 if key[-1] else 0
    return edges


def first_row(op: Op, num_positions: int) -> int:
    """The first prompt position that the operation changes; `num_positions` when it changes generated tokens alone.

    Everything before it is the clean run, in every layer.
    """
    touched = op.where[:-1] if isinstance(op, SiteOp) else op.query[:-1] & (np.cumsum(op.key[:-1]) > 0)
    rows = np.flatnonzero(touched)
    return int(rows[0]) if len(rows) else num_positions
