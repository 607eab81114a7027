"""How two runs differ, in words, by their `run.json`: both values, shortened, without digests."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 5  # samples, metrics or coordinates that are named
WIDTH = 60  # of a value
# What says most comes first; parameters and settings follow from the checkpoint.
ORDER = ("checkpoint", "parameters", "settings", "family", "dtype", "numerics", "metrics", "grid")
OF_CHECKPOINT = ("parameters", "settings", "family")
WORDS = ("prompt", "system", "opening", "order", "positions", "media")  # keys of a specification that samples share
Pair = tuple[str, str]


def identity_differences(now: Mapping[str, Any], then: Mapping[str, Any], names: Pair = ("now", "then")) -> list[str]:
    """What decides all samples' values and differs between two runs, by key: `metrics (now ..., then ...)`.

    Args:
      now, then: of two runs, what their `run.json` says.
      names: what the two are called.
    """
    here, there = now["identity"], then["identity"]
    keys = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    keys.sort(key=lambda key: (ORDER.index(key) if key in ORDER else len(ORDER), key))
    if "checkpoint" in keys:
        keys = [key for key in keys if key not in OF_CHECKPOINT]
    return [difference for key in keys for difference in _of_key(key, now, then, names)]


def plain_differences(
    now: Mapping[str, Any], then: Mapping[str, Any], names: Pair = ("now", "then"), prefix: str = ""
) -> list[str]:
    """What two mappings of plain values differ in, by key; nested keys are joined by a dot."""
    differences = []
    for key in sorted(now.keys() | then.keys()):
        here, there = now.get(key), then.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            differences += plain_differences(here, there, names, f"{prefix}{key}.")
        elif here != there:
            differences.append(_both(f"{prefix}{key}", _short(here), _short(there), names))
    return differences


def changed_samples(
    samples: Sequence[str], now: Mapping[str, Any] | None = None, then: Mapping[str, Any] | None = None
) -> list[str]:
    """Says that samples' clips or words have changed; of two runs of specifications, which of the words they share."""
    if not samples:
        return []
    shared = [
        f"{key}: {difference}"
        for key in WORDS
        for difference in _values((now or {}).get("spec"), (then or {}).get("spec"), key)
    ]
    return [f"the clip or words of {listed(samples)}" + (f" ({'; '.join(shared)})" if shared else "")]


def listed(items: Any) -> str:
    """The first few, and how many more there are."""
    items = [str(item) for item in items]
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _of_key(key: str, now: Mapping[str, Any], then: Mapping[str, Any], names: Pair) -> list[str]:
    here, there = (run["identity"].get(key) for run in (now, then))
    match key:
        case "checkpoint":
            paths = [run.get("provenance", {}).get("checkpoint", "a checkpoint") for run in (now, then)]
            if paths[0] == paths[1]:
                return [f"checkpoint (files in {paths[0]} differ, {names[0]} vs. {names[1]})"]
            return [_both(key, paths[0], paths[1], names)]
        case "parameters":
            return [f"parameters (weights in memory differ, {names[0]} vs. {names[1]}, from the same checkpoint)"]
        case "settings":
            return [f"settings (config or generation settings differ, {names[0]} vs. {names[1]})"]
        case "grid":
            return [_grid(now.get("layout", {}), then.get("layout", {}), names)]
        case "metrics" if here and there:
            return [_metrics(here, there, names)]
    return plain_differences({key: here}, {key: there}, names)


def _grid(now: Mapping[str, Any], then: Mapping[str, Any], names: Pair) -> str:
    here, there = now.get("coordinates", {}), then.get("coordinates", {})
    if here.keys() == there.keys() and here != there:
        axes = [key for key in here if here[key] != there[key]]
        values = [", ".join(f"{axis}: {_axis(grid[axis])}" for axis in axes) for grid in (here, there)]
        return _both("grid", values[0], values[1], names)
    cells = [grid.get("cells", []) for grid in (now, then)]
    if cells[0] == cells[1] and here == there:
        same = f"{len(cells[0]):,} cells with the same names"
        return f"grid ({same}, but a source, vector or seed differs, {names[0]} vs. {names[1]})"
    return _both("grid", _cells(now), _cells(then), names)


def _cells(layout: Mapping[str, Any]) -> str:
    cells, axes = layout.get("cells", []), layout.get("coordinates", {})
    count = f"{len(cells):,} cell{'' if len(cells) == 1 else 's'}"
    if set(axes) - {"variant"}:
        count += " over " + ", ".join(f"{name} ({_axis(values)})" for name, values in axes.items())
    return f"{count}, first {_shortened(cells[0])}" if cells else count


def _axis(values: Sequence[Any]) -> str:
    if len(values) > 2 and all(type(v) is int for v in values) and values == [*range(values[0], values[-1] + 1)]:
        return f"{values[0]} to {values[-1]}"
    return listed(map(_shortened, map(str, values)))


def _metrics(now: Sequence[Mapping[str, Any]], then: Sequence[Mapping[str, Any]], names: Pair) -> str:
    here, there = ([_metric(metric) for metric in metrics] for metrics in (now, then))
    only = [[m for m in a if m not in b] for a, b in ((here, there), (there, here))]
    if not any(only):
        if here != there:
            return _both("metrics", f"in the order {listed(here)}", listed(there), names)
        return f"metrics (source code of {listed(here)} differs, {names[0]} vs. {names[1]})"
    if len(here) == len(there):  # the others are the same
        return _both("metrics", listed(only[0]), listed(only[1]), names)
    return _both("metrics", listed(here), listed(there), names)


def _metric(metric: Mapping[str, Any]) -> str:
    """As it is written: `LogProb(answer='rain')`."""
    kind = str(metric.get("metric")).rpartition(".")[2]
    fields = {k: v for k, v in metric.items() if k not in ("metric", "source", "name")}
    return f"{kind}({_shortened(', '.join(f'{k}={v!r}' for k, v in fields.items()))})"


def _values(now: Mapping[str, Any] | None, then: Mapping[str, Any] | None, key: str) -> list[str]:
    if now is None or then is None or now.get(key) == then.get(key):
        return []
    return [f"now {_short(now.get(key))}, then {_short(then.get(key))}"]


def _both(key: str, now: str, then: str, names: Pair) -> str:
    return f"{key} ({names[0]} {now}, {names[1]} {then})"


def _short(value: Any) -> str:
    return _shortened(json.dumps(value, ensure_ascii=False))


def _shortened(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
