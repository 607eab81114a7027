"""How often nominal 95% intervals of a mean hold it: `avjax.bootstrap`'s methods and scipy's BCa, by simulation.

Command: `python -m sweeps.bench.coverage [--experiments 10000] [--draws 2000] [--level 0.95]`
Cost: about five minutes on one core, nearly all of it scipy's BCa.
Expected: "studentised", the default, and "student" hold the mean of normal data in 95% of experiments at every n;
"percentile" and BCa in 84% at n = 5. Of lognormal data all hold it too seldom, the studentised one least so. Binary
samples that are all equal, frequent where n is small, tell no method how far the mean may be.

Prints a table of coverage, with the median width over that of Student's interval in parentheses, and how long each
method takes for 5,000 cells. Experiments without an interval count as not holding the mean.
"""

import argparse
import os
import warnings
from collections.abc import Callable

import numpy as np
import xarray as xr

import avjax
from avjax.intervals import METHODS
from sweeps.bench.timing import hardware, interleave

SIZES = (5, 10, 20, 50)
CELLS, SAMPLES = 5000, 20  # of the timing
TIE = 1e-9  # a bound that equals the mean to rounding holds it
BCA_ELEMENTS = 2**25  # resampled values that scipy holds at once
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
POPULATIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "lognormal, log sd 1": (lambda rng, shape: rng.lognormal(size=shape), float(np.exp(0.5))),
    "binary, p 0.5": (lambda rng, shape: (rng.random(shape) < 0.5).astype(float), 0.5),
    "binary, p 0.2": (lambda rng, shape: (rng.random(shape) < 0.2).astype(float), 0.2),
    "difference of pairs, -1 (0.1), 0 (0.6), 1 (0.3)": (
        lambda rng, shape: rng.choice([-1.0, 0.0, 1.0], size=shape, p=[0.1, 0.6, 0.3]),
        0.2,
    ),
}


def intervals(values: np.ndarray, method: str, draws: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [experiment] of the means of values [experiment, sample]."""
    if method == "BCa":
        from scipy.stats import bootstrap

        batch = max(1, BCA_ELEMENTS // values.size)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # samples that are all equal have no interval
            summary = bootstrap(
                (values,), np.mean, axis=-1, n_resamples=draws, batch=batch, confidence_level=level, rng=0
            ).confidence_interval
        return summary.low, summary.high
    dataset = xr.Dataset({"x": (("experiment", "sample"), values)})
    means = avjax.bootstrap(dataset, draws=draws, level=level, method=method)  # pyright: ignore[reportArgumentType]
    return means["x_low"].to_numpy(), means["x_high"].to_numpy()


def coverage(population: str, n: int, experiments: int, draws: int, level: float) -> dict[str, tuple[float, float]]:
    """Of each method: share of experiments whose interval holds the mean, and the median width."""
    draw, mean = POPULATIONS[population]
    rng = np.random.default_rng([n, list(POPULATIONS).index(population)])
    values = draw(rng, (experiments, n))
    shares = {}
    for method in (*METHODS, "BCa"):
        low, high = intervals(values, method, draws, level)
        shares[method] = float(np.mean((low <= mean + TIE) & (high >= mean - TIE))), float(np.nanmedian(high - low))
    return shares


def seconds(level: float) -> dict[str, float]:
    """Median time for CELLS cells of SAMPLES samples with the default number of draws; of BCa a tenth, multiplied."""
    values = np.random.default_rng(0).normal(size=(CELLS, SAMPLES))
    some = {"BCa": values[: CELLS // 10]}
    calls = {m: (lambda m=m: intervals(some.get(m, values), m, 10_000, level)) for m in (*METHODS, "BCa")}
    times = interleave(calls, rounds=3, warmup=1)
    return {m: t.median * len(values) / len(some.get(m, values)) for m, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--level", type=float, default=0.95)
    options = parser.parse_args()
    methods = (*METHODS, "BCa")
    print(f"{options.experiments:,} experiments, {options.draws:,} draws, nominal {options.level:.0%}\n")
    print("| data | n | " + " | ".join(methods) + " |\n|---|---|" + "---|" * len(methods))
    for population in POPULATIONS:
        for n in SIZES:
            shares = coverage(population, n, options.experiments, options.draws, options.level)
            student = shares["student"][1]
            cells = (f"{100 * share:.1f} ({width / student:.2f})" for share, width in shares.values())
            print(f"| {population} | {n} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{hardware()}, {len(os.sched_getaffinity(0))} cores; {CELLS:,} cells of {SAMPLES} samples, 10,000 draws")
    for method, time in seconds(options.level).items():
        print(f"{method:12} {time:8.2f} s")


if __name__ == "__main__":
    main()
