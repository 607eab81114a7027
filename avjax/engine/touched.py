"""How much of a prompt a variant's edits reach; every result carries it."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from avjax.engine.operations import EdgeOp, SiteOp, count_edges
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
    edge_ops = [op for op in ops if isinstance(op, EdgeOp)]
    if not edge_ops:
        return Touched(positions=positions)
    # Layers and heads under the same edits count alike; few such sets occur.
    active = np.zeros((lowered.config.num_layers, lowered.config.num_heads, len(edge_ops)), bool)
    for i, op in enumerate(edge_ops):
        active[np.ix_(op.layers, op.heads, [i])] = True
    edges = blocked = 0
    places, counts = np.unique(active.reshape(-1, len(edge_ops)), axis=0, return_counts=True)
    for place, count in zip(places, counts.tolist(), strict=True):
        here = [op for op, on in zip(edge_ops, place, strict=True) if on]
        key = (num_decoded, *((op.query.tobytes(), op.key.tobytes(), op.factor) for op in here))
        if key not in lowered.counted:
            lowered.counted[key] = _count_edges(lowered.pattern(here), lowered.groups, num_decoded)
        edges += count * lowered.counted[key][0]
        blocked += count * lowered.counted[key][1]
    return Touched(edges=edges, blocked_queries=blocked, positions=positions)


def _count_edges(pattern: np.ndarray, groups: TokenGroups, num_decoded: int) -> tuple[int, int]:
    """Changed edges and blocked queries of one head and layer under the factors [M, M]."""
    edges = blocked_queries = 0
    if (pattern == 1).all():
        return 0, 0
    members = [np.append(groups.prompt == m, groups.generated == m) for m in range(len(pattern))]
    nothing = np.zeros(len(groups.prompt) + 1, bool)
    for m, query in enumerate(members):
        if not query.any() or (pattern[m] == 1).all():
            continue
        changed = np.any([nothing, *(members[k] for k in np.flatnonzero(pattern[m] != 1))], axis=0)
        blocked = np.any([nothing, *(members[k] for k in np.flatnonzero(pattern[m] == 0))], axis=0)
        edges += count_edges(query, changed, num_decoded)
        if not blocked.any():
            continue
        open_keys = np.flatnonzero(~blocked[:-1])
        first_open = open_keys[0] if len(open_keys) else len(blocked)
        blocked_queries += int(np.sum(np.flatnonzero(query[:-1]) < first_open))
        if query[-1] and not len(open_keys) and blocked[-1]:
            blocked_queries += num_decoded
    return edges, blocked_queries
