"""Short forms of long arrays, for fixtures."""

import hashlib
import itertools
import json
from typing import Any

import numpy as np

JOIN = ",\n"


def summary(array: np.ndarray) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "sum": round(float(array.astype(np.float64).sum()), 3),
        "sha256": digest(array),
    }


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def run_lengths(values: list[int]) -> list[list[int]]:
    """[value, how often] pairs."""
    return [[value, len(list(run))] for value, run in itertools.groupby(values)]


def line_lengths(values: list[int]) -> list[list[int]]:
    """[start, count, step] of runs that go up (step 1) or stay (step 0)."""
    lines: list[list[int]] = []
    for value in values:
        if lines:
            start, count, step = lines[-1]
            if count == 1 and value - start in (0, 1):
                lines[-1] = [start, 2, value - start]
                continue
            if count > 1 and value == start + step * count:
                lines[-1][1] += 1
                continue
        lines.append([value, 1, 0])
    return lines


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
