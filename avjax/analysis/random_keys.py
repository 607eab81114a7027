"""Random keys with as many edges as a pathway: what it is compared with, so that its size alone explains nothing.

The edges of a key are the queries that may attend to it, those at or after it. Axes: K key.
"""

import dataclasses

import numpy as np

TRIES = 8  # random starts before the number of keys may differ, and before the nearest number of edges is taken
ALIKE = 0.5  # of the keys that chance leaves apart, how many a random set may share with the pathway


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyEdges:
    """The keys that may be cut, and how many edges each has.

    Attributes:
      positions: int [K], in the prompt.
      edges: int [K], above 0: query-key pairs of one head and layer.
    """

    positions: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, query: np.ndarray, free: np.ndarray, num_decoded: int) -> "KeyEdges":
        """Of the keys that some query sees.

        Args:
          query: bool [T + 1], as of `select`.
          free: bool [T], the keys that may be cut.
          num_decoded: generated tokens that are fed back, as queries.
        """
        edges = np.cumsum(query[:-1][::-1])[::-1] + num_decoded * int(query[-1])
        if not edges.any() and query[-1]:
            edges = np.ones_like(edges)  # the queries are generated tokens, and a sweep without any is refused there
        positions = np.flatnonzero(free & (edges > 0))
        return cls(positions=positions, edges=edges[positions])

    def drawn(self, pathway: np.ndarray, orders: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """For each order a random set of keys with the pathway's number of edges, both bool [K].

        Sets have as many keys as the pathway, too, unless that leaves hardly any choice: of a pathway that lies before
        all other keys, only itself has as many edges with as many keys. Then they have as many edges with more or fewer
        keys. Where no set with the very number is met, it is the nearest one.

        Args:
          orders: permutations of the K keys.
        """
        target = int(self.edges[pathway].sum())
        same = [self._nearest(order, target, int(pathway.sum()), rng) for order in orders]
        if all(self.edges[s].sum() == target for s in same) and not _alike(same, pathway):
            return same
        other = [self._nearest(order, target, None, rng) for order in orders]

        def misses(sets: list[np.ndarray]) -> int:
            return max(abs(int(self.edges[s].sum()) - target) for s in sets)

        return other if misses(other) <= misses(same) else same

    def _nearest(self, order: np.ndarray, target: int, num_keys: int | None, rng: np.random.Generator) -> np.ndarray:
        """The set nearest to a number of edges that some random starts lead to; the first with the very number."""
        best = np.zeros(len(order), bool)
        for _ in range(TRIES):
            moved = self._moved(order, target, num_keys, rng)
            missing = abs(int(self.edges[moved].sum()) - target)
            if not best.any() or missing < abs(int(self.edges[best].sum()) - target):
                best = moved
            if not missing:
                break
            order = rng.permutation(order)
        return best

    def _moved(self, order: np.ndarray, target: int, num_keys: int | None, rng: np.random.Generator) -> np.ndarray:
        """A random set, then one key for another until the number of edges fits or no exchange brings it nearer."""
        kept = np.zeros(len(order), bool)
        count = np.searchsorted(np.cumsum(self.edges[order]), target, side="right") if num_keys is None else num_keys
        kept[order[: max(1, int(count))]] = True
        while missing := target - int(self.edges[kept].sum()):
            if (pair := self._exchange(kept, missing, rng)) is None:
                break
            kept[pair[0]], kept[pair[1]] = False, True
        return kept

    def _exchange(self, kept: np.ndarray, missing: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """A kept key and another one whose exchange gives all that is missing, or else a part of it; both at random."""
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        wanted = inside[np.isin(self.edges[inside] + missing, self.edges[outside])]
        if len(wanted):
            given = rng.choice(wanted)
            return int(given), int(rng.choice(outside[self.edges[outside] == self.edges[given] + missing]))
        for given in rng.permutation(inside):
            gain = (self.edges[outside] - self.edges[given]) * np.sign(missing)
            nearer = outside[(gain > 0) & (gain < abs(missing))]
            if len(nearer):
                return int(given), int(rng.choice(nearer))
        return None


def _alike(sets: list[np.ndarray], pathway: np.ndarray) -> bool:
    """Whether sets as large as the pathway share more with it, on average, than halfway from chance to all of it."""
    size = int(pathway.sum())
    shared, chance = np.mean([(s & pathway).sum() for s in sets]), size * size / len(pathway)
    return bool(shared - chance > ALIKE * (size - chance))
