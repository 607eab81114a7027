"""How fast probes train against a loop of scikit-learn over the same probes.

    python -m sweeps.bench.probes

28 layers x 3 poolings x 5 seeds x 4 strengths (1,680 probes) of 5 classes on 2,000 x 256 features. Features have a
spectrum as residuals do (deviations falling as 1/sqrt(k), in a random basis, with offsets) and classes that later
layers tell apart better. A round times one call of `train_probes`, with splits, scores and intervals, the training
alone, and scikit-learn's LogisticRegression (lbfgs, its default tolerance, on one thread, which is faster here than its
default) on standardised float32 and float64 features of a sample of the probes, evenly over layers, poolings and
strengths; its time is multiplied to all. Losses that both reach are compared in float64 with the optimum. About a
minute on 2 cores; there, training is over 20 times faster than scikit-learn in its faster precision.
"""

import argparse
import functools
import os

import numpy as np
import xarray as xr

from avjax.analysis.probes.fit import fit
from avjax.analysis.probes.train import TOLERANCE, train_probes
from sweeps.bench.machine import Others
from sweeps.bench.timing import hardware, interleave

LAYERS, POOLINGS, SEEDS, STRENGTHS = 28, ("mean", "last", "max"), range(5), (1e-3, 1e-2, 1e-1, 1.0)
CLIPS, SIZE, CLASSES = 2000, 256, 5
NUM_PROBES = LAYERS * len(POOLINGS) * len(SEEDS) * len(STRENGTHS)


def data(seed: int = 0) -> tuple[xr.DataArray, np.ndarray]:
    """Features over sample, pooling, layer and feature, and a class for each sample."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(CLIPS) % CLASSES)
    values = np.empty((CLIPS, len(POOLINGS), LAYERS, SIZE), np.float32)
    spectrum = (1 + np.arange(SIZE)) ** -0.5
    for pooling, layer in np.ndindex(len(POOLINGS), LAYERS):
        centres = rng.normal(size=(CLASSES, SIZE)) * 0.15 * (0.3 + 1.2 * layer / LAYERS)
        basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
        x = ((rng.normal(size=(CLIPS, SIZE)) + centres[labels]) * spectrum) @ basis
        values[:, pooling, layer] = x * (1 + 3 * rng.random(SIZE)) + rng.normal(size=SIZE)
    coords = {"pooling": list(POOLINGS), "layer": np.arange(LAYERS)}
    return xr.DataArray(values, dims=("sample", "pooling", "layer", "feature"), coords=coords), labels


def sampled(split: np.ndarray, every: int) -> list[tuple[int, int, int]]:
    """Feature set, seed and strength of the probes that scikit-learn trains."""
    sets = range(every // 2, LAYERS * len(POOLINGS), every)
    return [(s, i % len(split), r) for i, s in enumerate(sets) for r in range(len(STRENGTHS))]


def standardised(x: np.ndarray, dtype: type) -> np.ndarray:
    x = x.astype(dtype)
    return (x - x.mean(0)) / x.std(0)


def theirs(values: np.ndarray, labels: np.ndarray, split: np.ndarray, probes: list, dtype: type, tol: float) -> list:
    """scikit-learn's (kernel, bias) of each probe."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    fits = []
    with threadpool_limits(1):
        for s, seed, r in probes:
            train = split[seed] == 0
            model = LogisticRegression(C=1 / (STRENGTHS[r] * train.sum()), tol=tol, max_iter=10_000)
            model.fit(standardised(values[s, train], dtype), labels[train])
            fits.append((model.coef_, model.intercept_))
    return fits


def losses(values: np.ndarray, labels: np.ndarray, split: np.ndarray, probes: list, found: list) -> np.ndarray:
    """In float64, nats per clip."""
    out = []
    for (s, seed, r), (kernel, bias) in zip(probes, found, strict=True):
        train = split[seed] == 0
        z = standardised(values[s, train], np.float64) @ np.asarray(kernel, np.float64).T + bias
        log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        nll = -log_p[np.arange(len(z)), labels[train]].mean()
        out.append(nll + 0.5 * STRENGTHS[r] * np.sum(np.asarray(kernel, np.float64) ** 2))
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=8, help="scikit-learn trains on every N-th feature set")
    options = parser.parse_args()
    features, labels = data()
    whole = functools.partial(train_probes, features, labels, strengths=STRENGTHS, seeds=SEEDS)
    probes_found = whole()
    split = probes_found.results.split.values
    array = features.transpose(..., "sample", "feature")
    values = np.ascontiguousarray(array.values).reshape(-1, CLIPS, SIZE)
    weights = (split == 0) / (split == 0).sum(1, keepdims=True)
    jobs = np.tile(labels, (len(SEEDS), 1))

    def training() -> None:
        fitted = fit(
            values, jobs, weights, np.array(STRENGTHS), num_classes=CLASSES, tolerance=TOLERANCE, max_steps=500
        )
        fitted.kernel.block_until_ready()

    probes = sampled(split, options.every)
    loop = functools.partial(theirs, values, labels, split, probes, tol=1e-4)
    methods = {"train_probes": whole, "training alone": training}
    methods |= {f"scikit-learn, {d.__name__}": functools.partial(loop, dtype=d) for d in (np.float32, np.float64)}
    watched = Others()
    cpu_seconds = sum(os.times()[:2])
    seconds = {name: t.median for name, t in interleave(methods, rounds=options.rounds, warmup=1).items()}
    busy = watched.cores(sum(os.times()[:2]) - cpu_seconds)
    for name in methods:
        if name.startswith("scikit"):
            seconds[name] *= NUM_PROBES / len(probes)
    print(f"{hardware()}, {len(os.sched_getaffinity(0))} cores; others kept {busy or 0:.2f} cores busy")
    print(f"{NUM_PROBES} probes; medians of {options.rounds} rounds; scikit-learn on {len(probes)}, multiplied")
    for name, row in seconds.items():
        ratios = (f"{row / seconds[ours]:5.1f} x {ours}" for ours in list(methods)[:2])
        print(f"{name:24} {row:7.2f} s   " + ", ".join(ratios))
    kernel, bias = (probes_found.weights[n].values for n in ("kernel", "bias"))
    kernel, bias = kernel.reshape(-1, *kernel.shape[-4:]), bias.reshape(-1, *bias.shape[-3:])
    ours = losses(values, labels, split, probes, [(kernel[p], bias[p]) for p in probes])
    optimum = losses(values, labels, split, probes, theirs(values, labels, split, probes, np.float64, 1e-7))
    reached = losses(values, labels, split, probes, loop(dtype=np.float32))
    print("loss above the optimum (nats), median and largest:")
    for name, row in (("avjax", ours), ("scikit-learn, float32", reached)):
        print(f"{name:24} {np.median(row - optimum):.1e} {np.max(row - optimum):.1e}")


if __name__ == "__main__":
    main()
