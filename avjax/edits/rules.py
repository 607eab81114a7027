"""Rules: edits of attention as text, in avjax's form and in the published one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from avjax.edits.edits import EdgeEdit, Edit, Indices, Knockout, ScaleAttention
from avjax.edits.indices import parse_indices


def parse_rules(text: str) -> tuple[EdgeEdit, ...]:
    """The edits in a rule string; several, separated by `;`, apply together.

    Args:
      text: `"generated->video@18:36#h0,h3"`, `"answer->audio*2@0:12"` for a factor, or the published
        `"generated,video,18,36"` (end exclusive).

    Raises:
      ValueError: the text is neither form.
    """
    rules = tuple(_parse_rule(part.strip()) for part in text.split(";") if part.strip())
    if not rules:
        raise ValueError(f"rule {text!r}: expected at least one rule such as 'generated->video@18:36', got none")
    return rules


_ARROW = re.compile(
    r"(?P<query>[^@#]+?)\s*->\s*(?P<key>[^@#*]+?)\s*"
    r"(?:\*(?P<factor>[^@#]*))?(?:@(?P<layers>[^#]*))?(?:#(?P<heads>.*))?"
)


def _parse_rule(text: str) -> EdgeEdit:
    if "->" in text:
        match = _ARROW.fullmatch(text)
        if match is not None and "->" not in match["key"]:
            fields = {
                "query": match["query"],
                "key": match["key"],
                "layers": _indices(text, match["layers"], "layers"),
                "heads": _indices(text, match["heads"], "heads"),
            }
            if match["factor"] is None:
                return Knockout(**fields)
            return ScaleAttention(factor=_factor(text, match["factor"]), **fields)
    else:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 4 and all(re.fullmatch(r"-?\d+", p) for p in parts[2:]) and all(parts[:2]):
            query, key, (start, stop) = parts[0], parts[1], map(int, parts[2:])
            if start >= stop:
                raise ValueError(f"rule {text!r}: the window {start}:{stop} is empty, ends are exclusive; START < END")
            return Knockout(query=query, key=key, layers=range(start, stop))
    raise ValueError(
        f"rule {text!r}: expected 'QUERY->KEY@LAYERS#HEADS', such as 'generated->video@18:36#h0,h3' (layers and heads "
        "optional), or the published 'QUERY,KEY,START,END', such as 'generated,video,18,36'"
    )


def _factor(rule: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"rule {rule!r}: expected a factor such as *0.5 after the key, got {text.strip()!r}") from None


def _indices(rule: str, text: str | None, what: str) -> Indices:
    try:
        return None if text is None else parse_indices(text, what)
    except ValueError as error:
        raise ValueError(f"rule {rule!r}: {error}") from None


def as_edits(edits: Sequence[Edit | str]) -> tuple[Edit, ...]:
    """Edits from objects and rule strings, flat."""
    flat: list[Edit] = []
    for edit in edits:
        if isinstance(edit, str):
            flat.extend(parse_rules(edit))
        elif isinstance(edit, Edit):
            flat.append(edit)
        else:
            raise TypeError(_no_edit(edit))
    return tuple(flat)


def _no_edit(given: Any) -> str:
    expected = "expected an intervention or a rule string, got"
    if isinstance(given, type):
        return f"{expected} the class {given.__name__}; call it: {given.__name__}(...)"
    if isinstance(given, Mapping):
        return f"{expected} {given!r}; in Python an edit is an object, as avjax.Knockout(query='answer', key='video')"
    if isinstance(given, list | tuple):
        return f"{expected} a list; pass the edits that apply together one after the other: avjax.grid(first, second)"
    message = f"{expected} {type(given).__name__}: {given!r}"
    return (
        f"{message}; a grid cannot be part of a list: pass avjax.grid(...) itself"
        if hasattr(given, "edits")
        else message
    )
