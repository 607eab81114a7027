"""Edits as a user writes them, and as arrays that a compiled forward pass takes.

Axes: L layer, N heads, M token group, I intervention (variant).
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from avjax.config import DecoderConfig
from avjax.tokens import ALIASES, Selector, as_indices

Indices = Sequence[int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knockout:
    """Forbids attention from the tokens `query` to the tokens `key`.

    Attributes:
      query, key: token selectors (`avjax.tokens.select`). `generated` is the published behaviour, under which the first
        generated token is never edited, since the last prompt position predicts it; `answer` adds that position.
      layers, heads: 0-based; None means all of them.

    Source: Geva et al. 2023 (attention knockout). A query whose every visible key is blocked reads zero.
    """

    query: Selector
    key: Selector
    layers: Indices = None
    heads: Indices = None

    def __post_init__(self):
        for name in ("query", "key"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, str) else as_indices(value, name))
        for name in ("layers", "heads"):
            value = getattr(self, name)
            if value is None:
                continue
            object.__setattr__(self, name, as_indices(value, name))

    def __str__(self) -> str:
        """The rule string that parses back to this edit: `generated->video@18:36#h0,h3`."""
        layers = "" if self.layers is None else f"@{_compact(self.layers)}"
        heads = "" if self.heads is None else "#" + ",".join(f"h{i}" for i in self.heads)
        return f"{_shown(self.query)}->{_shown(self.key)}{layers}{heads}"

    def layer_indices(self, config: DecoderConfig) -> tuple[int, ...]:
        return self._checked("layer", self.layers, config.num_layers)

    def head_indices(self, config: DecoderConfig) -> tuple[int, ...]:
        return self._checked("head", self.heads, config.num_heads)

    def _checked(self, what: str, indices: Indices, count: int) -> tuple[int, ...]:
        if indices is None:
            return tuple(range(count))
        if not indices:
            raise ValueError(f"rule {self}: the {what} window is empty; give at least one {what}")
        wrong = [i for i in indices if not 0 <= i < count]
        if wrong:
            raise ValueError(
                f"rule {self}: expected {what}s within 0:{count} (0-based, end exclusive), got {_compact(wrong)}"
            )
        return tuple(sorted(set(indices)))


Edit = Knockout


def parse_rules(text: str) -> tuple[Knockout, ...]:
    """The edits in a rule string; several, separated by `;`, apply together.

    Args:
      text: `"generated->video@18:36#h0,h3"`, or the published `"generated,video,18,36"` (end exclusive).

    Raises:
      ValueError: the text is neither form.
    """
    rules = tuple(_parse_rule(part.strip()) for part in text.split(";") if part.strip())
    if not rules:
        raise ValueError(f"rule {text!r}: expected at least one rule such as 'generated->video@18:36', got none")
    return rules


_ARROW = re.compile(r"(?P<query>[^@#]+?)\s*->\s*(?P<key>[^@#]+?)\s*(?:@(?P<layers>[^#]*))?(?:#(?P<heads>.*))?")


def _parse_rule(text: str) -> Knockout:
    if "->" in text:
        match = _ARROW.fullmatch(text)
        if match is not None and "->" not in match["key"]:
            return Knockout(
                query=match["query"],
                key=match["key"],
                layers=_indices(text, match["layers"], "layers"),
                heads=_indices(text, match["heads"], "heads"),
            )
    else:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 4 and all(re.fullmatch(r"-?\d+", p) for p in parts[2:]) and all(parts[:2]):
            query, key, start, stop = parts
            return Knockout(query=query, key=key, layers=_window(text, int(start), int(stop)))
    raise ValueError(
        f"rule {text!r}: expected 'QUERY->KEY@LAYERS#HEADS', such as 'generated->video@18:36#h0,h3' (layers and heads "
        "optional), or the published 'QUERY,KEY,START,END', such as 'generated,video,18,36'"
    )


def _indices(rule: str, text: str | None, what: str) -> Indices:
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*h?(\d+)\s*(?::\s*h?(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"rule {rule!r}: expected {what} such as 12, 18:36 or h0,h3, got {part.strip()!r}")
        start = int(match[1])
        found.extend(_window(rule, start, int(match[2])) if match[2] else [start])
    return found


def _window(rule: str, start: int, stop: int) -> range:
    if start >= stop:
        raise ValueError(f"rule {rule!r}: the window {start}:{stop} is empty, ends are exclusive; expected START < END")
    return range(start, stop)


def as_edits(edits: Sequence[Edit | str]) -> tuple[Edit, ...]:
    """Edits from objects and rule strings, flat."""
    flat: list[Edit] = []
    for edit in edits:
        if isinstance(edit, str):
            flat.extend(parse_rules(edit))
        elif isinstance(edit, Knockout):
            flat.append(edit)
        else:
            raise TypeError(f"expected an intervention or a rule string, got {type(edit).__name__}: {edit!r}")
    return tuple(flat)


def _shown(selector: Selector) -> str:
    if isinstance(selector, str):
        return ALIASES.get(selector, selector)
    return f"[{', '.join(map(str, selector))}]"


def _compact(indices: Sequence[int]) -> str:
    """`18:36` for a run of indices, else a list."""
    if len(indices) > 1 and list(indices) == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]}:{indices[-1] + 1}"
    return ",".join(map(str, indices))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """Edits as arrays. Leaves lead with L, so they scan with the layers; stacked variants, with I."""

    attention_factor: jax.Array  # float32, L N M M (query group, key group): multiplies exp(score); 0 removes the edge

    @classmethod
    def none(cls, config: DecoderConfig, num_groups: int = 1) -> "Intervention":
        """Leaves the checkpoint as it is."""
        shape = (config.num_layers, config.num_heads, num_groups, num_groups)
        return cls(attention_factor=jnp.ones(shape, jnp.float32))
