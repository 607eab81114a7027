"""Whether an edit can reach what a metric reads: nothing after the last position that a metric looks at changes it."""

from collections.abc import Sequence

import numpy as np

from avjax.edits.edits import Edit, name_of
from avjax.engine.operations import Op, first_row
from avjax.engine.session import Session


def unreached(
    session: Session, variants: Sequence[Sequence[Edit]], last_row: int, metric: str, allow_noop: bool
) -> np.ndarray:
    """bool [variants]: which have edits, but none at or before the last position that a metric reads.

    Args:
      session: of those variants.
      last_row: that position, over the prompt and the tokens of the metric's own that are fed after it.
      metric: its name.

    Raises:
      ValueError: an edit comes after everything that the metric reads, and `allow_noop` is False.
    """
    size = len(session.prompt)
    missing = np.zeros(len(variants), bool)
    for variant, ops in enumerate(session.lowered.ops):
        late = [first_row(op, size) > last_row for op in ops]
        if any(late) and not allow_noop:
            raise ValueError(_refusal(variants[variant], ops, last_row, size, metric))
        missing[variant] = bool(ops) and all(late)
    return missing


def _refusal(edits: Sequence[Edit], ops: Sequence[Op], last_row: int, size: int, metric: str) -> str:
    generated = [first_row(op, size) == size for op in ops if first_row(op, size) > last_row]
    advice = (
        "to edit the position that predicts the next token, use `answer` or `last` in place of `generated`; to read "
        "generated tokens, use LogLikelihood or Caption"
        if any(generated) and last_row < size
        else "edit earlier positions, or read later ones"
    )
    where = "generated tokens only" if any(generated) else "later positions"
    return (
        f"metric {metric!r}: the rule {name_of(edits)} cannot reach it: expected an edit at or before position "
        f"{last_row}, the last one read, got one of {where}; "
        f"{advice}; or pass allow_noop=True to leave the cell's value missing"
    )
