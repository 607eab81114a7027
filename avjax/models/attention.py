"""Causal grouped-query attention under edits: the arithmetic of a prompt and of one decoded token.

Axes: B batch, T query, S key, N heads, K kv heads, G = N / K, H head dim, M token group.

An edit is a factor per head and pair of token groups that multiplies exp(score) before the softmax normalises: 1 leaves
an edge alone, 0 removes it. Factors never carry a T or S: positions reach them through their token group.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.models.layers import dot

Compat = Literal["published"]

MIN_BLOCK = 128  # queries per block: each block reads the keys up to its own end only
MAX_BLOCKS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges:
    """The attention edit of one layer."""

    factor: jax.Array  # float32 N M M: query group, key group
    compat: Compat | None = dataclasses.field(default=None, metadata={"static": True})

    def between(self, query_groups: Int[Array, "T"], key_groups: Int[Array, "S"]) -> Float[Array, "N T S"]:
        """The factor of every edge from these queries to these keys."""
        num_groups = self.factor.shape[-1]
        # One-hot products select exactly (one term is not zero) and are faster than a gather per edge.
        query_TM = jax.nn.one_hot(query_groups, num_groups, dtype=jnp.float32)
        key_SM = jax.nn.one_hot(key_groups, num_groups, dtype=jnp.float32)
        row_NTM = dot("tm,nmk->ntk", query_TM, self.factor)
        return dot("ntk,sk->nts", row_NTM, key_SM)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Keys and values that one decoded token can read: the prompt's, or those decoded so far."""

    keys: jax.Array  # S K H
    values: jax.Array  # S K H
    visible: jax.Array  # bool S
    groups: jax.Array  # int32 S


def weigh(
    scores_NTS: Float[Array, "N T S"],
    visible_TS: Array,
    factor_NTS: Float[Array, "N T S"] | None,
) -> tuple[Float[Array, "N T S"], Float[Array, "N T 1"]]:
    """Unnormalised float32 weights and their sum; both are 0 where no visible key has a factor above 0."""
    scores_NTS = scores_NTS.astype(jnp.float32)
    keep = visible_TS if factor_NTS is None else visible_TS & (factor_NTS > 0)
    scores_NTS = jnp.where(keep, scores_NTS, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores_NTS, axis=-1, keepdims=True))
    weights_NTS = jnp.exp(scores_NTS - jnp.where(jnp.isfinite(top), top, 0.0))
    if factor_NTS is not None:
        weights_NTS = weights_NTS * factor_NTS
    return weights_NTS, jnp.sum(weights_NTS, axis=-1, keepdims=True)


def attend_prompt(
    q_TNH: Float[Array, "T N H"],
    k_SKH: Float[Array, "T K H"],
    v_SKH: Float[Array, "T K H"],
    *,
    length: Int[Array, ""],
    groups: Int[Array, "T"],
    edges: Edges | None,
) -> Float[Array, "T N H"]:
    """Causal attention of a prompt with itself, block by block so that no block computes scores of later keys.

    Args:
      length: the real prompt length; later positions are padding, which causality hides from real queries.
      groups: the token group of each position.
      edges: the layer's edit; None is the clean model.

    Returns:
      The per-head output z. A query whose every visible key is blocked reads zero, or with `compat="published"` the
      mean value of all keys of the prompt, later ones included.
    """
    num_tokens, num_heads, head_dim = q_TNH.shape
    num_kv = k_SKH.shape[1]
    q_KGTH = q_TNH.reshape(num_tokens, num_kv, num_heads // num_kv, head_dim).transpose(1, 2, 0, 3)
    k_KSH, v_KSH = k_SKH.transpose(1, 0, 2), v_SKH.transpose(1, 0, 2)
    block = max(MIN_BLOCK, -(-num_tokens // MAX_BLOCKS))
    outputs = []
    for start in range(0, num_tokens, block):
        stop = min(start + block, num_tokens)
        scores_NTS = _scores(q_KGTH[:, :, start:stop], k_KSH[:, :stop])
        visible_TS = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        factor_NTS = None if edges is None else edges.between(groups[start:stop], groups[:stop])
        weights_NTS, total_NT1 = weigh(scores_NTS, visible_TS, factor_NTS)
        weights_NTS = (weights_NTS / jnp.where(total_NT1 > 0, total_NT1, 1.0)).astype(v_SKH.dtype)
        z_NTH = _mix(weights_NTS, v_KSH[:, :stop])
        if edges is not None and edges.compat == "published":
            mean_NH = _mean_value(v_SKH, jnp.arange(num_tokens) < length, num_heads)
            z_NTH = jnp.where(total_NT1 > 0, z_NTH, mean_NH[:, None])
        outputs.append(z_NTH)
    return jnp.concatenate(outputs, axis=1).transpose(1, 0, 2)


def attend_token(
    q_NH: Float[Array, "N H"], segments: Sequence[Segment], *, group: Int[Array, ""], edges: Edges | None
) -> Float[Array, "N H"]:
    """Attention of one decoded token of token group `group` over its segments, under one softmax."""
    num_heads, head_dim = q_NH.shape
    num_kv = segments[0].keys.shape[1]
    q_KGTH = q_NH.reshape(num_kv, num_heads // num_kv, 1, head_dim)
    scores_NTS = jnp.concatenate([_scores(q_KGTH, s.keys.transpose(1, 0, 2)) for s in segments], axis=-1)
    visible_S = jnp.concatenate([s.visible for s in segments])
    groups_S = jnp.concatenate([s.groups for s in segments])
    factor_NTS = None if edges is None else edges.between(group[None], groups_S)
    weights_NTS, total_NT1 = weigh(scores_NTS, visible_S[None], factor_NTS)
    weights_NTS = weights_NTS / jnp.where(total_NT1 > 0, total_NT1, 1.0)
    if edges is not None and edges.compat == "published":
        uniform_S = visible_S / jnp.sum(visible_S)
        weights_NTS = jnp.where(total_NT1 > 0, weights_NTS, uniform_S)
    weights_NTS = weights_NTS.astype(segments[0].values.dtype)
    z_NTH, start = jnp.zeros((num_heads, 1, head_dim), weights_NTS.dtype), 0
    for s in segments:
        z_NTH += _mix(weights_NTS[..., start : start + s.keys.shape[0]], s.values.transpose(1, 0, 2))
        start += s.keys.shape[0]
    return z_NTH[:, 0]


def _scores(q_KGTH: Array, k_KSH: Array) -> Float[Array, "N T S"]:
    num_kv, group, tokens, head_dim = q_KGTH.shape
    scores = dot("kqh,ksh->kqs", q_KGTH.reshape(num_kv, group * tokens, head_dim), k_KSH) * head_dim**-0.5
    return scores.reshape(num_kv * group, tokens, k_KSH.shape[1])


def _mix(weights_NTS: Array, v_KSH: Array) -> Float[Array, "N T H"]:
    num_heads, tokens, keys = weights_NTS.shape
    num_kv, _, head_dim = v_KSH.shape
    mixed = dot("kqs,ksh->kqh", weights_NTS.reshape(num_kv, -1, keys), v_KSH)
    return mixed.reshape(num_heads, tokens, head_dim)


def _mean_value(v_SKH: Array, keep_S: Array, num_heads: int) -> Float[Array, "N H"]:
    """What a softmax over equal scores reads: the mean over all existing keys, in the published code's semantics."""
    weight_S = (keep_S / jnp.sum(keep_S)).astype(v_SKH.dtype)
    mean_KH = dot("s,skh->kh", weight_S, v_SKH)
    return jnp.repeat(mean_KH, num_heads // v_SKH.shape[1], axis=0)
