"""Causal grouped-query attention under edits: the arithmetic of a prompt, and of rows that share a prompt.

Axes: R query row, S key, N heads, K kv heads, G = N / K, H head dim, M token group, C key class, I variant, W own key.

An edit is a factor per head and pair of token groups that multiplies exp(score) before the softmax normalises: 1 leaves
an edge alone, 0 removes it. Factors never carry an R or S: positions reach them through their token group.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from avjax.models.layers import dot, rounded, scaled

Compat = Literal["published"]
Weights = Literal["pattern", "mass", "value_mass", "received"]
HeadResult = tuple[Array, dict[str, Array]]

BLOCKS = 8  # of queries per prompt: each block reads the keys up to its own end only
BLOCK_BOUNDS = (128, 512)
MAX_EXPONENT = 80.0  # exp stays finite in float32
KEY_BLOCK = 16  # shared keys of one class that stand together


def edge_factors(
    factor_MM: Float[Array, "*N M M"], query_groups: Int[Array, "R"], key_groups: Int[Array, "S"]
) -> Float[Array, "*N R S"]:
    """The factor of every edge from these queries to these keys."""
    num_groups = factor_MM.shape[-1]
    # One-hot products select exactly (one term is not zero) and are faster than a gather per edge.
    query_RM = jax.nn.one_hot(query_groups, num_groups, dtype=jnp.float32)
    key_SM = jax.nn.one_hot(key_groups, num_groups, dtype=jnp.float32)
    return dot("...rk,sk->...rs", dot("rm,...mk->...rk", query_RM, factor_MM), key_SM)


def same_branch(query_branches: Int[Array, "R"], key_branches: Int[Array, "S"]) -> Bool[Array, "R S"]:
    """Which keys belong to the prompt, or to the query's own continuation."""
    return (key_branches == 0) | (key_branches == query_branches[:, None])


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
    q_RNH: Float[Array, "R N H"],
    k_SKH: Float[Array, "S K H"],
    v_SKH: Float[Array, "S K H"],
    *,
    first_row: Int[Array, ""] | int = 0,
    length: Int[Array, ""],
    groups: Int[Array, "S"],
    factor: Float[Array, "N M M"] | None,
    compat: Compat | None = None,
    want: tuple[Weights, ...] = (),
    num_groups: int = 1,
    branches: Int[Array, "S"] | None = None,
) -> tuple[Float[Array, "R N H"], dict[str, Array]]:
    """Causal attention of consecutive rows of a prompt to the whole prompt.

    Args:
      first_row: the position of the first query, at most S - R; a whole prompt begins at 0.
      length: the real prompt length; later positions are padding, which causality hides from real queries.
      groups: the token group of each position.
      factor: the layer's edit of edges; None is the clean model.
      want: "pattern" for the attention weights [N, R, S]; "mass" for their sum over each token group [N, R, M];
        "value_mass" for the same sum of weights times the norm of the head's value at the key; "received" for the
        weights on each key summed over the later queries of each token group [N, M, S].
      branches: see `avjax.prompts.prompt.Inputs`; None hides no earlier position from a later one.

    Returns:
      The per-head output z, and the weights asked for. A query whose every visible key is blocked reads zero, or with
      `compat="published"` the mean value of all keys of the prompt, later ones included.
    """
    num_rows, num_heads, head_dim = q_RNH.shape
    num_kv = k_SKH.shape[1]
    q_KGRH = q_RNH.reshape(num_rows, num_kv, num_heads // num_kv, head_dim).transpose(1, 2, 0, 3)
    factor_KGMM = None if factor is None else factor.reshape(q_KGRH.shape[:2] + factor.shape[1:])
    one = functools.partial(
        _attend_head,
        first_row=first_row,
        length=length,
        groups=groups,
        compat=compat,
        want=want,
        num_groups=num_groups,
        branches=branches,
    )

    def one_kv_head(over: Callable, q_GRH: Array, k_SH: Array, v_SH: Array, factor_GMM: Array | None) -> HeadResult:
        return over(lambda x: one(x[0], k_SH, v_SH, x[1]), (q_GRH, factor_GMM))

    def all_heads(over: Callable, *operands: Array | None) -> HeadResult:
        return over(lambda x: one_kv_head(over, *x), operands)

    # Heads one after the other keep a CPU's caches warm: half the time of one batched product at 2,048 tokens.
    z_KGRH, weights = jax.lax.platform_dependent(
        q_KGRH,
        k_SKH.transpose(1, 0, 2),
        v_SKH.transpose(1, 0, 2),
        factor_KGMM,
        cpu=functools.partial(all_heads, jax.lax.map),
        default=functools.partial(all_heads, lambda f, xs: jax.vmap(f)(xs)),
    )
    weights = {name: x.reshape(num_heads, *x.shape[2:]) for name, x in weights.items()}
    return z_KGRH.reshape(num_heads, num_rows, head_dim).transpose(1, 0, 2), weights


def _attend_head(
    q_RH: Float[Array, "R H"],
    k_SH: Float[Array, "S H"],
    v_SH: Float[Array, "S H"],
    factor_MM: Float[Array, "M M"] | None,
    *,
    first_row: Int[Array, ""] | int,
    length: Int[Array, ""],
    groups: Int[Array, "S"],
    compat: Compat | None,
    want: tuple[Weights, ...],
    num_groups: int,
    branches: Int[Array, "S"] | None,
) -> tuple[Float[Array, "R H"], dict[str, Array]]:
    """One head, block of queries by block, so that no block computes scores of later keys."""
    (num_rows, head_dim), num_keys = q_RH.shape, k_SH.shape[0]
    low, high = BLOCK_BOUNDS
    block = min(max(num_rows // BLOCKS, low), high)
    row_groups = jax.lax.dynamic_slice_in_dim(groups, first_row, num_rows)
    row_branches = None if branches is None else jax.lax.dynamic_slice_in_dim(branches, first_row, num_rows)
    outputs, kept = [], {name: [] for name in want}
    for start in range(0, num_rows, block):
        stop = min(start + block, num_rows)
        last = num_keys - num_rows + stop  # no row of the block sees a key from here on
        scores_RS = scaled(dot("rh,sh->rs", q_RH[start:stop], k_SH[:last]), head_dim, q_RH.dtype)
        visible_RS = jnp.arange(last) <= first_row + jnp.arange(start, stop)[:, None]
        if branches is not None and row_branches is not None:
            visible_RS &= same_branch(row_branches[start:stop], branches[:last])
        factor_RS = None if factor_MM is None else edge_factors(factor_MM, row_groups[start:stop], groups[:last])
        weights_RS, total_R1 = weigh(scores_RS, visible_RS, factor_RS)
        z_RH = _mix(weights_RS, total_R1, v_SH[:last])
        exists_RS = (jnp.arange(num_keys) < length)[None]
        if branches is not None:  # the prompt, and of continuations what the query sees
            seen_RS = jnp.pad(visible_RS, ((0, 0), (0, num_keys - last)))
            exists_RS = (exists_RS & (branches == 0)) | seen_RS
        count_R1 = jnp.sum(exists_RS, axis=-1, keepdims=True)
        if compat == "published":
            z_RH = jnp.where(total_R1 > 0, z_RH, dot("rs,sh->rh", exists_RS.astype(v_SH.dtype), v_SH) / count_R1)
        outputs.append(rounded(z_RH, q_RH.dtype))
        if want:
            pattern_RS = jnp.pad(weights_RS / jnp.where(total_R1 > 0, total_R1, 1.0), ((0, 0), (0, num_keys - last)))
            if compat == "published":
                pattern_RS = jnp.where(total_R1 > 0, pattern_RS, exists_RS / count_R1)
            rows_R = first_row + jnp.arange(start, stop)
            later_RS = (jnp.arange(num_keys) < rows_R[:, None]) & (rows_R < length)[:, None]  # not of padding
            for name in want:
                if name == "received":
                    part = _received(pattern_RS, later_RS, row_groups[start:stop], num_groups)
                elif name == "pattern":
                    part = pattern_RS
                else:
                    part = _by_group(pattern_RS * (_norms(v_SH) if name == "value_mass" else 1.0), groups, num_groups)
                kept[name].append(part)
    joined = {n: jnp.sum(jnp.stack(x), 0) if n == "received" else jnp.concatenate(x) for n, x in kept.items()}
    return jnp.concatenate(outputs), joined


def _by_group(weights: Float[Array, "... S"], groups: Int[Array, "S"], num_groups: int) -> Float[Array, "... M"]:
    return dot("...s,sm->...m", weights, jax.nn.one_hot(groups, num_groups, dtype=jnp.float32))


def _norms(v_SH: Array) -> Float[Array, "S"]:
    return jnp.linalg.norm(v_SH.astype(jnp.float32), axis=-1)


def _received(pattern_RS: Array, later_RS: Array, groups_R: Array, num_groups: int) -> Float[Array, "M S"]:
    """What each key is paid by later rows, summed over those of each group."""
    groups_RM = jax.nn.one_hot(groups_R, num_groups, dtype=jnp.float32)
    return dot("rm,rs->ms", groups_RM, jnp.where(later_RS, pattern_RS, 0.0))


def _mix(weights_RS: Array, total_R1: Array, v_SH: Array) -> Float[Array, "R H"]:
    """The weighted mean of the values, in float32; zero for a row without weight."""
    total_R1 = jnp.where(total_R1 > 0, total_R1, 1.0)
    if v_SH.dtype == jnp.float32:
        # Divided after the product: a pass over R x H instead of R x S.
        return dot("rs,sh->rh", weights_RS, v_SH) / total_R1
    return dot("rs,sh->rh", rounded(weights_RS / total_R1, v_SH.dtype), v_SH)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedKeys:
    """One layer's keys and values of a clean prompt, sorted by key class in blocks of `KEY_BLOCK` slots of one class.

    A class is a set of positions that no edit of a sweep tells apart as keys. An edge's factor then belongs to a whole
    block: its logarithm moves the block's log-sum-exp where the blocks merge, with nothing gathered per key.
    """

    keys: jax.Array  # K S H
    values: jax.Array  # K S H
    positions: jax.Array  # int32 S: where a slot's token stands in the prompt; beyond every prompt for an empty slot
    block_class: jax.Array  # int32 S / KEY_BLOCK


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnKeys:
    """One layer's keys and values that each variant computed itself: dirty rows of the prompt, and decoded tokens."""

    keys: jax.Array  # I W K H
    values: jax.Array  # I W K H
    visible: jax.Array  # bool R W
    exists: jax.Array  # bool W or R W: a real token of the query's own sequence, seen or not
    classes: jax.Array  # int32 W


def attend_rows(
    q_IRNH: Float[Array, "I R N H"],
    shared: SharedKeys,
    own: Sequence[OwnKeys],
    *,
    num_shared: Int[Array, ""],
    factor: Float[Array, "I N R C"] | None,
    compat: Compat | None = None,
    want_mass: bool = False,
) -> tuple[Float[Array, "I R N H"], Float[Array, "I N R C"] | None]:
    """Attention of few rows of many variants: to one shared prompt, and to the keys that each variant owns.

    All variants read the shared keys in one product. Equal to `attend_prompt` over each variant's own sequence.

    Args:
      num_shared: prompt positions below this are shared; the slots of later ones are stale and hidden.
      factor: each edge's factor by key class; None is the clean model.

    Returns:
      z, and the attention weights summed over each key class when `want_mass`.
    """
    num_variants, num_rows, num_heads, head_dim = q_IRNH.shape
    num_kv = shared.keys.shape[0]
    num_slots, groups = shared.keys.shape[1], num_heads // num_kv
    q_KIRGH = q_IRNH.reshape(num_variants, num_rows, num_kv, groups, head_dim).transpose(2, 0, 1, 3, 4)
    flat_KXH = q_KIRGH.reshape(num_kv, -1, head_dim)
    far = scaled(dot("kxh,ksh->kxs", flat_KXH, shared.keys), head_dim, q_IRNH.dtype)
    near = jnp.concatenate([dot("kirgh,iwkh->kirgw", q_KIRGH, o.keys) for o in own], axis=-1)
    near = scaled(near, head_dim, q_IRNH.dtype)
    own_visible = jnp.concatenate([o.visible for o in own], axis=-1)
    own_exists = jnp.concatenate([jnp.atleast_2d(o.exists) for o in own], axis=-1)
    own_classes = jnp.concatenate([o.classes for o in own])
    far = far.reshape(*q_KIRGH.shape[:-1], num_slots // KEY_BLOCK, KEY_BLOCK)  # K I R G B 16
    if factor is not None:
        by_query = jnp.log(factor).reshape(num_variants, num_kv, groups, num_rows, -1).transpose(1, 0, 3, 2, 4)
        far = far + by_query[..., shared.block_class][..., None]
        near = near + by_query[..., own_classes]
    far_visible = shared.positions < num_shared
    far = jnp.where(far_visible, far.reshape(*q_KIRGH.shape[:-1], num_slots), -jnp.inf)
    near = jnp.where(own_visible[:, None], near, -jnp.inf)
    top = jnp.maximum(*(jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf) for x in (far, near)))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    far_weights, near_weights = jnp.exp(far - top), jnp.exp(near - top)
    total = jnp.sum(far_weights, axis=-1, keepdims=True) + jnp.sum(near_weights, axis=-1, keepdims=True)
    if compat == "published":
        far_exists = far_visible.astype(jnp.float32)
        count = jnp.sum(far_exists) + jnp.sum(own_exists, axis=-1)[:, None, None]
        far_weights = jnp.where(total > 0, far_weights, far_exists)
        near_weights = jnp.where(total > 0, near_weights, own_exists[:, None].astype(jnp.float32))
        total = jnp.where(total > 0, total, count)
    total = jnp.where(total > 0, total, 1.0)
    exact = shared.values.dtype == jnp.float32  # otherwise divided before the product, where the weights are rounded
    far_mixed, near_mixed = far_weights, near_weights
    if not exact:
        far_mixed, near_mixed = (rounded(w / total, shared.values.dtype) for w in (far_weights, near_weights))
    z = dot("kxs,ksh->kxh", far_mixed.reshape(*flat_KXH.shape[:2], num_slots), shared.values).reshape(q_KIRGH.shape)
    start = 0
    for o in own:
        stop = start + o.keys.shape[1]
        z = z + dot("kirgw,iwkh->kirgh", near_mixed[..., start:stop], o.values)
        start = stop
    z = rounded(z / total if exact else z, q_IRNH.dtype)
    z_IRNH = z.transpose(1, 2, 0, 3, 4).reshape(q_IRNH.shape)
    if not want_mass:
        return z_IRNH, None
    num_classes = 1 if factor is None else factor.shape[-1]
    blocks = jnp.sum(far_weights.reshape(*far.shape[:-1], -1, KEY_BLOCK), axis=-1)
    mass = _by_group(blocks, shared.block_class, num_classes) + _by_group(near_weights, own_classes, num_classes)
    mass = (mass / total).transpose(1, 0, 3, 2, 4)  # I K G R C
    return z_IRNH, mass.reshape(num_variants, num_heads, num_rows, num_classes)
