"""Random rule sets for the oracle, each of which touches an edge of the prompt at hand."""

from collections.abc import Sequence

import numpy as np

import avjax
from tests.engine.knockout_oracle import Oracle, Rule

# Query types with key types that together leave some query without a key: text before the media sees only text, the
# first video chunk no audio, and so on. The last two need four rules, and the former of them acts in decoding alone.
STARVING = (
    ("query_text", ("query_text",)),
    ("query_text", ("query_text", "audio", "video")),
    ("video", ("query_text", "video")),
    ("audio", ("query_text", "video", "audio")),
    ("last", ("query_text", "video", "audio")),
    ("answer", ("query_text", "video", "audio")),
    ("generated", ("query_text", "video", "audio", "generated")),
    ("answer", ("query_text", "video", "audio", "generated")),
)


def draw_window(rng: np.random.Generator, oracle: Oracle) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Layers, and sometimes heads."""
    start, stop = sorted(rng.choice(len(oracle.layers) + 1, 2, replace=False).tolist())
    heads = None
    if rng.random() < 0.4:
        count = rng.integers(1, oracle.num_heads)
        heads = tuple(sorted(rng.choice(oracle.num_heads, count, replace=False).tolist()))
    return tuple(range(start, stop)), heads


def draw_rule(rng: np.random.Generator, oracle: Oracle, types: Sequence[str], size: int) -> Rule:
    """A rule that cuts an edge among `size` positions."""
    while True:
        rule = Rule(str(rng.choice(types)), str(rng.choice(types)), *draw_window(rng, oracle))
        if oracle.touched([rule], size)[0]:
            return rule


def draw_rules(rng: np.random.Generator, oracle: Oracle, types: Sequence[str], size: int) -> tuple[Rule, ...]:
    """One to three rules."""
    return tuple(draw_rule(rng, oracle, types, size) for _ in range(rng.integers(1, 4)))


def draw_starving(
    rng: np.random.Generator, oracle: Oracle, index: int, types: Sequence[str], size: int
) -> tuple[Rule, ...]:
    """A set that leaves some query without a key, and up to three rules in all unless that takes four."""
    query, keys = STARVING[index % len(STARVING)]
    window = draw_window(rng, oracle)
    rules = tuple(Rule(query, key, *window) for key in keys)
    extra = rng.integers(0, max(1, 4 - len(rules)))
    return rules + tuple(draw_rule(rng, oracle, types, size) for _ in range(extra))


def edits(rules: Sequence[Rule]) -> list[avjax.Knockout]:
    """The same rules for avjax."""
    return [avjax.Knockout(query=r.query, key=r.key, layers=r.layers, heads=r.heads) for r in rules]
