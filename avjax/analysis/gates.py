"""Gate learning: the few edges whose cut raises a metric of the answer, found by gradient and measured by knock-out."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.analysis.by_sample import with_prompts
from avjax.analysis.clip_groups import BySample, clip_groups, described, media_of, refuse_shared_clips
from avjax.analysis.gate_training import Penalty, Per, Training, Window, learned
from avjax.analysis.gradient_cases import Case, Metrics, cases, exact, of_one_kind, refuse_missing
from avjax.devices.memory import agreed_memory_bytes
from avjax.edits.edits import Indices, Knockout, name_of
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import Selector
from avjax.provenance import provenance
from avjax.statistics import bootstrap

NO_CUT, FOUND, EVERYTHING = "nothing", "found", "everything"


def learn_gates(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
    metric: Metrics,
    *,
    held_out: float | Sequence[Prompt] | Mapping[str, Prompt],
    groups: BySample | None = None,
    query: Selector = "answer",
    key: Selector = "video",
    per: Per = "head",
    layers: Indices = None,
    heads: Indices = None,
    penalty: Penalty = "l0",
    strength: float = 0.1,
    steps: int = 200,
    batch: int = 8,
    learning_rate: float = 0.1,
    num_random: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """The sparse set of cuts that raises a metric most, and what it does to prompts that it was not learned from.

    Adam learns a gate for every head (or layer) of a window; gates multiply exp(score) of the edges query -> key. It
    maximises the mean metric minus `strength` times the expected number of cut gates ("l0", hard-concrete gates) or the
    summed cuts ("l1"). Each step computes only the rows that the edges reach, over the clean run's keys and values.
    The gates are then rounded, and knock-outs of the set found, of everything in the window and of random sets of
    equal size are measured on held-out prompts by `avjax.sweep`.

    On tiny-av under conflict the heads found for answer->video restore the true sound on held-out clips far more often
    than random sets of as many heads; `sweeps/gates.py` prints how often.

    Args:
      prompts: to learn from: one, several, or several by name.
      metric: as in `attribute`; grows with what is wanted, such as LogitDiff(true sound, suggested sound) by sample.
      held_out: prompts of other clips, or the share of `prompts` that is kept from learning; two at least. Prompts of
        one clip are never on both sides, so that the share may come out a little smaller.
      groups: what belongs together: a value for each of `prompts` and then of those in `held_out`, or by sample. By
        default prompts of one clip, which share a sound or a picture.
      query, key: the edges; layers, heads: the window, all by default.
      per: a gate per head, or one for all the window's heads of a layer.
      strength: what a cut gate costs, in the metric's units.
      steps, batch, learning_rate: of Adam; a batch has prompts of one shape.
      num_random: random sets of as many gates, drawn from the window.
      seed: of the split, the batches, the gates' noise, the random sets and the intervals.
      progress: show a bar when it takes long.

    Returns:
      `cut` bool and `gate` (1 open, 0 cut, before rounding) along [layer, (head)]; the curve along `step`: `train`
      (the batch's mean metric under noisy gates), `cuts` (expected number), `train_objective`; on held-out samples
      `held_out` [set, sample] and `held_out_clean` [sample], where a set is nothing, found, everything or a random one,
      with `num_cut`, `change` and its 95% bounds `change_low` and `change_high` [set], paired over samples; and
      `found_minus_random` with its bounds; below 5 held-out samples they are NaN. The coordinate `edits` [set] and the
      attribute `edits` are rule strings to run ("" where nothing is cut); `gate_edits` makes objects of them.

    Raises:
      ValueError: something does not fit, all of it found before anything is compiled; or the metric is not finite.

    Source: Louizos et al. 2018 (hard-concrete gates).
    """
    training = _checked(penalty, strength, steps, batch, learning_rate, num_random, seed)
    train, test, clips = _split(model, prompts, metric, held_out, groups, seed)
    window = _window(model, query, key, per, layers, heads, [*train.values(), *test.values()])
    name, unit = of_one_kind(train | test)
    _refuse_too_large(model, window, train)
    with Progress("gates", steps + len(test), "steps", enabled=progress) as bar:
        gates, curve = learned(model, window, train, training, bar)
        sets = _sets(gates < 0.5, num_random, seed)
        values = np.zeros((len(sets), len(test)))
        clean = np.zeros(len(test))
        for column, case in enumerate(test.values()):
            exact_values, clean[column] = exact(model, case, [window.edits(cut) for cut in sets.values()])
            values[:, column] = exact_values
            bar.advance(1)
    data = _dataset(window, gates, curve, sets, list(test), (values, clean), (name, unit), seed)
    settings = {**dataclasses.asdict(training), "per": per, "query": str(query), "key": str(key)}
    data = with_prompts(data, {sample: case.prompt for sample, case in test.items()})
    return data.assign_attrs(provenance(model, metric=name, num_train=len(train), groups=clips, **settings))


def gate_edits(data: xr.Dataset) -> list[Knockout]:
    """The set found by `learn_gates` as edits, ready to run; none where nothing is worth a cut."""
    window = Window(
        query=data.attrs["query"],
        key=data.attrs["key"],
        per=data.attrs["per"],
        layers=tuple(data["layer"].values.tolist()),
        heads=tuple(np.atleast_1d(data["head"].values if "head" in data.coords else data.attrs["heads"]).tolist()),
    )
    return window.edits(data["cut"].to_numpy().astype(bool))


def _checked(
    penalty: Any, strength: Any, steps: Any, batch: Any, learning_rate: Any, num_random: Any, seed: Any
) -> Training:
    if penalty not in ("l0", "l1"):
        raise ValueError(f"penalty: expected l0 or l1, got {penalty!r}")
    if not (isinstance(strength, int | float | np.number) and 0 <= strength < np.inf):
        raise ValueError(f"strength: expected a number of at least 0, in the metric's units, got {strength!r}")
    if not (isinstance(learning_rate, int | float | np.number) and 0 < learning_rate < np.inf):
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate!r}; 0.1 is usual for gates")
    wanted = (("steps", steps, 1), ("batch", batch, 1), ("num_random", num_random, 1), ("seed", seed, 0))
    for what, value, least in wanted:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{what}: expected a whole number of at least {least}, got {value!r}")
    return Training(
        penalty=penalty,
        strength=float(strength),
        steps=int(steps),
        batch=int(batch),
        learning_rate=float(learning_rate),
        seed=int(seed),
    )


def _split(
    model: Model, prompts: Any, metric: Metrics, held_out: Any, groups: BySample | None, seed: int
) -> tuple[dict[Any, Case], dict[Any, Case], str]:
    """Cases to learn from and cases to measure on, and in words what was kept together."""
    train = named_prompts(prompts)
    if isinstance(held_out, int | float | np.number):
        numbers = clip_groups(list(train), media_of(train.values()), groups, analysis="gates")
        chosen = _share_of_groups(numbers, held_out, seed)
        kept = {name: train[name] for name, out in zip(list(train), chosen, strict=True) if out}
        train = {name: prompt for name, prompt in train.items() if name not in kept}
    else:
        kept, numbers = _given_held_out(train, metric, held_out, groups)
    all_cases = cases(model, train | kept, metric, at_clean=False)
    clips = described(numbers, groups)
    return {name: all_cases[name] for name in train}, {name: all_cases[name] for name in kept}, clips


def _given_held_out(
    train: Mapping[Any, Prompt], metric: Metrics, held_out: Any, groups: BySample | None
) -> tuple[dict[Any, Prompt], np.ndarray]:
    """The prompts to measure on, and the groups of both sides."""
    if not isinstance(held_out, Prompt) and not len(held_out):
        raise ValueError("held_out: expected at least 2 prompts, got none; or give a share such as 0.5")
    given = named_prompts(held_out)
    if len(given) < 2:
        raise ValueError("held_out: expected at least 2 prompts, got 1; an interval needs more than one sample")
    kept = given
    if not isinstance(metric, Mapping) and set(given) & set(train):
        kept = {f"held out {name}": prompt for name, prompt in given.items()}
    if twice := set(kept) & set(train):
        raise ValueError(f"held_out: sample {next(iter(twice))!r} is among prompts too; give it another name")
    seen = {prompt.fingerprint: name for name, prompt in train.items()}
    for name, prompt in kept.items():
        if prompt.fingerprint in seen:
            raise ValueError(
                f"held_out: sample {name!r} is the same prompt as {seen[prompt.fingerprint]!r} in prompts; remove one"
            )
    return kept, refuse_shared_clips(train, given, groups, analysis="gates")


def _share_of_groups(numbers: np.ndarray, share: Any, seed: int) -> np.ndarray:
    """Which samples are held out, bool [C]: whole groups drawn until the share is reached, as near as they allow.

    Raises:
      ValueError: fewer than 2 samples would be held out, or none learned from.
    """
    total, sizes = len(numbers), np.bincount(numbers)
    count = round(float(share) * total) if 0 < share < 1 else 0
    if not 2 <= count < total:
        raise ValueError(
            f"held_out: expected a share between 0 and 1 that leaves at least 2 of {total} prompts to measure on and 1 "
            f"to learn from, got {share!r}; change it, or pass more prompts"
        )
    chosen: list[int] = []
    order = np.random.default_rng(seed).permutation(len(sizes))
    for group in order:
        if sizes[chosen].sum() + sizes[group] <= count:
            chosen.append(group)
    for group in sorted(set(order) - set(chosen), key=lambda group: sizes[group]):
        if sizes[chosen].sum() < 2 and len(chosen) + 1 < len(sizes):  # all groups are larger than the share
            chosen.append(group)
    if sizes[chosen].sum() < 2:
        raise ValueError(
            f"held_out: expected {total} prompts from enough clips to learn from some and measure on others, got "
            f"{len(sizes)} {'group' if len(sizes) == 1 else 'groups'} of prompts that share a clip (sizes "
            f"{sorted(sizes.tolist())}), which stay together; add prompts of other clips, or pass groups= to "
            "say which prompts belong together"
        )
    return np.isin(numbers, chosen)


def _window(
    model: Model, query: Selector, key: Selector, per: Any, layers: Indices, heads: Indices, found: Sequence[Case]
) -> Window:
    if per not in ("head", "layer"):
        raise ValueError(f"per: expected head or layer, got {per!r}")
    rule, cfg = Knockout(query=query, key=key, layers=layers, heads=heads), model.config.decoder
    by_name = {case.sample: case for case in found}
    refuse_missing(by_name, [query], "query")
    refuse_missing(by_name, [key], "key")
    for case in found:
        if not case.edges(query, key):
            raise ValueError(
                f"rule {rule}: sample {case.sample!r} has no such edge, since no query comes at or after a key"
            )
    return Window(query=query, key=key, per=per, layers=rule.layer_indices(cfg), heads=rule.head_indices(cfg))


def _refuse_too_large(model: Model, window: Window, train: Mapping[Any, Case]) -> None:
    cfg, budget = model.config.decoder, agreed_memory_bytes(model.mesh, None)
    per_position = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * model.dtype.itemsize
    size = sum(len(case.whole) for case in train.values()) * per_position
    if size > budget:
        raise ValueError(
            f"prompts: the clean keys and values of {len(train)} prompts take {size / 2**30:.1f} GiB of "
            f"the {budget / 2**30:.1f} GiB that may be used; learn from fewer prompts"
        )


def _sets(cut: np.ndarray, num_random: int, seed: int) -> dict[str, np.ndarray]:
    """Sets of cuts by name: none, those found, all, and random ones of as many as were found."""
    rng = np.random.default_rng([seed, 1])
    sets = {NO_CUT: np.zeros_like(cut), FOUND: cut, EVERYTHING: np.ones_like(cut)}
    for i in range(num_random):
        drawn = np.zeros(cut.size, bool)
        drawn[rng.choice(cut.size, size=int(cut.sum()), replace=False)] = True
        sets[f"random {i}"] = drawn.reshape(cut.shape)
    return sets


def _dataset(
    window: Window,
    gates: np.ndarray,
    curve: Mapping[str, np.ndarray],
    sets: Mapping[str, np.ndarray],
    samples: Sequence[Any],
    measured: tuple[np.ndarray, np.ndarray],
    metric: tuple[str, str],
    seed: int,
) -> xr.Dataset:
    (values, clean), (name, unit) = measured, metric
    dims = ("layer", "head")[: gates.ndim]
    variables: dict[str, Any] = {
        "cut": (dims, gates < 0.5, {"units": "1", "long_name": "edges that are cut, rounded"}),
        "gate": (dims, gates, {"units": "1", "long_name": "learned gate: 1 open, 0 cut"}),
        "train": ("step", curve["train"], {"units": unit, "long_name": f"mean {name} of the batch under noisy gates"}),
        "cuts": ("step", curve["cuts"], {"units": "gates", "long_name": "expected number of cut gates"}),
        "train_objective": (
            "step",
            curve["train_objective"],
            {"units": unit, "long_name": "training objective, maximised"},
        ),
        "held_out": (("set", "sample"), values, {"units": unit, "long_name": f"{name}, edges knocked out"}),
        "held_out_clean": ("sample", clean, {"units": unit, "long_name": f"{name} of the clean run"}),
        "num_cut": ("set", [int(cut.sum()) for cut in sets.values()], {"units": "count", "averages": 0}),
    }
    rules = [name_of(edits) if (edits := window.edits(cut)) else "" for cut in sets.values()]
    coordinates: dict[str, Any] = {"layer": list(window.layers), "sample": samples, "set": list(sets)}
    coordinates |= {"step": np.arange(len(curve["train"])), "edits": ("set", rules)}
    if gates.ndim == 2:
        coordinates["head"] = list(window.heads)
    data = xr.Dataset(variables, coordinates)
    intervals = _intervals(data, seed)
    return data.assign(intervals.data_vars).assign_attrs(intervals.attrs, edits=rules[1], heads=list(window.heads))


def _intervals(data: xr.Dataset, seed: int) -> xr.Dataset:
    """Mean changes with their bounds, paired over held-out samples; the attributes say how, or why there are none."""
    random = [name for name in data["set"].values if str(name).startswith("random")]
    gained = data["held_out"].sel(set=FOUND, drop=True) - data["held_out"].sel(set=random).mean("set")
    attributes = data["held_out"].attrs
    columns = xr.Dataset(
        {
            "change": (data["held_out"] - data["held_out_clean"]).assign_attrs(attributes),
            "found_minus_random": gained.drop_vars("edits", errors="ignore").assign_attrs(attributes),
        }
    )
    intervals = bootstrap(columns, seed=seed)
    words = {"change": "held-out change from the clean run", "found_minus_random": "found set minus mean random set"}
    bounds = {"": "mean", "_low": "lower 95% bound", "_high": "upper 95% bound"}
    columns = {
        what + end: intervals[what + end].assign_attrs(long_name=f"{words[what]}, {bounds[end]}")
        for what, end in itertools.product(words, bounds)
    }
    return xr.Dataset(columns, attrs={k: v for k, v in intervals.attrs.items() if k in ("interval", "no_interval")})
