"""What the timings and results of one workload amount to: parity, ratios, and where a method begins to pay."""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # logits in float32; their standard deviation over the vocabulary is about 3
EXACT = ("b", "e")  # token ids
OURS, STRONG = "avjax", "strong"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """How a method's results compare with avjax's on the variants that both ran.

    Attributes:
      difference: of logits, at most; of ids, the share that differ.
      effect: how far the edits move the logits at most, as a spread over variants; of ids, the share of variants
        whose ids differ from the first's. Without it, agreement would prove little.
    """

    difference: float
    effect: float
    variants: int
    passed: bool


def parity(workload: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Parity:
    """Raises ValueError when they have no variant in common."""
    shared = [i for i in theirs if i in ours]
    if not shared:
        raise ValueError(f"workload {workload}: the methods ran no variant in common")
    a, b = (np.array([results[i] for i in shared], np.float64) for results in (ours, theirs))
    if a.shape != b.shape:
        return Parity(difference=math.inf, effect=0.0, variants=len(shared), passed=False)
    if workload in EXACT:
        differing = float(np.mean(a != b))
        effect = float(np.mean((a != a[0]).reshape(len(a), -1).any(1)))
        return Parity(difference=differing, effect=effect, variants=len(shared), passed=differing == 0)
    difference = float(np.abs(a - b).max())
    passed = difference <= TOLERANCE  # not a number fails
    return Parity(difference=difference, effect=float(np.ptp(a, 0).max()), variants=len(shared), passed=passed)


def whole_seconds(answer: Mapping[str, Any], total: int) -> float:
    """Seconds for all variants, from those of a sample."""
    return answer["fixed_seconds"] + variant_seconds(answer) * total


def variant_seconds(answer: Mapping[str, Any]) -> float:
    return (answer["seconds"] - answer["fixed_seconds"]) / answer["variants"]


def summary(answers: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """Of one method on one workload; the first answer is the cold one.

    The cold total is what the cold call took, plus warm time for the variants that a sample left out, so that what
    happens once is not multiplied.
    """
    first, *warm = answers
    seconds = [whole_seconds(a, total) for a in warm]
    middle = statistics.median(seconds)
    left_out = (total - first["variants"]) * statistics.median(variant_seconds(a) for a in warm)
    return {
        "seconds": middle,
        "best": min(seconds),
        "cold_seconds": first["seconds"] + left_out,
        "compile_seconds": max(0.0, first["seconds"] + left_out - middle),
        "fixed_seconds": statistics.median(a["fixed_seconds"] for a in warm),
        "rounds": [round(s, 5) for s in seconds],
        "variants": total,
        "variants_run": first["variants"],
        "peak_bytes": max(a["peak_bytes"] for a in answers),
    }


def break_even(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> int | None:
    """Variants after which avjax, compiling included, takes less time than a method that loops; None: never.

    avjax's time is taken not to fall with fewer variants, which favours the peer.
    """
    each = (theirs["seconds"] - theirs["fixed_seconds"]) / theirs["variants"]
    if each <= 0:  # noise in what is told apart
        return None
    count = math.ceil((ours["cold_seconds"] - theirs["fixed_seconds"]) / each)
    return max(1, count) if count <= ours["variants"] else None


def best_peer(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The fastest method beside avjax and the strong baseline, by the median; None when none could run."""
    peers = {n: row["seconds"] for n, row in found.items() if n not in (OURS, STRONG) and "seconds" in row}
    return min(peers, key=peers.__getitem__) if peers else None


def failures(workloads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What went wrong, in words: results that differ from avjax's, and methods that raised."""
    lines = []
    for workload, record in workloads.items():
        for name, row in record.items():
            if row.get("parity_passed") is False:
                lines.append(f"{workload}, {name}: PARITY FAILED, difference {row['parity']['difference']:.1e}")
            if "error" in row:
                lines.append(f"{workload}, {name}: {row['error'].strip().splitlines()[-1]}")
    return lines
