"""How trained probes score on clips that they were not trained on, as one dataset.

Axes: F feature set, C sample, D feature, J job, R strength, K class, S seed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.analysis.probes.fit import Fit
from avjax.analysis.probes.scores import MEASURES, Draws, Scored, difference, scored
from avjax.analysis.probes.splits import TEST, TRAIN, VALIDATION, Labels

PARTS = (TRAIN, VALIDATION, TEST)
LONG_NAMES = {
    "accuracy": "accuracy on test clips",
    "balanced_accuracy": "mean recall of the classes on test clips",
    "auroc": "area under the ROC curve on test clips",
    "control_accuracy": "accuracy of the control task on test clips",
    "selectivity": "accuracy minus that of the control task",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """What probes were trained on, and how they are tested."""

    labels: Labels
    split: np.ndarray  # str [S, C]
    jobs: np.ndarray  # int [J, C]
    draws: int
    level: float
    tolerance: float


def results(
    values: np.ndarray, found: Fit, tested: Tested, template: xr.DataArray, coords: Mapping[str, Any]
) -> xr.Dataset:
    """Every measure, over the other dimensions of the features, seed and strength."""
    dims = tuple(str(d) for d in template.dims if d not in ("sample", "feature"))
    shape = tuple(template.sizes[d] for d in dims)
    seeds, strengths = len(coords["seed"]), len(coords["strength"])
    columns: dict[str, list[np.ndarray]] = {}
    for seed, row in enumerate(tested.split):
        for name, column in _of_seed(values, found, tested, seed, row).items():
            columns.setdefault(name, []).append(column.reshape(-1, strengths))
    laid = {n: np.stack(c, 1).reshape(*shape, seeds, strengths) for n, c in columns.items()}
    over = (*dims, "seed", "strength")
    data: dict[str, Any] = {name: (over, column, _about(name, tested.level)) for name, column in laid.items()}
    for name, units, long_name in (
        ("loss", "nat", "training loss with penalty"),
        ("gradient", "nat", "largest entry of the training loss's gradient"),
        ("steps", "count", "L-BFGS steps"),
    ):
        column = getattr(found, name)[:, :seeds].reshape(*shape, seeds, strengths)
        data[name] = over, column, {"units": units, "long_name": long_name}
    norm = data["gradient"][1]
    data["converged"] = over, norm <= tested.tolerance, {"units": "bool", "long_name": "trained to the tolerance"}
    data["majority"] = (
        "seed",
        _majority(tested),
        {"units": "1", "long_name": "accuracy of always predicting the commonest class"},
    )
    codes = np.array([[PARTS.index(part) for part in row] for row in tested.split], np.int8)
    data["split"] = ("seed", "sample"), codes, {"units": "index", "long_name": "0 train, 1 validation, 2 test"}
    coordinates = {d: template.coords[d] for d in (*dims, "sample") if d in template.coords}
    dataset = xr.Dataset(data, {**coordinates, **coords}, attrs={**template.attrs, **_settings(tested)})
    if "validation_loss" in dataset:
        best = dataset.validation_loss.idxmin("strength")
        dataset["chosen"] = best.assign_attrs(units="1", long_name="strength with the least loss on validation clips")
    return dataset


def logits(values: np.ndarray, found: Fit, job: int) -> np.ndarray:
    """float32 [F, R, C, K] of one job's probes."""
    return np.asarray(_logits(values, *(getattr(found, n)[:, job] for n in ("mean", "scale", "kernel", "bias"))))


@jax.jit
def _logits(x_FCD: jax.Array, mean_FD: jax.Array, scale_FD: jax.Array, kernel_FRKD: jax.Array, bias_FRK: jax.Array):
    x_FCD = (x_FCD - mean_FD[:, None]) / scale_FD[:, None]
    z_FRCK = jnp.einsum("fcd,frkd->frck", x_FCD, kernel_FRKD, precision=jax.lax.Precision.HIGHEST)
    return z_FRCK + bias_FRK[:, :, None]


def _of_seed(values: np.ndarray, found: Fit, tested: Tested, seed: int, row: np.ndarray) -> dict[str, np.ndarray]:
    seeds, truth = len(tested.split), tested.labels.index
    test = row == TEST
    draws = Draws.of(tested.labels.groups[test], tested.draws, tested.level, seed)
    z = logits(values[:, test], found, seed)
    z = z.reshape(-1, *z.shape[2:])
    columns = {}
    for name, measure in scored(z, truth[test], draws).items():
        columns |= _bounded(name, measure)
    if len(tested.jobs) > seeds:
        control = logits(values[:, test], found, seeds + seed)
        hits = control.reshape(z.shape).argmax(-1) == tested.jobs[seeds + seed, test]
        columns["control_accuracy"] = hits.mean(1)
        columns |= _bounded("selectivity", difference(z.argmax(-1) == truth[test], hits, draws))
    if np.any(row == VALIDATION):
        held = row == VALIDATION
        log_p = np.asarray(jax.nn.log_softmax(logits(values[:, held], found, seed), -1))
        right = np.take_along_axis(log_p, truth[held][None, None, :, None], -1)
        columns["validation_loss"] = -right.mean((2, 3))
    return columns


def _bounded(name: str, measure: Scored) -> dict[str, np.ndarray]:
    return {name: measure.value, f"{name}_low": measure.low, f"{name}_high": measure.high}


def _about(name: str, level: float) -> dict[str, str]:
    if name == "validation_loss":
        return {"units": "nat", "long_name": "negative log-likelihood per validation clip"}
    for suffix, side in (("_low", "lower"), ("_high", "upper")):
        if name.endswith(suffix):
            return {"units": "1", "long_name": f"{side} bound of {name.removesuffix(suffix)}, level {level:g}"}
    return {"units": "1", "long_name": LONG_NAMES[name]}


def _majority(tested: Tested) -> np.ndarray:
    truth = tested.labels.index
    commonest = [np.bincount(truth[row == TRAIN]).argmax() for row in tested.split]
    return np.array([np.mean(truth[row == TEST] == k) for k, row in zip(commonest, tested.split, strict=True)])


def _settings(tested: Tested) -> dict[str, Any]:
    words = f"percentile bootstrap over groups of test clips, level {tested.level:g}, {tested.draws} draws"
    return {
        "classes": ", ".join(map(str, tested.labels.classes)),
        "interval": words,
        "measures": ", ".join(MEASURES),
        "tolerance": tested.tolerance,
    }
