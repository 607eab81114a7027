"""What a pass is asked for beside the next token: continuations that are fed after the prompt, and attention masses."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionRead:
    """A mean attention mass that is wanted.

    Attributes:
      query, key: position masks [T + 1]; the last entry stands for generated tokens.
      continuations: those whose fed tokens count as generated queries: the place of each among the pass's, and how many
        of its tokens are the metric's own. What others are fed beside them changes nothing.
    """

    query: np.ndarray
    key: np.ndarray
    continuations: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reads:
    """What a pass is asked for beside the next token's logits.

    Attributes:
      continuations: token ids after the prompt, as the model's own. All of each but its last token are fed, one
        continuation after the other; each sees the prompt and itself.
      attention: the masses that are wanted.
      published: fed tokens are told from the prompt's even where there is one continuation: under the published
        behaviour a blocked query of the prompt reads the whole prompt, and nothing that was not there yet.
    """

    continuations: tuple[tuple[int, ...], ...] = ()
    published: bool = False
    attention: tuple[AttentionRead, ...] = ()

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens that are fed, in their order after the prompt."""
        return tuple(token for continuation in self.continuations for token in continuation[:-1])

    @property
    def longest_fed(self) -> int:
        """Of one continuation."""
        return max((len(continuation) - 1 for continuation in self.continuations), default=0)

    @property
    def steps(self) -> np.ndarray:
        """int32 [fed]: how many tokens of its own continuation come before each fed token."""
        return self._by_continuation(lambda _, count: range(count))

    @property
    def branches(self) -> np.ndarray | None:
        """int32 [fed]: the number of each fed token's continuation, from 1; None where nothing depends on it."""
        several = sum(len(continuation) > 1 for continuation in self.continuations)
        if several < (1 if self.published else 2):
            return None
        return self._by_continuation(lambda index, count: [index + 1] * count)

    def _by_continuation(self, values: Callable[[int, int], Sequence[int]]) -> np.ndarray:
        parts = [values(i, len(continuation) - 1) for i, continuation in enumerate(self.continuations)]
        return np.array([*itertools.chain.from_iterable(parts)], np.int32)

    def fed_places(self, continuation: int) -> np.ndarray:
        """int32: where the fed tokens of one continuation stand after the prompt, the first fed token at 0."""
        first = sum(len(other) - 1 for other in self.continuations[:continuation])
        return first + np.arange(len(self.continuations[continuation]) - 1, dtype=np.int32)

    @property
    def continued(self) -> np.ndarray:
        """int32 [n]: all tokens of the continuations, whose log-probabilities are read."""
        return np.array([*itertools.chain.from_iterable(self.continuations)], np.int32)

    @property
    def predictors(self) -> np.ndarray:
        """int32 [n]: the read-out that predicts each of those tokens; 0 is the last prompt position's."""
        parts = [[0, *(1 + self.fed_places(place))] for place in range(len(self.continuations))]
        return np.array([*itertools.chain.from_iterable(parts)], np.int32)

    def visible(self, num_prompt: int) -> np.ndarray:
        """bool [T + fed, T + fed]: which position sees which, over the prompt and what is fed after it."""
        branches = np.zeros(num_prompt, np.int32)
        for place in range(len(self.continuations)):
            branches = np.append(branches, np.full(len(self.fed_places(place)), place + 1))
        same = (branches == 0) | (branches == branches[:, None])
        return np.tri(len(branches), dtype=bool) & same

    def query_rows(self, read: AttentionRead, num_prompt: int) -> np.ndarray:
        """The positions over which an attention mass is averaged, those of fed tokens included."""
        rows = [np.flatnonzero(read.query[:-1])]
        if read.query[-1]:
            rows += [num_prompt + self.fed_places(place)[: length - 1] for place, length in read.continuations]
        return np.concatenate(rows).astype(np.int32)

    def key_share(self, read: AttentionRead, num_prompt: int) -> float:
        """The mean share of the keys in what each query sees."""
        rows = np.flatnonzero(read.query[:-1])
        shares = [np.cumsum(read.key[:-1])[rows] / (rows + 1)]
        if read.query[-1]:
            for _, length in read.continuations:
                steps = 1 + np.arange(length - 1)
                shares.append((read.key[:-1].sum() + read.key[-1] * steps) / (num_prompt + steps))
        return float(np.concatenate(shares).mean())


def with_fed(mask: np.ndarray, fed: int) -> np.ndarray:
    """A position mask [T + 1] with its last entry once for each of `fed` tokens after the prompt."""
    return np.concatenate([mask[:-1], np.full(fed, mask[-1])])


def placed(continuations: Sequence[tuple[int, ...]]) -> tuple[tuple[tuple[int, ...], ...], list[int]]:
    """Continuations without those that another begins with, and where each given one is among them."""
    longest: list[tuple[int, ...]] = []
    for continuation in sorted(set(continuations), key=len, reverse=True):
        if not any(other[: len(continuation)] == continuation for other in longest):
            longest.append(continuation)
    distinct = tuple(c for c in dict.fromkeys(continuations) if c in longest)
    places = [
        next(place for place, other in enumerate(distinct) if other[: len(continuation)] == continuation)
        for continuation in continuations
    ]
    return distinct, places
