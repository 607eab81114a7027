"""Metrics as an argument: one or several, or what to pass in place of what was given."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from avjax.metrics import Metric
from avjax.nearest import nearest

# By class: how one is made, for messages.
EXAMPLES = {
    "LogProb": "LogProb('word')",
    "Prob": "Prob('word')",
    "Rank": "Rank('word')",
    "Logits": "Logits([7, 9])",
    "LogitDiff": "LogitDiff('a', 'b')",
    "LogLikelihood": "LogLikelihood('some text')",
    "KL": "KL()",
    "TotalVariation": "TotalVariation()",
    "TopK": "TopK()",
    "AttentionMass": "AttentionMass('video')",
    "Caption": "Caption()",
}
_NAMES = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): name for name in EXAMPLES}  # log_prob: LogProb


def as_metrics(given: Any) -> list[Metric]:
    """One metric or several, as a list.

    Raises:
      TypeError: one is no metric; the message says what to pass.
      ValueError: there is none.
    """
    if isinstance(given, Metric):
        return [given]
    if isinstance(given, str | Path | Mapping | type) or not hasattr(given, "__iter__"):
        refuse_no_metric(given, "metrics")
    several = list(given)
    if not several:
        raise ValueError("metrics: expected at least one, got none")
    for metric in several:
        if not isinstance(metric, Metric):
            refuse_no_metric(metric, "metrics")
        if type(metric).__hash__ is None:
            raise TypeError(f"metrics: {type(metric).__name__} cannot be hashed; declare it dataclass(frozen=True)")
    return several


def refuse_no_metric(given: Any, what: str) -> NoReturn:
    """Raises TypeError that says which metric to pass instead.

    Raises:
      TypeError: always.
    """
    if isinstance(given, type):
        raise TypeError(f"{what}: expected a metric, got the class {given.__name__}; call it: {given.__name__}(...)")
    if isinstance(given, str):
        example = _example(given)
        raise TypeError(f"{what}: expected Metric objects, got the name {given!r}; pass avjax.metrics.{example}")
    if isinstance(given, Mapping):
        example = _example(given.get("metric"))
        raise TypeError(f"{what}: expected Metric objects, got a dict; in Python pass avjax.metrics.{example}")
    raise TypeError(f"{what}: expected a Metric, got {type(given).__name__}: {given!r}")


def _example(name: object) -> str:
    """How the metric of a name, or the one that is spelt most like it, is made."""
    spelling = nearest(name, [*_NAMES, *EXAMPLES])
    if spelling is None:
        return "LogProb('word') or another metric"
    return EXAMPLES[_NAMES.get(spelling, spelling)]
