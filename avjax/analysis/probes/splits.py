"""What probes learn from and are tested on: labels, clips that stay together, and stratified splits.

Axes: C sample, S seed.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from avjax.analysis.clip_groups import SHOWN, by_sample

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of which none is missing.

    Attributes:
      classes: the labels, in order.
      index: int [C], into `classes`.
      groups: int [C]; samples of one group stay together.
    """

    classes: tuple[Any, ...]
    index: np.ndarray
    groups: np.ndarray


def checked_labels(samples: Sequence[Any], labels: Any, groups: np.ndarray, classes: Sequence[Any] | None) -> Labels:
    """Labels by sample.

    Args:
      labels: one per sample, in order, or by sample.
      groups: int [C], from 0 on (`clip_groups`).
      classes: the order of the classes; None sorts what occurs.

    Raises:
      ValueError: labels are missing or of too few classes.
    """
    values = by_sample(samples, labels, "labels", analysis="probes")
    kinds = set(values)
    if classes is None:
        known = tuple(sorted(kinds, key=lambda v: (type(v).__name__, v)))
    else:
        known = tuple(classes)
        if strange := sorted(map(str, kinds - set(known))):
            raise ValueError(f"probes: expected labels among classes={known}, got {', '.join(strange[:SHOWN])}")
        if len(samples) < len(known):
            raise ValueError(f"probes: expected at least a sample per class, got {len(samples)} for {len(known)}")
        if unseen := [c for c in known if c not in kinds]:
            raise ValueError(f"probes: no sample has the label {unseen[0]!r} of classes=; leave it out, or add samples")
    if len(known) < 2:
        raise ValueError(f"probes: expected two or more classes, got {', '.join(map(repr, known))} alone; add others")
    index = np.array([known.index(v) for v in values])
    return Labels(classes=known, index=index, groups=groups)


def splits(labels: Labels, seeds: Sequence[int], test_fraction: float, validation_fraction: float) -> np.ndarray:
    """Which part each sample is in, for each seed; str [S, C] of "train", "validation" and "test".

    Groups are drawn among those with the same classes, so that each part has its share of every class and no group is
    in two parts.

    Raises:
      ValueError: a fraction is out of range, or some part would lack a class.
    """
    if not 0 < test_fraction < 1 or not 0 <= validation_fraction < 1 or test_fraction + validation_fraction >= 1:
        raise ValueError(
            "probes: expected test_fraction above 0 and validation_fraction at least 0, together below 1, got "
            f"{test_fraction} and {validation_fraction}"
        )
    parts = {TEST: test_fraction, **({VALIDATION: validation_fraction} if validation_fraction else {})}
    num_groups = int(labels.groups.max()) + 1
    if num_groups <= len(parts):
        raise ValueError(
            f"probes: expected more than {len(parts)} groups of clips, for train and {' and '.join(parts)}, got "
            f"{num_groups}; no clip would be left to test on, as samples of one clip stay together; add other clips, "
            "or pass groups= to say which samples belong together"
        )
    has = np.zeros((num_groups, len(labels.classes)), bool)
    has[labels.groups, labels.index] = True
    _, stratum, sizes = np.unique(has, axis=0, return_inverse=True, return_counts=True)
    small = sizes <= len(parts)  # too small to be in every part: drawn together
    stratum = np.where(small[stratum.reshape(-1)], -1, stratum.reshape(-1))
    by_seed = np.stack([_split(labels, stratum, parts, seed) for seed in seeds])
    for seed, row in zip(seeds, by_seed, strict=True):
        for k, name in enumerate(labels.classes):
            lacks = [part for part in (TRAIN, *parts) if not np.any((row == part) & (labels.index == k))]
            if lacks:
                count = len(np.unique(labels.groups[labels.index == k]))
                raise ValueError(
                    f"probes: class {name!r} has {count} clip{'' if count == 1 else 's'}, too few for every part: with "
                    f"seed {seed}, none is left for {lacks[0]}; add clips (at least {len(parts) + 1} per class), or "
                    "leave the class out"
                )
    return by_seed


def _split(labels: Labels, stratum: np.ndarray, parts: Mapping[str, float], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    of_group = np.full(len(stratum), TRAIN, dtype="<U10")
    for k in np.unique(stratum):
        own = rng.permutation(np.flatnonzero(stratum == k))
        total = len(own)
        for i, (part, fraction) in enumerate(parts.items()):
            after = len(parts) - i  # parts that still want a group, train among them
            count = max(0, min(max(1, round(fraction * total)), len(own) - after))
            of_group[own[:count]], own = part, own[count:]
    return of_group[labels.groups]


def types_seen(types: Sequence[Hashable], split: np.ndarray) -> np.ndarray:
    """The share of test clips whose item type is that of a training clip, for each split [S, C].

    Raises:
      ValueError: it is none in a split, so that memorising types would help nothing there.
    """
    kinds = np.unique([repr(kind) for kind in types], return_inverse=True)[1]
    shares = np.array([np.isin(kinds[row == TEST], kinds[row == TRAIN]).mean() for row in split])
    if not shares.all():
        raise ValueError(
            f"probes: expected control types that occur in training and test clips, got {kinds.max() + 1} types of "
            f"{len(types)} samples, none of them in both; pass coarser types"
        )
    return shares


def control_labels(types: Sequence[Hashable], num_classes: int, index: np.ndarray, seed: int) -> np.ndarray:
    """Labels of a control task: every item type has a label drawn for it, int [C].

    Labels are drawn as often as the classes occur, so that guessing is as good as in the task itself.

    Raises:
      ValueError: there is one type only.

    Source: Hewitt and Liang 2019 (control tasks).
    """
    frequency = np.bincount(index, minlength=num_classes) / len(index)
    order = {name: i for i, name in enumerate(dict.fromkeys(types))}
    if len(order) == 1:
        raise ValueError(f"probes: expected control types of more than one kind, got {types[0]!r} for every sample")
    rng = np.random.default_rng([seed, 1])
    while len(set(dealt := rng.choice(num_classes, size=len(order), p=frequency))) == 1:
        pass  # one label for all types would be no task
    return dealt[[order[name] for name in types]]
