"""Confidence intervals and p-values of means: Student's t and two bootstraps, many columns at a time.

Axes: n sample, C column, D draw. A NaN is a missing sample of its column.

How often each method's intervals hold the true mean: `sweeps/bench/RESULTS.md`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

Method = Literal["studentised", "student", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
MIN_SAMPLES = 5  # 5 samples have 126 distinct resampled sets, 4 have 35: too few for a tail of 2.5%
CHUNK_ELEMENTS = 2**24  # of one float64 intermediate: 128 MiB
TAIL_DRAWS = 20  # of the most extreme draws; beyond them a p-value follows Student's tail, scaled to meet them
NO_SPREAD = 1e-6  # of a draw, relative to the spread of the samples
ROUNDING = 8 * np.finfo(np.float64).eps  # spread of equal samples, relative to their size
FAR = 1e200  # stands for an infinite pivot, whose quantiles would be NaN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
    """The resampled sets of one bootstrap: how often each draw holds each sample.

    Attributes:
      draws: resampled sets, D.
      seed: of the draws.
    """

    draws: int
    seed: int

    def weights(self, num_samples: int) -> Iterator[Float[np.ndarray, "D n"]]:
        """Some draws at a time, rows that sum to n. The same for every variable, however large the chunks."""
        rng = np.random.default_rng(self.seed)
        chunk = max(1, CHUNK_ELEMENTS // num_samples)
        for start in range(0, self.draws, chunk):
            size = min(chunk, self.draws - start)
            yield rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=size).astype(np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means:
    """Means of columns with their bounds, all [C]; NaN where there is none.

    Attributes:
      count: samples that are not missing.
      low, high: bounds at the level; NaN with fewer than `MIN_SAMPLES` samples.
      p: two-sided p-value of a mean of 0; it is below 1 - level where the bounds exclude 0, but for what lies on them.
    """

    value: Float[np.ndarray, " C"]
    count: Int[np.ndarray, " C"]
    low: Float[np.ndarray, " C"]
    high: Float[np.ndarray, " C"]
    p: Float[np.ndarray, " C"]


def means_of(values: Float[np.ndarray, "n C"], method: Method, level: float, resampling: Resampling) -> Means:
    """Means over samples with intervals and p-values by one method.

    `studentised` draws the pivot (mean of a draw - mean) / (standard error of the draw). A draw without spread has an
    infinite pivot; a column in which they reach a bound, as they do for few distinct values, gets Student's interval.
    Samples that are all equal have an interval of no width. A p-value of "studentised" that is below 1 - level is never
    below Student's, and one of "percentile" never below 2 / (draws + 1).

    Source: Efron and Tibshirani 1993, chapters 12 (studentised) and 13 (percentile).
    """
    count = np.sum(~np.isnan(values), axis=0)
    value = np.divide(np.nansum(values, axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
    deviations = values - value
    squares = np.nansum(deviations**2, axis=0)
    spread = np.sqrt(np.divide(squares, count - 1, out=np.zeros(len(count)), where=count > 1))
    largest = np.max(np.abs(np.nan_to_num(values)), axis=0, initial=0.0)
    spread[spread <= ROUNDING * largest] = 0.0
    usable = count >= MIN_SAMPLES
    low, high, p = (np.full(len(count), np.nan) for _ in range(3))
    function = {"studentised": _studentised, "student": _student, "percentile": _percentile}[method]
    for part in _blocks(count, method, resampling):
        samples = _Columns(value[part], deviations[:, part], spread[part], count[part])
        low[part], high[part], p[part] = function(samples, level, resampling)
    constant = usable & (spread == 0)
    low[constant] = high[constant] = value[constant]
    p[constant] = np.where(value[constant] == 0, 1.0, 0.0)
    return Means(value=value, count=count, low=low, high=high, p=p)


def _blocks(count: np.ndarray, method: Method, resampling: Resampling) -> Iterator[np.ndarray]:
    """Indices of columns with samples enough, as many at a time as memory allows; one count each if studentised."""
    size = max(1, CHUNK_ELEMENTS // (1 if method == "student" else resampling.draws))
    key = count if method == "studentised" else np.minimum(count, MIN_SAMPLES)
    for each in np.unique(key[count >= MIN_SAMPLES]):
        columns = np.flatnonzero(key == each)
        for start in range(0, len(columns), size):
            yield columns[start : start + size]


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Columns with samples enough: mean [C], deviations from it [n, C], standard deviation and count [C]."""

    value: np.ndarray
    deviations: np.ndarray
    spread: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean."""
        return self.spread / np.sqrt(self.count)

    @property
    def pivot(self) -> np.ndarray:
        """Mean over its standard error; that of a constant column is set aside by its caller."""
        return np.divide(self.value, self.error, out=np.zeros(len(self.value)), where=self.error > 0)


Bounds = tuple[np.ndarray, np.ndarray, np.ndarray]  # low, high, p


def _student(columns: _Columns, level: float, resampling: Resampling) -> Bounds:
    from scipy.special import stdtr, stdtrit

    width = stdtrit(columns.count - 1, (1 + level) / 2) * columns.error
    return columns.value - width, columns.value + width, 2 * stdtr(columns.count - 1, -np.abs(columns.pivot))


def _percentile(columns: _Columns, level: float, resampling: Resampling) -> Bounds:
    # Deviations from the mean lose no digits to a large offset, and a constant has an interval of no width.
    drawn = columns.value[:, None] + _drawn_means(columns.deviations, resampling)
    shares = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(drawn, shares, axis=1)
    for column in np.flatnonzero(np.isnan(drawn).any(axis=1)):  # some draw held missing samples only
        present = drawn[column][~np.isnan(drawn[column])]
        low[column], high[column] = np.quantile(present, shares) if len(present) else (np.nan, np.nan)
    tail = np.minimum(np.sum(drawn <= 0, axis=1), np.sum(drawn >= 0, axis=1))
    return low, high, np.minimum(1.0, 2 * (tail + 1) / (np.sum(~np.isnan(drawn), axis=1) + 1))


def _drawn_means(deviations: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Mean over each draw [C, D] of the samples that are not missing, from [n, C]; NaN where none is left."""
    num_samples, size = deviations.shape
    there = ~np.isnan(deviations)
    filled, complete = np.where(there, deviations, 0.0), bool(there.all())
    means = np.empty((size, resampling.draws))
    start = 0
    for weights in resampling.weights(num_samples):
        total = num_samples if complete else there.T.astype(np.float64) @ weights.T
        with np.errstate(invalid="ignore"):  # 0 / 0 is missing
            means[:, start : start + len(weights)] = (filled.T @ weights.T) / total
        start += len(weights)
    return means


def _studentised(columns: _Columns, level: float, resampling: Resampling) -> Bounds:
    pivots, pivot = _drawn_pivots(columns, resampling), columns.pivot
    tail = (1 - level) / 2
    anchor = min(tail, TAIL_DRAWS / resampling.draws)
    least, low, high, most = np.quantile(pivots, (anchor, tail, 1 - tail, 1 - anchor), axis=1)
    above, below = np.mean(pivots >= pivot[:, None], axis=1), np.mean(pivots <= pivot[:, None], axis=1)
    above = np.where(pivot > most, _tail(pivot, most, anchor, columns.count), above)
    below = np.where(pivot < least, _tail(-pivot, -least, anchor, columns.count), below)
    p = np.minimum(1.0, 2 * np.minimum(above, below))
    student_low, student_high, student_p = _student(columns, level, resampling)
    # Drawn tails of few samples are too thin: at 0.001 they alone find about twice as many false effects as they say.
    alpha = (1 - 1e-9) * (1 - level)  # 1 - 0.95 is above 0.05
    p = np.where(p < 1 - level, np.maximum(p, np.minimum(student_p, alpha)), p)
    usable = (np.abs(low) < FAR) & (np.abs(high) < FAR)
    # Turned round: the high pivots are those of draws above the mean.
    return (
        np.where(usable, columns.value - high * columns.error, student_low),
        np.where(usable, columns.value - low * columns.error, student_high),
        np.where(usable, p, student_p),
    )


def _tail(pivot: np.ndarray, anchor: np.ndarray, share: float, count: np.ndarray) -> np.ndarray:
    """Share [C] of pivots above `pivot`, where a share of them is above `anchor`: Student's tail, scaled to meet it."""
    from scipy.special import stdtr, stdtrit

    scale = anchor / stdtrit(count - 1, 1 - share)
    return stdtr(count - 1, -pivot / np.where(scale > 0, scale, 1.0))


def _drawn_pivots(columns: _Columns, resampling: Resampling) -> np.ndarray:
    """(mean of a draw - mean) / (standard error of the draw) [C, D]; beyond FAR for a draw without spread.

    Columns of one count: what is missing is left out before anything is drawn.
    """
    first = np.argsort(np.isnan(columns.deviations), axis=0, kind="stable")[: columns.count[0]]
    scaled = np.take_along_axis(columns.deviations, first, axis=0) / np.where(columns.spread > 0, columns.spread, 1.0)
    n, size = scaled.shape
    mean, variance = np.empty((size, resampling.draws)), np.empty((size, resampling.draws))
    start = 0
    for weights in resampling.weights(n):
        part = slice(start, start + len(weights))
        mean[:, part] = (scaled.T @ weights.T) / n
        variance[:, part] = ((scaled**2).T @ weights.T) / n - mean[:, part] ** 2
        start += len(weights)
    flat = variance <= NO_SPREAD**2
    with np.errstate(invalid="ignore", divide="ignore"):  # in place: these arrays are the largest
        pivots = np.divide(mean, np.sqrt(variance, out=variance), out=variance)
        pivots *= np.sqrt(n - 1)
    pivots[flat] = np.sign(mean[flat]) * FAR * 1e50
    return pivots
