"""How much of a prompt a variant's edits reach; every result carries it."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avjax.engine.lowering import Lowered
from avjax.engine.operations import EdgeOp, SiteOp, count_edges
from avjax.models.sites import Site
from avjax.prompts.selectors import TokenGroups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Touched:
    """What a variant's edits reach.

    Attributes:
      edges: query-key pairs whose weight the edits change, summed over layers and heads.
      blocked_queries: queries left without any visible key, summed over layers and heads; they read zero (or, with
        `compat="published"`, the mean value of all keys).
      positions: positions at which activations are changed, summed over sites and layers. What the edits of a place
        together leave as it is, such as a scaling by 1, is not counted, neither as an edge nor as a position.
    """

    edges: int = 0
    blocked_queries: int = 0
    positions: int = 0


def count_touched(lowered: Lowered, variant: int, num_decoded: int) -> Touched:
    """What one variant reaches; see `TouchedCounter`, which is faster for many."""
    return TouchedCounter(lowered).count(variant, num_decoded)


class TouchedCounter:
    """Counts what variants reach; edges of a pattern that several variants share are counted once."""

    def __init__(self, lowered: Lowered):
        self.lowered = lowered
        self._by_pattern: dict[Any, tuple[int, int]] = {}

    def count(self, variant: int, num_decoded: int) -> Touched:
        """What one variant reaches when `num_decoded` generated tokens were fed back as queries."""
        ops = self.lowered.ops[variant]
        positions = _count_positions([op for op in ops if isinstance(op, SiteOp)], num_decoded)
        edge_ops = [op for op in ops if isinstance(op, EdgeOp)]
        edges = blocked = 0
        for numbers, places in _places(edge_ops).items():
            counts = self._edges([edge_ops[i] for i in numbers], num_decoded)
            edges, blocked = edges + places * counts[0], blocked + places * counts[1]
        return Touched(edges=edges, blocked_queries=blocked, positions=positions)

    def _edges(self, ops: Sequence[EdgeOp], num_decoded: int) -> tuple[int, int]:
        """Changed edges and blocked queries of one head and layer in which these edits apply."""
        pattern = (num_decoded, *((op.query.tobytes(), op.key.tobytes(), op.factor) for op in ops))
        if pattern not in self._by_pattern:
            self._by_pattern[pattern] = _count_edges(self.lowered.pattern(ops), self.lowered.groups, num_decoded)
        return self._by_pattern[pattern]


def _count_positions(ops: Sequence[SiteOp], num_decoded: int) -> int:
    """Changed positions, each once in a site and layer, whatever the heads and however many edits reach it."""
    numbers: dict[tuple[Site, int], tuple[int, ...]] = {}
    for i, op in enumerate(ops):
        for layer in op.layers:
            numbers[op.site, layer] = (*numbers.get((op.site, layer), ()), i)
    total = 0
    for together, count in collections.Counter(numbers.values()).items():
        changed = _changed_positions([ops[i] for i in together])
        total += count * (int(changed[:-1].sum()) + num_decoded * int(changed[-1]))
    return total


def _changed_positions(ops: Sequence[SiteOp]) -> np.ndarray:
    """bool [T + 1] of one site and layer: where the scales' product is not 1, or something is added, in some head."""
    changed = np.zeros(len(ops[0].where), bool)
    for head in {head for op in ops for head in (op.heads or (None,))}:
        scale, added = np.ones(len(changed), np.float32), np.zeros(len(changed), bool)
        for op in ops:
            if op.heads is not None and head not in op.heads:
                continue
            scale[op.where] *= np.float32(op.scale)
            added[op.where] &= np.float32(op.scale) != 0
            added |= op.where & op.adds
        changed |= (scale != 1) | added
    return changed


def _places(ops: Sequence[EdgeOp]) -> Mapping[tuple[int, ...], int]:
    """How many pairs of layer and head each set of edits, by number, has to itself; few such sets occur."""
    if len(ops) == 1:
        return {(0,): len(ops[0].layers) * len(ops[0].heads)}
    places: dict[tuple[int, int], tuple[int, ...]] = {}
    for i, op in enumerate(ops):
        for place in itertools.product(op.layers, op.heads):
            places[place] = (*places.get(place, ()), i)
    return collections.Counter(places.values())


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
