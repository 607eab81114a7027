"""Causal grouped-query attention under edits: the arithmetic of a prompt and of one decoded token.

Axes: B batch, T query, S key, N heads, K kv heads, G = N / K, H head dim, M token group.

An edit is a factor per head and pair of token groups that multiplies exp(score) before the softmax normalises: 1 leaves
an edge alone, 0 removes it. Factors never carry a T or S: positions reach them through their token group.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.models.layers import dot, rounded, scaled

Compat = Literal["published"]

BLOCKS = 8  # of queries per prompt: each block reads the keys up to its own end only
BLOCK_BOUNDS = (128, 512)
MAX_EXPONENT = 80.0  # exp stays finite in float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges:
    """The attention edit of one layer."""

    factor: jax.Array  # float32 N M M: query group, key group
    compat: Compat | None = dataclasses.field(default=None, metadata={"static": True})


def edge_factors(
    factor_MM: Float[Array, "*N M M"], query_groups: Int[Array, "T"], key_groups: Int[Array, "S"]
) -> Float[Array, "*N T S"]:
    """The factor of every edge from these queries to these keys."""
    num_groups = factor_MM.shape[-1]
    # One-hot products select exactly (one term is not zero) and are faster than a gather per edge.
    query_TM = jax.nn.one_hot(query_groups, num_groups, dtype=jnp.float32)
    key_SM = jax.nn.one_hot(key_groups, num_groups, dtype=jnp.float32)
    return dot("...tk,sk->...ts", dot("tm,...mk->...tk", query_TM, factor_MM), key_SM)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Keys and values that one decoded token can read: the prompt's, or those decoded so far."""

    keys: jax.Array  # S K H
    values: jax.Array  # S K H
    visible: jax.Array  # bool S
    groups: jax.Array  # int32 S


def weigh(
    scores: Float[Array, "... S"], visible: Array, factor: Float[Array, "... S"] | None
) -> tuple[Float[Array, "... S"], Float[Array, "... 1"]]:
    """Unnormalised float32 weights and their sum; both are 0 where no visible key has a factor above 0.

    A blocked edge weighs nothing, but its factor keeps a gradient: what the edge would weigh.
    """
    keep = visible if factor is None else visible & (factor > 0)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(keep, scores, -jnp.inf), axis=-1, keepdims=True))
    alive = jnp.isfinite(top)
    shifted = jnp.where(visible, scores, -jnp.inf) - jnp.where(alive, top, 0.0)
    if factor is None:
        weights = jnp.exp(shifted)
    else:
        # Only a blocked score can exceed the largest kept one; bounded, so that 0 times it stays 0.
        weights = jnp.where(alive, jnp.exp(jnp.minimum(shifted, MAX_EXPONENT)) * factor, 0.0)
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def attend_prompt(
    q_TNH: Float[Array, "T N H"],
    k_SKH: Float[Array, "T K H"],
    v_SKH: Float[Array, "T K H"],
    *,
    length: Int[Array, ""],
    groups: Int[Array, "T"],
    edges: Edges | None,
) -> Float[Array, "T N H"]:
    """Causal attention of a prompt with itself.

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
    factor_KGMM = None if edges is None else edges.factor.reshape(q_KGTH.shape[:2] + edges.factor.shape[1:])
    compat = None if edges is None else edges.compat

    def one_kv_head(over: Callable, q_GTH: Array, k_SH: Array, v_SH: Array, factor_GMM: Array | None) -> Array:
        def one_head(x: tuple[Array, Array | None]) -> Array:
            return _attend_head(x[0], k_SH, v_SH, x[1], length=length, groups=groups, compat=compat)

        return over(one_head, (q_GTH, factor_GMM))

    def all_heads(over: Callable, *operands: Array | None) -> Array:
        return over(lambda x: one_kv_head(over, *x), operands)

    # Heads one after the other keep a CPU's caches warm: half the time of one batched product at 2,048 tokens.
    z_KGTH = jax.lax.platform_dependent(
        q_KGTH,
        k_SKH.transpose(1, 0, 2),
        v_SKH.transpose(1, 0, 2),
        factor_KGMM,
        cpu=functools.partial(all_heads, jax.lax.map),
        default=functools.partial(all_heads, lambda f, xs: jax.vmap(f)(xs)),
    )
    return z_KGTH.reshape(num_heads, num_tokens, head_dim).transpose(1, 0, 2)


def _attend_head(
    q_TH: Float[Array, "T H"],
    k_SH: Float[Array, "T H"],
    v_SH: Float[Array, "T H"],
    factor_MM: Float[Array, "M M"] | None,
    *,
    length: Int[Array, ""],
    groups: Int[Array, "T"],
    compat: Compat | None,
) -> Float[Array, "T H"]:
    """One head, block of queries by block, so that no block computes scores of later keys."""
    num_tokens, head_dim = q_TH.shape
    low, high = BLOCK_BOUNDS
    block = min(max(num_tokens // BLOCKS, low), high)
    outputs = []
    for start in range(0, num_tokens, block):
        stop = min(start + block, num_tokens)
        scores_TS = scaled(dot("th,sh->ts", q_TH[start:stop], k_SH[:stop]), head_dim, q_TH.dtype)
        visible_TS = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        factor_TS = None if factor_MM is None else edge_factors(factor_MM, groups[start:stop], groups[:stop])
        weights_TS, total_T1 = weigh(scores_TS, visible_TS, factor_TS)
        z_TH = _mix(weights_TS, total_T1, v_SH[:stop])
        if compat == "published":
            exists_S = (jnp.arange(num_tokens) < length).astype(v_SH.dtype)
            z_TH = jnp.where(total_T1 > 0, z_TH, dot("s,sh->h", exists_S, v_SH) / length)
        outputs.append(rounded(z_TH, q_TH.dtype))
    return jnp.concatenate(outputs)


def _mix(weights_TS: Array, total_T1: Array, v_SH: Array) -> Float[Array, "T H"]:
    """The weighted mean of the values, in float32; zero for a row without weight."""
    total_T1 = jnp.where(total_T1 > 0, total_T1, 1.0)
    if v_SH.dtype == jnp.float32:
        # Divided after the product: a pass over T x H instead of T x S.
        return dot("ts,sh->th", weights_TS, v_SH) / total_T1
    return dot("ts,sh->th", rounded(weights_TS / total_T1, v_SH.dtype), v_SH)


def attend_token(
    q_NH: Float[Array, "N H"], segments: Sequence[Segment], *, group: Int[Array, ""], edges: Edges | None
) -> Float[Array, "N H"]:
    """Attention of one decoded token of token group `group` over its segments, under one softmax."""
    num_heads, head_dim = q_NH.shape
    num_kv = segments[0].keys.shape[1]
    q_KGH = q_NH.reshape(num_kv, num_heads // num_kv, head_dim)
    scores = [scaled(dot("kgh,skh->kgs", q_KGH, s.keys), head_dim, q_NH.dtype) for s in segments]
    scores_NS = jnp.concatenate(scores, axis=-1).reshape(num_heads, -1)
    visible_S = jnp.concatenate([s.visible for s in segments])
    groups_S = jnp.concatenate([s.groups for s in segments])
    factor_NS = None if edges is None else edge_factors(edges.factor, group[None], groups_S)[:, 0]
    weights_NS, total_N1 = weigh(scores_NS, visible_S, factor_NS)
    if edges is not None and edges.compat == "published":
        exists_S = visible_S.astype(jnp.float32)
        weights_NS = jnp.where(total_N1 > 0, weights_NS, exists_S)
        total_N1 = jnp.where(total_N1 > 0, total_N1, jnp.sum(exists_S))
    weights_NS = weights_NS / jnp.where(total_N1 > 0, total_N1, 1.0)
    weights_KGS = rounded(weights_NS, q_NH.dtype).reshape(num_kv, num_heads // num_kv, -1)
    z_KGH, start = jnp.zeros(q_KGH.shape, jnp.float32), 0
    for s in segments:
        stop = start + s.keys.shape[0]
        z_KGH += dot("kgs,skh->kgh", weights_KGS[..., start:stop], s.values)
        start = stop
    return rounded(z_KGH, q_NH.dtype).reshape(num_heads, head_dim)
