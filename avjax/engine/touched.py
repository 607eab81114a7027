"""How much of a prompt a variant's edits reach; every result carries it."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from avjax.engine.operations import SiteOp, count_edges
from avjax.tokens import TokenGroups

if TYPE_CHECKING:
    from avjax.engine.lowering import Lowered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Touched:
    """What a variant's edits reach.

    Attributes:
      edges: query-key pairs whose weight the edits change, summed over layers and heads.
      blocked_queries: queries left without any visible key, summed over layers and heads; they read zero (or, with
        `compat="published"`, the mean value of all keys).
      positions: positions at which activations are changed, summed over sites and layers.
    """

    edges: int = 0
    blocked_queries: int = 0
    positions: int = 0


def count_touched(lowered: "Lowered", variant: int, num_decoded: int) -> Touched:
    """What one variant reaches when `num_decoded` generated tokens were fed back as queries."""
    ops = lowered.ops[variant]
    positions = sum(
        len(op.layers) * (int(op.where[:-1].sum()) + num_decoded * int(op.where[-1]))
        for op in ops
        if isinstance(op, SiteOp)
    )
    if all(isinstance(op, SiteOp) for op in ops):
        return Touched(positions=positions)
    edges, blocked = _count_edges(lowered.factor(variant), lowered.groups, num_decoded)
    return Touched(edges=edges, blocked_queries=blocked, positions=positions)


def _count_edges(factor: np.ndarray, groups: TokenGroups, num_decoded: int) -> tuple[int, int]:
    edges = blocked_queries = 0
    # Heads and layers repeat few distinct patterns; count each pattern once.
    patterns, counts = np.unique(factor.reshape(-1, *factor.shape[2:]), axis=0, return_counts=True)
    members = [np.append(groups.prompt == m, groups.generated == m) for m in range(factor.shape[-1])]
    nothing = np.zeros(len(groups.prompt) + 1, bool)
    for pattern, count in zip(patterns, counts, strict=True):
        for m, query in enumerate(members):
            if not query.any() or (pattern[m] == 1).all():
                continue
            changed = np.any([nothing, *(members[k] for k in np.flatnonzero(pattern[m] != 1))], axis=0)
            blocked = np.any([nothing, *(members[k] for k in np.flatnonzero(pattern[m] == 0))], axis=0)
            edges += int(count) * count_edges(query, changed, num_decoded)
            if not blocked.any():
                continue
            open_keys = np.flatnonzero(~blocked[:-1])
            first_open = open_keys[0] if len(open_keys) else len(blocked)
            blocked_queries += int(count) * int(np.sum(np.flatnonzero(query[:-1]) < first_open))
            if query[-1] and not len(open_keys) and blocked[-1]:
                blocked_queries += int(count) * num_decoded
    return edges, blocked_queries
