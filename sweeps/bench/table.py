"""The benchmark's results as markdown."""

from collections.abc import Mapping
from typing import Any

from sweeps.bench.comparison import OURS, STRONG, best_peer, failures
from sweeps.bench.machine import DISTURBED
from sweeps.bench.workloads import TITLES

HEAD = "| method | median | best | cold | variants run | ratio | ratio of best | parity | break-even | peak memory |"
RULE = "|" + "---|" * 10
SHORT = "| workload | variants | avjax | its first call | best peer | ratio | break-even | strong, ratio | parity |"
SHORT_RULE = "|" + "---|" * 9


def markdown(results: Mapping[str, Any]) -> str:
    """One line per workload against the best peer and the strong baseline; then a table per workload.

    `ratio` is the method's time over avjax's: above 1, avjax is faster. Times of a sample stand for all variants.
    """
    lines = [
        f"{results['machine']}; size {results['size']}; medians of {results['rounds']} interleaved warm rounds.",
        "",
    ]
    for name, about in results["methods"].items():
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        lines.append(f"- {name}: {about['about']} ({about['device']}; {versions})")
    lines += [f"- {name}: did not start: {_one_line(reason)}" for name, reason in results["failed"].items()]
    lines += ["", SHORT, SHORT_RULE]
    lines += [_short(workload, record) for workload, record in results["workloads"].items()]
    busy = {w: cores for w, cores in results.get("busy_cores", {}).items() if cores is not None and cores > DISTURBED}
    if busy:
        shown = ", ".join(f"{workload} {cores:.1f}" for workload, cores in busy.items())
        lines += ["", f"DISTURBED: cores that other processes kept busy meanwhile: {shown}."]
    wrong = failures(results["workloads"])
    lines += ["", *(f"- {line}" for line in wrong or ["Every result that was compared agrees."])]
    for workload, record in results["workloads"].items():
        lines += ["", f"### {workload}. {TITLES[workload]}", "", HEAD, RULE]
        lines += [_row(name, row) for name, row in record.items()]
    return "\n".join(lines) + "\n"


def _short(workload: str, found: Mapping[str, Any]) -> str:
    title = f"{workload}. {TITLES[workload]}"
    ours, peer = found[OURS], best_peer(found)
    if "seconds" not in ours:
        return f"| {title} | avjax: {_one_line(ours.get('unsupported') or ours['error'])} |" + " |" * 7
    theirs, strong = found[peer] if peer else {}, found.get(STRONG, {})
    compared = [row for row in found.values() if "parity" in row]
    failed = sum(not row["parity_passed"] for row in compared)
    cells = [
        title,
        f"{ours['variants']}",
        _seconds(ours["seconds"]),
        _seconds(ours["cold_seconds"]),
        f"{peer}, {_seconds(theirs['seconds'])}" if peer else "",
        _ratio(theirs.get("ratio")),
        _break_even(theirs),
        f"{_seconds(strong['seconds'])}, {_ratio(strong['ratio'])}" if "seconds" in strong else "",
        f"{failed} of {len(compared)} FAILED" if failed else f"{len(compared)} of {len(compared)} passed",
    ]
    return "| " + " | ".join(cells) + " |"


def _row(name: str, row: Mapping[str, Any]) -> str:
    if "seconds" not in row:
        return f"| {name} | {_one_line(row.get('unsupported') or row['error'])} |" + " |" * 8
    run, total = row["variants_run"], row["variants"]
    cells = [
        name,
        _seconds(row["seconds"]),
        _seconds(row["best"]),
        _seconds(row["cold_seconds"]),
        f"{total}" if run == total else f"{run} of {total}, multiplied",
        _ratio(row.get("ratio")),
        _ratio(row.get("ratio_of_best")),
        _parity(row),
        _break_even(row),
        f"{row['peak_bytes'] / 1e6:,.0f} MB",
    ]
    return "| " + " | ".join(cells) + " |"


def _parity(row: Mapping[str, Any]) -> str:
    if "parity" not in row:
        return ""
    spread = f"{row['parity']['difference']:.1e} of {row['parity']['effect']:.2g}"
    return f"{spread}{'' if row['parity_passed'] else ' FAILED'}"


def _break_even(row: Mapping[str, Any]) -> str:
    if "break_even" not in row:
        return ""
    return "none" if row["break_even"] is None else f"{row['break_even']} variants"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _one_line(text: str) -> str:
    return " ".join(text.strip().splitlines()[-1].split())[:200].replace("|", "/")
