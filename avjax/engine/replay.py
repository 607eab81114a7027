"""Replays: only what variants change is computed again, many variants at a time, against one clean pass.

An edit changes only positions from the first one it touches, in layers from its first on. A replay takes the clean
residual there and runs the rest, the region of effect, for all variants of a batch together.

Axes: I variant, R dirty row, L layer, K kv heads, H head dim, D embed, N heads, M token group, C key class, Q queries.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.engine.shared import CleanPass, first_of_last
from avjax.models.attention import Compat, OwnKeys, SharedKeys, attend_prompt, attend_rows
from avjax.models.decoder import Decoder
from avjax.models.intervention import VARIANTS, Intervention, edited, layer_of, split_last
from avjax.models.layers import dot
from avjax.models.sites import Site
from avjax.prompt import Inputs

NARROW = 32  # rows of a variant up to which all variants read the prompt in one product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedPrompt:
    """One prompt's clean pass and key layout, ready for replays."""

    inputs: Inputs
    clean: CleanPass
    shared: SharedKeys
    group_class: jax.Array  # int32 M
    class_group: jax.Array  # int32 C
    first_read: jax.Array  # int32: the first position whose final residual is wanted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a batch of variants computed."""

    residual: jax.Array  # I P D: after the last layer, at the read-out positions
    keys: jax.Array | None  # L I R K H of the dirty rows
    values: jax.Array | None
    mass: jax.Array | None  # float32 I L N Q C: mean attention of each query set, summed over each key class


@functools.partial(jax.jit, static_argnames=("num_variants", "num_rows", "keep_cache", "compat"))
def replay(
    decoder: Decoder,
    prompt: SharedPrompt,
    variants: Intervention,
    start_layer: Int[Array, ""],
    query_sets: Float[Array, "Q R"] | None,
    *,
    num_variants: int,
    num_rows: int,
    keep_cache: bool = False,
    compat: Compat | None = None,
) -> Replayed:
    """The last `num_rows` positions of a prompt under each variant, from one layer on.

    Args:
      variants: leaves lead with I; sources are shared. Edits at `resid_post` are the last layer's alone.
      start_layer: no variant changes anything before it. One number per batch: it bounds the loop, so layers before it
        cost nothing; under vmap they would.
      query_sets: the weight of each row in each mean of attention masses.
      num_variants: I.
      num_rows: R; no variant changes an earlier position.
      keep_cache: return the rows' keys and values, for decoding.
    """
    inputs, clean, last = prompt.inputs, prompt.clean, decoder.cfg.num_layers - 1
    first, num_reads = first_of_last(inputs.length, num_rows), clean.final.shape[0]
    first_read = prompt.first_read
    all_rows = Rows(prompt, first, num_rows)
    read_rows = Rows(prompt, first_read, num_reads)
    positions = jax.lax.dynamic_slice_in_dim(inputs.positions, first, num_rows, axis=1)
    rotary = decoder.rotary(positions, inputs.embeddings.dtype)
    variants, last_edit = split_last(variants)
    prune = query_sets is None and num_reads < num_rows  # in the last layer, only what is read out is computed

    def reads(x: Array, axis: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, first_read - first, num_reads, axis=axis)

    def layer(index: Array | int, carry: tuple, keep: Callable | None = None) -> tuple:
        x, cache, mass = carry
        block = jax.tree.map(lambda leaf: leaf[index], decoder.layers)
        edit = layer_of(variants, index)
        later = all_rows if keep is None else read_rows

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
            over = _attend_narrow if num_rows <= NARROW else _attend_wide
            z, found = over(prompt, index, all_rows, later, q, k, v, edit.attention_factor, compat, query_sets)
            return z, (k, v, found)

        def at(site: Site, x: Array) -> Array:
            return (all_rows if site in (Site.RESID_PRE, Site.VALUE) else later).edited(site, x, edit)

        x, (k, v, found) = block(x, rotary, attend, at, keep)
        if keep_cache:
            cache = tuple(
                jax.lax.dynamic_update_index_in_dim(all_layers, new, index, 0)
                for all_layers, new in zip(cache, (k, v), strict=True)
            )
        if query_sets is not None:
            mass = jax.lax.dynamic_update_index_in_dim(mass, found, index, 1)
        return x, cache, mass

    kept_first = first_of_last(inputs.length, clean.residual.shape[1])
    x_RD = jax.lax.dynamic_slice_in_dim(clean.residual[jnp.minimum(start_layer, last)], first - kept_first, num_rows)
    cache = ()
    if keep_cache:
        cache = tuple(
            jnp.repeat(jax.lax.dynamic_slice_in_dim(x, first, num_rows, axis=1)[:, None], num_variants, axis=1)
            for x in (clean.keys, clean.values)
        )
    mass = None
    if query_sets is not None:
        mass = clean_mass(prompt, query_sets, first - kept_first)
        mass = jnp.broadcast_to(mass, (num_variants, *mass.shape))
    carry = (jnp.broadcast_to(x_RD, (num_variants, *x_RD.shape)), cache, mass)
    carry = jax.lax.fori_loop(start_layer, last, layer, carry)

    def last_layer(carry: tuple) -> tuple:
        if prune:
            return layer(last, carry, reads)
        x, cache, mass = layer(last, carry)
        return reads(x, -2), cache, mass

    def untouched(carry: tuple) -> tuple:
        return jnp.broadcast_to(clean.final, (num_variants, *clean.final.shape)), *carry[1:]

    x_IPD, cache, mass = jax.lax.cond(start_layer <= last, last_layer, untouched, carry)
    if last_edit is not None:
        x_IPD = read_rows.edited(Site.RESID_POST, x_IPD, layer_of(last_edit, 0))
    keys, values = cache if keep_cache else (None, None)
    return Replayed(residual=x_IPD, keys=keys, values=values, mass=mass)


class Rows:
    """Consecutive positions of a prompt, as variants compute them."""

    def __init__(self, prompt: SharedPrompt, first: Array, count: int):
        self.first, self.count = first, count
        self.groups = jax.lax.dynamic_slice_in_dim(prompt.inputs.groups, first, count)
        self.positions = first + jnp.arange(count)

    def edited(self, site: Site, x_IR: Array, edit: Intervention) -> Array:
        """Every variant's rows after its edit of one layer."""
        if site not in edit.sites:
            return x_IR
        one = jax.vmap(lambda x, e: edited(site, x, e, self.groups, self.first), in_axes=(0, VARIANTS))
        return one(x_IR, edit)


def class_factors(
    prompt: SharedPrompt, factor: Float[Array, "I N M M"], query_groups: Int[Array, "R"]
) -> Float[Array, "I N R C"]:
    """Each query's factor by key class."""
    return factor[:, :, query_groups][..., prompt.class_group]


def layer_keys(shared: SharedKeys, index: Array | int) -> SharedKeys:
    return dataclasses.replace(shared, keys=shared.keys[index], values=shared.values[index])


def _attend_narrow(
    prompt: SharedPrompt,
    index: Array | int,
    rows: Rows,
    queries: Rows,
    q: Array,
    k: Array,
    v: Array,
    factor: Array | None,
    compat: Compat | None,
    query_sets: Array | None,
) -> tuple[Array, Array | None]:
    own = OwnKeys(
        keys=k,
        values=v,
        visible=rows.positions <= queries.positions[:, None],
        exists=rows.positions < prompt.inputs.length,
        classes=prompt.group_class[rows.groups],
    )
    num_classes = prompt.class_group.shape[0]
    if factor is None and query_sets is not None:  # masses need classes
        gates = jnp.ones((q.shape[0], q.shape[2], queries.count, num_classes), jnp.float32)
    else:
        gates = None if factor is None else class_factors(prompt, factor, queries.groups)
    z, mass = attend_rows(
        q,
        layer_keys(prompt.shared, index),
        [own],
        num_shared=rows.first,
        factor=gates,
        compat=compat,
        want_mass=query_sets is not None,
    )
    return z, None if mass is None or query_sets is None else dot("inrc,qr->inqc", mass, query_sets)


def _attend_wide(
    prompt: SharedPrompt,
    index: Array | int,
    rows: Rows,
    queries: Rows,
    q: Array,
    k: Array,
    v: Array,
    factor: Array | None,
    compat: Compat | None,
    query_sets: Array | None,
) -> tuple[Array, Array | None]:
    inputs = prompt.inputs

    def one(variant: tuple[Array, Array, Array, Array | None]) -> tuple[Array, Array | None]:
        q, k, v, factor = variant
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(clean[index], new, rows.first, axis=0)
            for clean, new in ((prompt.clean.keys, k), (prompt.clean.values, v))
        )
        z, weights = attend_prompt(
            q,
            keys,
            values,
            first_row=queries.first,
            length=inputs.length,
            groups=inputs.groups,
            factor=factor,
            compat=compat,
            want=() if query_sets is None else ("mass",),
            num_groups=inputs.num_groups,
        )
        return z, None if query_sets is None else _by_class(prompt, dot("nrm,qr->nqm", weights["mass"], query_sets))

    if q.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], (q, k, v, factor))))
    return jax.lax.platform_dependent(
        (q, k, v, factor), cpu=lambda xs: jax.lax.map(one, xs), default=lambda xs: jax.vmap(one)(xs)
    )


def _by_class(prompt: SharedPrompt, mass: Float[Array, "... M"]) -> Float[Array, "... C"]:
    classes = jax.nn.one_hot(prompt.group_class, prompt.class_group.shape[0], dtype=jnp.float32)
    return dot("...m,mc->...c", mass, classes)


def clean_mass(prompt: SharedPrompt, query_sets: Float[Array, "Q R"], offset: Array | int = 0) -> Array:
    """The clean run's masses, float32 [L, N, Q, C]; also those of layers that no variant changes.

    Args:
      offset: where the rows of the query sets begin among those that the clean pass kept.
    """
    assert prompt.clean.mass is not None
    rows = jax.lax.dynamic_slice_in_dim(prompt.clean.mass, offset, query_sets.shape[1], axis=2)
    return _by_class(prompt, dot("lnrm,qr->lnqm", rows, query_sets))
