"""What is wrong with a specification, in plain words: a line for each mistake that pydantic finds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from avjax.nearest import did_you_mean, nearest
from avjax.runs.captures import SITES
from avjax.runs.spec.edits import EDITS, Strict, Values, Windows
from avjax.runs.spec.metrics import METRICS


def explained(error: ValidationError, source: str, sections: Mapping[Any, type[Strict]]) -> str:
    """Every mistake in a line: the key, what was expected, what came, and the nearest right spelling.

    Args:
      source: what was read, for the first line.
      sections: classes by the key that they stand at; None is the whole specification's.
    """
    known = {**sections, **_BRANCHES}
    lines = [_line(mistake, known) for mistake in error.errors(include_url=False)]
    return "\n".join([f"{source}: not a specification of a run:", *dict.fromkeys(lines)])


def _line(mistake: Any, classes: Mapping[Any, type[Strict]]) -> str:
    loc, given, context = mistake["loc"], mistake["input"], mistake.get("ctx", {})
    key = ".".join(str(step) for step in loc if not _is_tag(step))
    message = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    got, hint = _short(given), ""
    match mistake["type"]:
        case "extra_forbidden":
            message, hint = "expected no such key", did_you_mean(loc[-1], _keys_at(loc, classes))
        case "missing":
            message, got = "expected a value", "none"
        case "union_tag_invalid":
            message = f"expected {context['discriminator']} among {context['expected_tags']}"
            got, hint = repr(context["tag"]), did_you_mean(context["tag"], _quoted(context["expected_tags"]))
        case "union_tag_not_found":
            name = context["discriminator"].strip("'")
            like = nearest(name, given) if isinstance(given, dict) else None
            message = f"expected a key {name!r}" + ("" if isinstance(given, dict) else _as_in(loc))
            hint = "" if like is None else f"; did you mean {name!r} instead of {like!r}?"
        case "literal_error":
            known = [str(site) for site in SITES] if loc[:2] == ("capture", "sites") else _quoted(context["expected"])
            message, hint = f"expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}", did_you_mean(given, known)
        case "model_attributes_type" | "model_type" | "dict_type":
            message = f"expected keys and values{_as_in(loc)}"
        case "list_type":
            message = f"expected a list{_as_in(loc, of=True)}"
    return f"  {key or 'spec'}: {message}, got {got}{hint}"


_EXAMPLES = {
    "metrics": "{metric: log_prob, answer: siren}",
    "clips": "{video: clip.mp4}",
    "grid": "{edit: knockout, query: answer, key: video}",
    "media": "{fps: 2}",
    "capture": "{sites: [resid_post], at: last}",
    "mesh": "{data: -1}",
    "sites": "resid_post",
    "axis": "audio, video",
}


def _as_in(loc: Sequence[Any], of: bool = False) -> str:
    """An example of what stands at a place; `of`: in a list."""
    name = next((step for step in reversed(loc) if isinstance(step, str) and not _is_tag(step)), "")
    if name not in _EXAMPLES:
        return ""
    return f", such as [{_EXAMPLES[name]}]" if of else f", such as {_EXAMPLES[name]}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _keys_at(loc: Sequence[Any], classes: Mapping[Any, type[Strict]]) -> list[str]:
    """The keys that may stand beside a place's last one."""
    owner = next((classes[step] for step in reversed(loc[:-1]) if step in classes), classes[None])
    return [*owner.model_fields]


def _tag(kind: type[Strict]) -> str:
    """The value by which a union tells the class."""
    field = kind.model_fields["edit" if "edit" in kind.model_fields else "metric"]
    return get_args(field.annotation)[0]


def _is_tag(step: Any) -> bool:
    """Steps that pydantic adds for the branch of a union."""
    return isinstance(step, str) and (step[:1] == "<" or step in _BRANCHES)


# The branches of unions, by the step that pydantic puts for them.
_BRANCHES: dict[Any, type[Strict]] = {"<axis>": Values, "<windows>": Windows}
_BRANCHES |= {_tag(kind): kind for kind in (*EDITS, *METRICS)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
