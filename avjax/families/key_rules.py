"""Key tables: which source tensors make which parameter, as data.

A source name may hold `{l}`, whose rows stack on a leading layer axis, and `{a|b|c}`, whose alternatives stack on the
next one. The einops pattern names the axes of one source tensor and of its place in the parameter.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping

import numpy as np
from einops import rearrange


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter and the tensors that fill it."""

    source: str
    target: str
    axes: str

    def choices(self, num_layers: int) -> list[list[str]]:
        """The alternatives of each placeholder, in order."""
        placeholders = re.findall(r"\{([^}]*)\}", self.source)
        return [[str(i) for i in range(num_layers)] if c == "l" else c.split("|") for c in placeholders]

    def entries(self, num_layers: int) -> Iterator[tuple[tuple[int, ...], str]]:
        """(place in the stack, source name) of every tensor."""
        choices = self.choices(num_layers)
        template = re.sub(r"\{[^}]*\}", "{}", self.source)
        for places in itertools.product(*(range(len(c)) for c in choices)):
            yield places, template.format(*(c[i] for c, i in zip(choices, places, strict=True)))

    def source_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a source tensor that fits a place of this shape."""
        sizes = self._sizes(shape)
        left = re.findall(r"\(([^)]*)\)|(\S+)", self.axes.split("->")[0])
        return tuple(int(np.prod([sizes[n] for n in (group or single).split()])) for group, single in left)

    def to_target(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A source tensor in the layout of its place."""
        return rearrange(tensor, self.axes, **self._composed(shape))

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_target`."""
        left, right = self.axes.split("->")
        return rearrange(array, f"{right.strip()} -> {left.strip()}")

    def _sizes(self, shape: tuple[int, ...]) -> Mapping[str, int]:
        names = self.axes.split("->")[1].split()
        if len(names) != len(shape):
            raise ValueError(f"rule {self.source} -> {self.target}: pattern {self.axes!r} does not fit shape {shape}")
        return dict(zip(names, shape, strict=True))

    def _composed(self, shape: tuple[int, ...]) -> dict[str, int]:
        grouped = " ".join(re.findall(r"\(([^)]*)\)", self.axes.split("->")[0])).split()
        return {name: size for name, size in self._sizes(shape).items() if name in grouped}


@dataclasses.dataclass(frozen=True)
class Table:
    """Everything a family's checkpoint may hold."""

    rules: tuple[Rule, ...]
    prefix: str = ""  # that a whole checkpoint puts before every name
    skipped: tuple[str, ...] = ()  # patterns of tensors that no model here reads
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # names that repeat another tensor's values
    spellings: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # of published prefixes

    def skips(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.skipped)
