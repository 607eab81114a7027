"""Edits that are written so that they change nothing: a factor of 1, a vector 0 times, noise of no size."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avjax.edits.edits import Ablate, Axis, Edit, Scale, ScaleAttention, Steer
from avjax.edits.grids import Grid
from avjax.edits.rules import as_edits


def identity_reason(edit: Edit) -> str | None:
    """Why an edit as it is written changes nothing on any prompt, in float32; None where it may change something.

    A number that is an axis is none of it: among the doses of a curve, the one that changes nothing is its neutral
    point, which is computed and counts nothing.
    """
    match edit:
        case Scale() | ScaleAttention() if _is(edit.factor, 1):
            return f"multiplying by {edit.factor:g} changes nothing"
        case Steer() if _is(edit.scale, 0):
            return "it adds its vector scaled by 0"
        case Steer() if not isinstance(edit.vector, Axis) and not np.any(np.asarray(edit.vector)):
            return "its vector is zero"
        case Ablate(mode="noise") if _is(edit.noise, 0):
            return "its noise has a size of 0"
    return None


def refuse_identities(given: Grid | Edit | str | Sequence[Any], allow_noop: bool) -> None:
    """Refuses edits that are written so that they change nothing.

    Args:
      given: what `avjax.sweep` takes as its grid.

    Raises:
      ValueError: there is one; the edit is named.
    """
    if allow_noop:
        return
    if isinstance(given, Grid):
        variants = [given.edits]
    else:
        several = [given] if isinstance(given, Edit | str) else given
        if not isinstance(several, list | tuple) or not all(isinstance(v, Edit | str | list | tuple) for v in several):
            return  # no grid; who expands it says so
        variants = [as_edits([v] if isinstance(v, Edit | str) else v) for v in several]
    for edit in (edit for edits in variants for edit in edits):
        if (reason := identity_reason(edit)) is not None:
            raise ValueError(
                f"rule {edit} touches nothing: {reason}; change it, leave it out (every sweep includes the clean "
                "run), make the number one value of an axis, or pass allow_noop=True"
            )


def _is(value: Any, number: float) -> bool:
    """Whether a number is another one in the arithmetic of the engine."""
    return not isinstance(value, Axis) and np.float32(value) == number
