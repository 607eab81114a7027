"""From edits over a prompt to arrays over token groups, with a count of what each edit touches.

Axes: I variant, L layer, N heads, M token group.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from avjax.config import DecoderConfig
from avjax.interventions import Edit, Intervention, Knockout
from avjax.prompt import Prompt
from avjax.tokens import TokenGroups, partition, select

GROUP_BUCKETS = (2, 4, 8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Touched:
    """What a variant's edits reach, summed over layers and heads.

    Attributes:
      edges: query-key pairs that the edits block.
      blocked_queries: queries left without any visible key; they read zero (or, with `compat="published"`, the mean
        value of all keys).
    """

    edges: int = 0
    blocked_queries: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """Variants of one prompt, ready for a compiled pass."""

    groups: TokenGroups
    interventions: Intervention  # leaves lead with I
    factors: np.ndarray  # float32 I L N M M, on the host

    def touched(self, variant: int, num_decoded: int) -> Touched:
        """What one variant reaches when `num_decoded` generated tokens were fed back as queries."""
        return _touched(self.factors[variant], self.groups, num_decoded)


def lower(
    prompt: Prompt,
    config: DecoderConfig,
    variants: Sequence[Sequence[Edit]],
    *,
    num_decoded: int,
    allow_noop: bool = False,
) -> Lowered:
    """Arrays for every variant over one partition of the prompt.

    Args:
      variants: the edits of each variant; an empty one is the clean model.
      num_decoded: how many generated tokens can become queries; 0 when nothing is generated.
      allow_noop: let an edit touch nothing.

    Raises:
      ValueError: a selector, layer or head is out of range, or an edit touches nothing; the rule is named.
    """
    masks = [[_position_masks(edit, prompt, num_decoded, allow_noop) for edit in edits] for edits in variants]
    flat = [mask for edits in masks for pair in edits for mask in pair]
    groups = _padded(partition(flat, len(prompt)))
    members = iter(groups.members)
    in_groups = [[(next(members), next(members)) for _ in edits] for edits in variants]
    factors = np.stack(
        [_factors(edits, pairs, groups.num_groups, config) for edits, pairs in zip(variants, in_groups, strict=True)]
    )
    return Lowered(groups=groups, interventions=Intervention(attention_factor=jnp.asarray(factors)), factors=factors)


def _position_masks(
    edit: Knockout, prompt: Prompt, num_decoded: int, allow_noop: bool
) -> tuple[np.ndarray, np.ndarray]:
    try:
        query, key = select(prompt, edit.query), select(prompt, edit.key)
    except ValueError as error:
        raise ValueError(f"rule {edit}: {error}") from error
    if not allow_noop:
        reason = _why_untouched(edit, query, key, prompt, num_decoded)
        if reason:
            raise ValueError(f"rule {edit} touches nothing: {reason}; change it or pass allow_noop=True")
    return query, key


def _why_untouched(edit: Knockout, query: np.ndarray, key: np.ndarray, prompt: Prompt, num_decoded: int) -> str | None:
    for name, selector, mask in (("query", edit.query, query), ("key", edit.key, key)):
        if not mask.any():
            return f"the prompt has no {selector} tokens ({name})"
    if not query[:-1].any() and num_decoded == 0:
        return (
            "its queries are generated tokens and none is fed back here (the first one is predicted by the last prompt "
            "position; use query 'answer' or 'last' to edit that one)"
        )
    if _count_edges(query, key, num_decoded) == 0:
        return "no query comes at or after one of its keys, so causal attention has no such edge"
    return None


def _count_edges(query: np.ndarray, key: np.ndarray, num_decoded: int) -> int:
    """Visible (query, key) pairs of one head and layer."""
    seen = np.cumsum(key[:-1])
    edges = int(seen[query[:-1]].sum())
    if query[-1]:
        edges += num_decoded * int(key[:-1].sum())
        edges += num_decoded * (num_decoded + 1) // 2 if key[-1] else 0
    return edges


def _padded(groups: TokenGroups) -> TokenGroups:
    """Pads M to a bucket with groups that no position has, so that few executables serve all rules."""
    size = next((b for b in GROUP_BUCKETS if b >= groups.num_groups), groups.num_groups)
    extra = (0, size - groups.num_groups)
    members = tuple(np.pad(mask, extra) for mask in groups.members)
    return dataclasses.replace(groups, num_groups=size, members=members)


def _factors(
    edits: Sequence[Knockout],
    masks: Sequence[tuple[np.ndarray, np.ndarray]],
    num_groups: int,
    config: DecoderConfig,
) -> np.ndarray:
    """float32 [L, N, M, M] of one variant; edits multiply."""
    factor = np.ones((config.num_layers, config.num_heads, num_groups, num_groups), np.float32)
    for edit, (query, key) in zip(edits, masks, strict=True):
        layers, heads = edit.layer_indices(config), edit.head_indices(config)
        factor[np.ix_(layers, heads, np.flatnonzero(query).tolist(), np.flatnonzero(key).tolist())] = 0.0
    return factor


def _touched(factor: np.ndarray, groups: TokenGroups, num_decoded: int) -> Touched:
    blocked = factor == 0
    edges = blocked_queries = 0
    # Heads and layers repeat few distinct patterns; count each pattern once.
    patterns, counts = np.unique(blocked.reshape(-1, *blocked.shape[2:]), axis=0, return_counts=True)
    members = [np.append(groups.prompt == m, groups.generated == m) for m in range(blocked.shape[-1])]
    for pattern, count in zip(patterns, counts, strict=True):
        for m, query in enumerate(members):
            key = np.any([members[k] for k in np.flatnonzero(pattern[m])], axis=0)
            if not np.any(key) or not query.any():
                continue
            edges += int(count) * _count_edges(query, key, num_decoded)
            open_keys = np.flatnonzero(~key[:-1])
            first_open = open_keys[0] if len(open_keys) else len(key)
            blocked_queries += int(count) * int(np.sum(np.flatnonzero(query[:-1]) < first_open))
            if query[-1] and not len(open_keys) and key[-1]:
                blocked_queries += int(count) * num_decoded
    return Touched(edges=edges, blocked_queries=blocked_queries)
