"""Layers and heads as users write them: integers, slices, or the text of rules."""

import re
from collections.abc import Mapping
from typing import Any

from avjax.prompts.selectors import as_indices

_PART = re.compile(r"\s*[hL]?(\d+)\s*(?::\s*[hL]?(\d+)\s*)?")
_DASHED = re.compile(r"[\[(]?\s*[hL]?(\d+)\s*(?:-|\.\.|to)\s*[hL]?(\d+)\s*[\])]?")


def parse_indices(text: str, what: str) -> tuple[int, ...]:
    """Layers or heads from text, as rules have them: `12`, `18:36` (end exclusive), `0,3` or `h0,h3`.

    Args:
      what: "layers" or "heads", for messages.

    Raises:
      ValueError: the text is none of these, or a window is empty.
    """
    indices: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            example = "h0,h3" if what == "heads" else "0,3"
            raise ValueError(
                f"expected {what} such as 12, 18:36 or {example} (0-based, end exclusive), got {part.strip()!r}"
                f"{_advice(part.strip(), what)}"
            )
        start = int(match[1])
        stop = int(match[2]) if match[2] else start + 1
        if start >= stop:
            raise ValueError(f"the window {start}:{stop} is empty, ends are exclusive; START < END")
        indices.extend(range(start, stop))
    return tuple(indices)


def as_layers_or_heads(value: Any, field: str) -> tuple[int, ...]:
    """The indices of an edit's field.

    Args:
      value: integers, a slice of them, or text as in `parse_indices`.

    Raises:
      TypeError, ValueError: the value is none of these.
    """
    if isinstance(value, str):
        try:
            return parse_indices(value, field)
        except ValueError as error:
            raise ValueError(f"{field}={value!r}: {error}") from None
    if isinstance(value, slice):
        if value.stop is None or min(value.start or 0, value.stop) < 0:
            raise ValueError(
                f"{field}: expected a slice with an end and no negative bound, got {value}; give both ends"
            )
        return tuple(range(value.start or 0, value.stop, value.step or 1))
    if isinstance(value, Mapping) or callable(value):
        axes = "avjax.windows(4), avjax.each_layer()" if field == "layers" else "avjax.each_head()"
        given = getattr(value, "__name__", None) or repr(value)
        raise TypeError(
            f"{field}: expected integers, got {given}; for an axis, pass {axes} or avjax.axis(name, values)"
        )
    return as_indices(value, field)


def _advice(part: str, what: str) -> str:
    """What text that is neither layers nor heads was probably meant to be."""
    if part.lower() in ("all", "*", ":", "every", ""):
        return f"; leave {what} out for all of them"
    if part.lower() == "each":
        return f"; in Python, avjax.each_{what.removesuffix('s')}() takes one at a time"
    if match := re.fullmatch(r":\s*[hL]?(\d+)", part):
        return f"; did you mean '0:{match[1]}'?"
    if match := re.fullmatch(r"[hL]?(\d+)\s*:", part):
        return f"; give the end too, as {match[1]}:END"
    if match := _DASHED.fullmatch(part):
        return f"; did you mean '{match[1]}:{match[2]}'?"
    return "; counting starts at 0, and negative numbers are refused" if part.startswith("-") else ""
