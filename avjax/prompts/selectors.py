"""Which positions an edit applies to: selectors over a prompt, and the token groups that a set of them induces.

A selector is text such as `audio`, `video[2s:4s]`, `text - system` or `[0, 5:9]`, or a sequence of prompt positions. A
position mask has one entry per prompt position and a last one for everything generated after it.
"""

import dataclasses
import operator
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from avjax.nearest import did_you_mean

Selector = str | Sequence[int]

MODALITIES = ("text", "audio", "video", "image")
KINDS = (*MODALITIES, "generated")  # the values of `kinds`, in order; generated: an answer's opening, in the prompt
NAMES = (*KINDS, "system", "user", "special", "last", "answer", "all")
ALIASES = {"query_text": "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BySample:
    """Positions that differ by sample, as the selector of an edit in a sweep; one sample's are `selector.at(sample)`.

    Attributes:
      name: what the edit shows in their place.
      samples: names of samples, as the sweep's prompts have them.
      positions: of each sample, in the same order; none where it has no such token.
    """

    name: str
    samples: tuple[Hashable, ...]
    positions: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, positions: Mapping[Hashable, Sequence[int]], name: str = "positions by sample") -> "BySample":
        indices = tuple(as_indices(values, f"{name}, sample {sample!r}") for sample, values in positions.items())
        return cls(name=name, samples=tuple(positions), positions=indices)

    def at(self, sample: Hashable) -> tuple[int, ...]:
        if sample not in self.samples:
            known = ", ".join(map(repr, self.samples)) or "nothing"
            raise ValueError(f"selector {self}: it has no positions for sample {sample!r}; it has {known}")
        return self.positions[self.samples.index(sample)]

    def __str__(self) -> str:
        return self.name


class SelectorLayout(Protocol):
    """What a selector needs to know of a prompt; each array has one entry per position."""

    @property
    def kinds(self) -> np.ndarray: ...  # int8, an index into KINDS
    @property
    def roles(self) -> np.ndarray: ...  # str: the speaker of the turn
    @property
    def special(self) -> np.ndarray: ...  # bool: control tokens
    @property
    def seconds(self) -> np.ndarray: ...  # float: where in its clip an audio or video token begins; NaN elsewhere
    @property
    def frames(self) -> np.ndarray: ...  # int: step of the temporal grid of a video token; -1 elsewhere


def select(layout: SelectorLayout, selector: Selector | BySample) -> np.ndarray:
    """The positions that a selector names.

    Args:
      selector: names, spans (`audio[2s:4s]`, `video[f1:f3]`, `audio[0:10]` by order within the group), positions
        (`[0, 5:9]`), joined by `-`, `&` and `|`, which bind in that order as for Python's sets; or positions.

    Returns:
      bool [T + 1]; the last entry stands for every generated token.

    Raises:
      ValueError: a name is unknown, a position is out of range, or the text does not parse.
      TypeError: the selector is that of several samples.
    """
    if isinstance(selector, BySample):
        raise TypeError(f"selector {selector}: expected one sample's positions; take selector.at(sample)")
    if isinstance(selector, str):
        return _Parser(layout, selector).parse()
    return _positions(layout, [(i, i + 1) for i in as_indices(selector, "selector")], repr(list(selector)))


def as_indices(values: Sequence[int] | np.ndarray | int | np.integer, what: str) -> tuple[int, ...]:
    """Integers from integers; a boolean mask, a string or a fraction would silently become others.

    Raises:
      TypeError: a value is no integer.
    """
    several = hasattr(values, "__iter__") and not isinstance(values, str | bytes | Mapping | type)
    items: list[Any] = list(values) if several else [values]  # pyright: ignore[reportArgumentType]
    if any(isinstance(i, bool | np.bool_ | type) or not hasattr(i, "__index__") for i in items):
        mask = any(isinstance(i, bool | np.bool_) for i in items)
        advice = "; numpy.flatnonzero turns a mask into positions" if mask else ""
        raise TypeError(f"{what}: expected integers, got {_brief(values)}{advice}")
    return tuple(operator.index(i) for i in items)


def _brief(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclasses.dataclass(frozen=True)
class TokenGroups:
    """The coarsest partition of positions of which every given selector is a union.

    Attributes:
      prompt: int32 [T], the group of each prompt position.
      generated: the group of every generated token.
      num_groups: M; a group that no position has may exist, so that M can be padded.
      members: for each selector, bool [M].
    """

    prompt: np.ndarray
    generated: int
    num_groups: int
    members: tuple[np.ndarray, ...]


def partition(masks: Sequence[np.ndarray], num_positions: int) -> TokenGroups:
    """Groups positions by the set of masks that contain them, in order of first appearance.

    Args:
      masks: position masks, bool [T + 1].
      num_positions: T, needed when there is no mask.
    """
    signature = np.stack(masks) if masks else np.zeros((0, num_positions + 1), bool)
    _, first, inverse = np.unique(signature, axis=1, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    groups = rank[inverse.reshape(-1)].astype(np.int32)
    representative = np.sort(first)
    return TokenGroups(
        prompt=groups[:-1],
        generated=int(groups[-1]),
        num_groups=len(first),
        members=tuple(mask[representative] for mask in signature),
    )


def _positions(layout: SelectorLayout, spans: Sequence[tuple[int | None, int | None]], shown: str) -> np.ndarray:
    size = len(layout.kinds)
    mask = np.zeros(size + 1, bool)
    for start, stop in spans:
        start, stop = 0 if start is None else start, size if stop is None else stop
        if not 0 <= start < stop <= size:
            raise ValueError(f"selector {shown}: expected positions within 0:{size} of the prompt, got {start}:{stop}")
        mask[start:stop] = True
    return mask


_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<span>\[[^\]]*\])|(?P<op>[-&|()]))")
_BOUND = r"(?:(?P<f{i}>f?)(?P<n{i}>\d+(?:\.\d*)?|\.\d+)(?P<s{i}>s?))?"
_RANGE = re.compile(rf"\s*{_BOUND.format(i=1)}\s*:\s*{_BOUND.format(i=2)}\s*")


class _Parser:
    """Recursive descent over `|`, then `&`, then `-`, then names, spans and parentheses."""

    def __init__(self, layout: SelectorLayout, text: str):
        self.layout, self.text, self.tokens, at = layout, text, [], 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(f"cannot read {text[at:].strip()!r}")
            self.tokens.append((match.lastgroup, match.group().strip()))
            at = match.end()

    def error(self, problem: str, hint: str = "") -> ValueError:
        return ValueError(
            f"selector {self.text!r}: {problem}; expected names ({', '.join(NAMES)}), spans such as audio[2s:4s], "
            f"video[f1:f3] or [0, 5:9], joined by | & -{hint}"
        )

    def parse(self) -> np.ndarray:
        mask = self.union()
        if self.tokens:
            raise self.error(f"expected the end of the text, got {self.tokens[0][1]!r}")
        return mask

    def union(self) -> np.ndarray:
        return self.chain("|", self.intersection, np.logical_or)

    def intersection(self) -> np.ndarray:
        return self.chain("&", self.difference, np.logical_and)

    def difference(self) -> np.ndarray:
        return self.chain("-", self.atom, lambda a, b: a & ~b)

    def chain(self, symbol: str, operand: Callable[[], np.ndarray], join: Callable) -> np.ndarray:
        mask = operand()
        while self.tokens and self.tokens[0] == ("op", symbol):
            self.tokens.pop(0)
            mask = join(mask, operand())
        return mask

    def atom(self) -> np.ndarray:
        kind, text = self.tokens.pop(0) if self.tokens else (None, "the end")
        if (kind, text) == ("op", "("):
            mask = self.union()
            if not self.tokens or self.tokens.pop(0) != ("op", ")"):
                raise self.error("a parenthesis is not closed")
            return mask
        if kind == "span":
            return self.positions([self.bounds(part) for part in text[1:-1].split(",")])
        if kind != "name":
            raise self.error(f"expected a name, got {text!r}")
        mask = self.named(ALIASES.get(text, text))
        if self.tokens and self.tokens[0][0] == "span":
            mask = self.within(mask, self.tokens.pop(0)[1][1:-1].strip())
        return mask

    def positions(self, spans: Sequence[tuple[int | None, int | None]]) -> np.ndarray:
        return _positions(self.layout, spans, self.text)

    def bounds(self, part: str) -> tuple[int | None, int | None]:
        match = re.fullmatch(r"\s*(\d*)\s*(:?)\s*(\d*)\s*", part)
        if match is None or not part.strip():
            raise self.error(f"cannot read the positions {part!r}")
        start, colon, stop = match.groups()
        if not colon:
            return int(start), int(start) + 1
        return int(start) if start else None, int(stop) if stop else None

    def named(self, name: str) -> np.ndarray:
        layout, size = self.layout, len(self.layout.kinds)
        mask = np.zeros(size + 1, bool)
        text = layout.kinds == 0
        match name:
            case "text" | "audio" | "video" | "image":
                mask[:-1] = layout.kinds == MODALITIES.index(name)
            case "system" | "user":
                mask[:-1] = text & (layout.roles == name) & ~layout.special
            case "special":
                mask[:-1] = text & layout.special
            case "generated" | "answer":
                mask[:-1], mask[-1] = layout.kinds == KINDS.index("generated"), True
                if name == "answer":  # and the position before the first of them, which predicts it
                    mask[max(0, int(np.argmax(mask)) - 1)] = True
            case "last":
                mask[-2] = True
            case "all":
                mask[:] = True
            case _:
                raise self.error(f"unknown token type {name!r}", did_you_mean(name, NAMES))
        return mask

    def within(self, mask: np.ndarray, span: str) -> np.ndarray:
        match = _RANGE.fullmatch(span)
        if match is None:
            raise self.error(f"cannot read the span [{span}]")
        start, stop = match["n1"], match["n2"]
        seconds, frames = (bool(match[f"{unit}1"] or match[f"{unit}2"]) for unit in "sf")
        if (seconds and frames) or (not seconds and "." in span):
            raise self.error(f"cannot read the span [{span}]: seconds end in s, frames and tokens are whole")
        low, high = float(start) if start else -np.inf, float(stop) if stop else np.inf
        if low >= high:
            raise self.error(f"the span [{span}] is empty")
        keep = np.zeros_like(mask)
        if seconds:
            keep[:-1] = (self.layout.seconds >= low) & (self.layout.seconds < high)
        elif frames:
            keep[:-1] = (self.layout.frames >= max(low, 0)) & (self.layout.frames < high)
        else:
            if mask[-1]:
                raise self.error(f"the span [{span}] counts generated tokens, of which more follow; use prompt tokens")
            order = np.cumsum(mask) - 1
            keep = (order >= low) & (order < high)
        return mask & keep


@dataclasses.dataclass(frozen=True)
class _AnyLayout:
    """Of one position: names and spans can be read, whatever a prompt has of them."""

    kinds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, np.int8))
    roles: np.ndarray = dataclasses.field(default_factory=lambda: np.array(["user"]))
    special: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, bool))
    seconds: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, np.nan))
    frames: np.ndarray = dataclasses.field(default_factory=lambda: np.full(1, -1))


class _Syntax(_Parser):
    """Positions may lie anywhere."""

    def positions(self, spans: Sequence[tuple[int | None, int | None]]) -> np.ndarray:
        return np.zeros(len(self.layout.kinds) + 1, bool)


def check_syntax(selector: str) -> None:
    """Refuses text that is no selector of any prompt.

    Raises:
      ValueError: a name is unknown, or the text does not parse.
    """
    _Syntax(_AnyLayout(), selector).parse()
