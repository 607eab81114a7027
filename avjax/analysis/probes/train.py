"""Linear probes: what a linear map can read from activations.

`probe_features` pools activations, `train_probes` trains and tests probes of them, and `Probes` keeps them, applies
them to other runs and gives their directions to `avjax.Steer`. Headline on the built-in checkpoint: the sound that is
heard is read at audio tokens although the picture contradicts it and the caption names another.

Axes: C clip, D feature, K class; leading axes, such as layers, are probes that are trained at once.
"""

import dataclasses
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.analysis.clip_groups import MEDIA, BySample, by_sample, clip_groups, described
from avjax.analysis.probes.features import probe_features
from avjax.analysis.probes.fit import Fit, fit
from avjax.analysis.probes.results import Tested, results
from avjax.analysis.probes.splits import (
    TRAIN,
    Labels,
    checked_labels,
    control_labels,
    splits,
    types_seen,
)
from avjax.analysis.probes.trained import Probes, stacked

__all__ = ["Probe", "Probes", "probe_features", "train_probe", "train_probes"]

MAX_STEPS = 500
TOLERANCE = 1e-4  # of the gradient's largest entry; scikit-learn's default
FINE_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Multinomial logistic regressions on standardised features."""

    mean: jax.Array  # [..., 1, D]
    scale: jax.Array  # [..., 1, D]
    kernel: jax.Array  # [..., D, K]
    bias: jax.Array  # [..., 1, K]

    def logits(self, features: np.ndarray | jax.Array) -> jax.Array:
        """[..., C, K]"""
        return (jnp.asarray(features) - self.mean) / self.scale @ self.kernel + self.bias


def train_probe(features: np.ndarray | jax.Array, labels: np.ndarray, num_classes: int, l2: float = 1e-3) -> Probe:
    """Probes of one label from many sets of features, trained together on all clips that are given.

    Args:
      features: [..., C, D]; such as residuals of all layers.
      labels: int [C].
      l2: weight of half the squared kernel beside the mean negative log-likelihood (nats) per clip.

    Raises:
      ValueError: labels and features do not match, or features are not finite.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    if features.ndim < 2 or labels.shape != features.shape[-2:-1]:
        raise ValueError(f"probe: expected a label per clip, got {labels.shape} for features {features.shape}")
    if len(np.unique(labels)) < 2 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"probe: expected two or more classes within 0:{num_classes}, got {np.unique(labels)}")
    if not np.isfinite(features).all():
        raise ValueError(
            "probe: expected finite features, got NaN or infinity; look for an overflow in the activations"
        )
    _check_strengths([l2])
    leading, count = features.shape[:-2], len(labels)
    fitted = fit(
        features.reshape(-1, *features.shape[-2:]),
        labels[None],
        np.full((1, count), 1 / count),
        np.array([l2]),
        num_classes=num_classes,
        tolerance=FINE_TOLERANCE,
        max_steps=MAX_STEPS,
    )
    return Probe(
        mean=fitted.mean.reshape(*leading, 1, -1),
        scale=fitted.scale.reshape(*leading, 1, -1),
        kernel=jnp.swapaxes(fitted.kernel[:, 0, 0], 1, 2).reshape(*leading, -1, num_classes),
        bias=fitted.bias.reshape(*leading, 1, -1),
    )


def train_probes(
    features: xr.Dataset | xr.DataArray,
    labels: BySample,
    *,
    groups: BySample | None = None,
    classes: Sequence[Hashable] | None = None,
    strengths: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    seeds: Sequence[int] = (0,),
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    control: BySample | None = None,
    max_steps: int = MAX_STEPS,
    tolerance: float = TOLERANCE,
    draws: int = 1000,
    level: float = 0.95,
    progress: bool = True,
) -> Probes:
    """Probes of one label from every layer, site and pooling, over seeds and penalties, by one compiled program.

    A probe is a multinomial logistic regression on features that its own training clips standardise. Its loss is the
    mean negative log-likelihood (nats) plus `strength` times half the squared kernel: scikit-learn's with
    C = 1 / (strength * training clips). With two classes the penalty is doubled, so that it is that of
    scikit-learn's single vector, the difference of the two.

    Args:
      features: of `probe_features`; or any array over `sample`, `feature` and other dimensions, which are probed apart.
      labels: one per sample, in order or by sample.
      groups: samples that stay on one side of a split, one value per sample, in order or by sample. By default those
        of one clip: samples that share a sound or a picture, as the features' coordinate `media` says; without that
        coordinate each is its own.
      classes: the order of the classes; None sorts the labels.
      strengths: of the penalty.
      seeds: each another split into training, validation and test clips, stratified by class.
      validation_fraction: of the groups, by which a strength is chosen for each probe (`chosen` of the results).
      control: item type of each sample, such as the pair of what is seen and heard. Each type has a label drawn for
        it, and what probes of those labels reach is what memorising types reaches; the rest is selectivity. Types
        must recur across clips to be learned at all: `control_seen` says how many test clips' types do, and bounds
        what the control can reach. None trains no control.
      max_steps: a probe that takes more has `converged` False, and a warning says how many did.
      tolerance: largest entry of the loss's gradient at which a probe is trained, as scikit-learn has it; it then
        changes no more.
      draws, level: of the bootstrap intervals over groups of test clips.
      progress: show a bar when it takes long.

    Returns:
      Probes, whose `results` hold for each: accuracy, balanced_accuracy, auroc (each with _low and _high), with a
      control control_accuracy, selectivity and control_seen (by seed), and loss, gradient, steps and converged of the
      training.

    Raises:
      ValueError: labels, groups, features or settings do not fit; all of it is found before anything is trained.

    Source: Alain and Bengio 2016 (linear probes); Hewitt and Liang 2019 (control tasks, selectivity).
    """
    values, template = stacked(features)
    samples = template.sample.values.tolist()
    media = [str(i) for i in range(len(samples))]
    if MEDIA in template.coords:
        media = template.coords[MEDIA].values.tolist()
    numbers = clip_groups(samples, [items.split() for items in media], groups, analysis="probes")
    known = checked_labels(samples, labels, numbers, classes)
    strengths, seeds = [float(s) for s in strengths], list(seeds)
    _check_strengths(strengths)
    _check_settings(seeds, max_steps, tolerance, draws, level)
    split = splits(known, seeds, test_fraction, validation_fraction)
    types = None if control is None else by_sample(samples, control, "control types", analysis="probes")
    seen = None if types is None else types_seen(types, split)
    jobs = _jobs(known, types, seeds)
    weights = np.tile(split == TRAIN, (len(jobs) // len(seeds), 1)).astype(np.float32)
    num_classes = len(known.classes)
    fitted = fit(
        values,
        jobs,
        weights / weights.sum(1, keepdims=True),
        np.array(strengths) * (2 if num_classes == 2 else 1),
        num_classes=num_classes,
        tolerance=tolerance,
        max_steps=max_steps,
        progress=progress,
    )
    fitted = jax.tree.map(np.asarray, fitted)
    if late := int(np.sum(~(fitted.gradient <= tolerance))):
        warnings.warn(
            f"probes: {late} of {fitted.steps.size} did not reach the tolerance {tolerance:g} in {max_steps} steps; "
            "raise max_steps, or use stronger penalties",
            stacklevel=2,
        )
    tested = Tested(labels=known, split=split, jobs=jobs, draws=draws, level=level, tolerance=tolerance)
    coords = {"seed": seeds, "strength": strengths}
    measured = results(values, fitted, tested, template, coords).assign_attrs(groups=described(numbers, groups))
    if seen is not None:
        attributes = {"units": "1", "long_name": "share of test clips whose control type is that of a training clip"}
        measured["control_seen"] = "seed", seen, attributes
    return Probes(weights=_weights(fitted, template, coords, known), results=measured)


def _jobs(known: Labels, types: Sequence[Hashable] | None, seeds: Sequence[int]) -> np.ndarray:
    """int [J, C]: the labels of each seed, then its control labels."""
    class_indices = [known.index for _ in seeds]
    if types is not None:
        class_indices += [control_labels(types, len(known.classes), known.index, seed) for seed in seeds]
    return np.stack(class_indices)


def _weights(found: Fit, template: xr.DataArray, coords: Mapping[str, Any], known: Labels) -> xr.Dataset:
    """Trained parameters, without those of the control task."""
    shape = tuple(template.sizes[d] for d in template.dims if d not in ("sample", "feature"))
    dims = tuple(str(d) for d in template.dims if d not in ("sample", "feature"))
    count = len(coords["seed"])
    coordinates = {d: template.coords[d] for d in (*dims, "feature") if d in template.coords}

    def laid(values: Any, *after: str, **about: str) -> tuple:
        return (*dims, "seed", *after), values[:, :count].reshape(*shape, count, *values.shape[2:]), about

    return xr.Dataset(
        {
            "kernel": laid(found.kernel, "strength", "class", "feature", units="nat", long_name="probe kernel"),
            "bias": laid(found.bias, "strength", "class", units="nat", long_name="probe bias"),
            "mean": laid(found.mean, "feature", units="activation", long_name="mean over training clips"),
            "scale": laid(found.scale, "feature", units="activation", long_name="deviation over training clips"),
        },
        {**coordinates, **coords, "class": list(known.classes)},
        attrs=template.attrs,
    )


def _check_strengths(strengths: Sequence[float]) -> None:
    if not strengths or len(set(strengths)) < len(strengths):
        raise ValueError(f"probe: expected one or more strengths, each once, got {strengths}")
    for l2 in strengths:
        if not 0 < l2 < np.inf:
            raise ValueError(
                f"probe: expected l2 above 0, got {l2}; without a penalty, separable classes have no optimum"
            )


def _check_settings(seeds: Sequence[Any], max_steps: int, tolerance: float, draws: int, level: float) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or any(not isinstance(s, int | np.integer) or s < 0 for s in seeds):
        raise ValueError(f"probes: expected one or more seeds of at least 0, each once, got {seeds}")
    if max_steps < 1 or draws < 1 or not 0 < level < 1 or not tolerance > 0:
        raise ValueError(
            "probes: expected max_steps and draws of at least 1, a level within 0 to 1 and a tolerance above 0, got "
            f"{max_steps}, {draws}, {level} and {tolerance}"
        )
