"""How well probes name the classes of clips that they were not trained on, with bootstrap intervals over those clips.

Axes: B probe, C test clip, K class, W bootstrap draw.
"""

import dataclasses

import numpy as np

MEASURES = ("accuracy", "balanced_accuracy", "auroc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """A measure of B probes: its value, and the bounds of its interval; NaN with fewer than 2 groups of test clips."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Bootstrap draws of groups of clips: float32 [W, C], how often each draw holds each clip."""

    counts: np.ndarray
    level: float

    @classmethod
    def of(cls, groups: np.ndarray, draws: int, level: float, seed: int) -> "Draws":
        """Draws of whole groups, since clips of one group are not independent; `groups` is int [C]."""
        _, index = np.unique(groups, return_inverse=True)
        size = int(index.max()) + 1
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=draws)
        counts = drawn[:, index] if size > 1 else np.zeros((0, len(index)))
        return cls(counts=counts.astype(np.float32), level=level)

    def means(self, values_BC: np.ndarray, of_C: np.ndarray | None = None) -> np.ndarray:
        """[B, W], mean over some clips in each draw; NaN in a draw without any of them."""
        kept = np.ones(values_BC.shape[1], bool) if of_C is None else of_C
        counts = self.counts[:, kept]
        with np.errstate(invalid="ignore"):
            return (values_BC[:, kept].astype(np.float32) @ counts.T) / counts.sum(1)

    def bounds(self, drawn_BW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not drawn_BW.shape[1]:
            return np.full(len(drawn_BW), np.nan), np.full(len(drawn_BW), np.nan)
        tails = ((1 - self.level) / 2, (1 + self.level) / 2)
        usable = ~np.isnan(drawn_BW).any(0)  # NaN comes from clips that a draw lacks, so for all probes alike
        if not usable.any():
            return np.full(len(drawn_BW), np.nan), np.full(len(drawn_BW), np.nan)
        low, high = np.quantile(drawn_BW[:, usable], tails, axis=1)
        return low, high


def scored(logits_BCK: np.ndarray, truth_C: np.ndarray, draws: Draws) -> dict[str, Scored]:
    """Accuracy, balanced accuracy and AUROC of B probes on clips that have every class.

    AUROC is that of the second class where there are two, else the mean over classes of each against the rest, by
    probability. Its interval resamples placement values, which leaves out a term of second order in the number of
    clips; the others resample the clips themselves.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); DeLong et al. 1988 (placement values).
    """
    num_classes = logits_BCK.shape[-1]
    right = (logits_BCK.argmax(-1) == truth_C).astype(np.float32)
    members = [truth_C == k for k in range(num_classes)]
    recall = np.mean([right[:, own].mean(1, dtype=np.float64) for own in members], 0)
    scores = {
        "accuracy": (right.mean(1, dtype=np.float64), draws.means(right)),
        "balanced_accuracy": (recall, np.mean([draws.means(right, own) for own in members], 0)),
    }
    values, drawn = [], []
    # In the order of probabilities; of two classes exactly, so that clips that tie do.
    base = logits_BCK[..., :1] if num_classes == 2 else np.logaddexp.reduce(logits_BCK, -1, keepdims=True)
    log_p = logits_BCK - base
    for k in range(num_classes) if num_classes > 2 else [1]:
        placed = _placements(log_p[..., k], members[k])
        value = placed[:, members[k]].mean(1, dtype=np.float64)
        values.append(value)
        drawn.append(draws.means(placed, members[k]) + draws.means(placed, ~members[k]) - value[:, None])
    scores["auroc"] = np.mean(values, 0), np.mean(drawn, 0)
    return {name: Scored(value=value, **_named(draws.bounds(d))) for name, (value, d) in scores.items()}


def difference(right_BC: np.ndarray, other_BC: np.ndarray, draws: Draws) -> Scored:
    """Of two accuracies on the same clips, paired."""
    gap = right_BC.astype(np.float32) - other_BC.astype(np.float32)
    return Scored(value=gap.mean(1, dtype=np.float64), **_named(draws.bounds(draws.means(gap))))


def _named(bounds: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(("low", "high"), bounds, strict=True))


def _placements(scores_BC: np.ndarray, positive_C: np.ndarray) -> np.ndarray:
    """float32 [B, C]: of each clip, the share of the other kind's clips on its right side; a tie is a half."""
    order = np.argsort(scores_BC, -1)
    ordered, positive = np.take_along_axis(scores_BC, order, -1), positive_C[order]
    place = np.arange(ordered.shape[1])
    starts = np.concatenate([np.ones((len(ordered), 1), bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    ends = np.concatenate([starts[:, 1:], np.ones((len(ordered), 1), bool)], 1)
    first = np.maximum.accumulate(np.where(starts, place, 0), 1)  # of the clips that tie with one
    last = np.minimum.accumulate(np.where(ends, place, len(place))[:, ::-1], 1)[:, ::-1]

    def below(kind: np.ndarray) -> np.ndarray:
        """How many of a kind have a lower score, those that tie counted half."""
        count = np.pad(np.cumsum(kind, 1), ((0, 0), (1, 0)))
        return (np.take_along_axis(count, first, 1) + np.take_along_axis(count, last + 1, 1)) / 2

    positives = positive_C.sum()
    negatives = len(positive_C) - positives
    shares = np.where(positive, below(~positive) / negatives, 1 - below(positive) / positives)
    placements = np.empty(shares.shape, np.float32)
    np.put_along_axis(placements, order, shares.astype(np.float32), -1)
    return placements
