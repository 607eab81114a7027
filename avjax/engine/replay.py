"""Replays: only what variants change is computed again, many variants at a time, against one clean pass.

An edit changes only positions from the first one it touches, in layers from its first on. A replay takes the clean
residual there and runs the rest, the region of effect, for all variants of a batch together.

Axes: I variant, R dirty row, L layer, K kv heads, H head dim, D embed, N heads, M token group, C key class, Q queries.
"""

import dataclasses
import functools

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a batch of variants computed."""

    residual: jax.Array  # I R D, after the last layer
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
    inputs, clean, num_layers = prompt.inputs, prompt.clean, decoder.cfg.num_layers
    first = first_of_last(inputs.length, num_rows)
    kept_first = first_of_last(inputs.length, clean.residual.shape[1])
    positions = jax.lax.dynamic_slice_in_dim(inputs.positions, first, num_rows, axis=1)
    groups = jax.lax.dynamic_slice_in_dim(inputs.groups, first, num_rows)
    rotary = decoder.rotary(positions, inputs.embeddings.dtype)
    variants, last_edit = split_last(variants)

    def edit_all(site: Site, x_IR: Array, edit: Intervention) -> Array:
        if site not in edit.sites:
            return x_IR
        return jax.vmap(lambda x, e: edited(site, x, e, groups, first), in_axes=(0, VARIANTS))(x_IR, edit)

    def layer(index: Array, carry: tuple) -> tuple:
        x_IRD, cache, mass = carry
        block = jax.tree.map(lambda leaf: leaf[index], decoder.layers)
        edit = layer_of(variants, index)

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
            over = _attend_narrow if num_rows <= NARROW else _attend_wide
            z, found = over(prompt, index, first, groups, q, k, v, edit.attention_factor, compat, query_sets)
            return z, (k, v, found)

        x_IRD, (k, v, found) = block(x_IRD, rotary, attend, lambda site, x: edit_all(site, x, edit))
        if keep_cache:
            cache = tuple(
                jax.lax.dynamic_update_index_in_dim(all_layers, new, index, 0)
                for all_layers, new in zip(cache, (k, v), strict=True)
            )
        if query_sets is not None:
            mass = jax.lax.dynamic_update_index_in_dim(mass, found, index, 1)
        return x_IRD, cache, mass

    x_RD = jax.lax.dynamic_slice_in_dim(clean.residual[start_layer], first - kept_first, num_rows)
    x_IRD = jnp.broadcast_to(x_RD, (num_variants, *x_RD.shape))
    cache = ()
    if keep_cache:
        cache = tuple(
            jnp.repeat(jax.lax.dynamic_slice_in_dim(x, first, num_rows, axis=1)[:, None], num_variants, axis=1)
            for x in (clean.keys, clean.values)
        )
    mass = None if query_sets is None else _clean_mass(prompt, first - kept_first, query_sets, num_variants)
    x_IRD, cache, mass = jax.lax.fori_loop(start_layer, num_layers, layer, (x_IRD, cache, mass))
    if last_edit is not None:
        x_IRD = edit_all(Site.RESID_POST, x_IRD, layer_of(last_edit, 0))
    keys, values = cache if keep_cache else (None, None)
    return Replayed(residual=x_IRD, keys=keys, values=values, mass=mass)


def class_factors(
    prompt: SharedPrompt, factor: Float[Array, "I N M M"], query_groups: Int[Array, "R"]
) -> Float[Array, "I N R C"]:
    """Each query's factor by key class."""
    return factor[:, :, query_groups][..., prompt.class_group]


def layer_keys(shared: SharedKeys, index: Array) -> SharedKeys:
    return dataclasses.replace(shared, keys=shared.keys[index], values=shared.values[index])


def _attend_narrow(
    prompt: SharedPrompt,
    index: Array,
    first: Array,
    groups: Array,
    q: Array,
    k: Array,
    v: Array,
    factor: Array | None,
    compat: Compat | None,
    query_sets: Array | None,
) -> tuple[Array, Array | None]:
    num_rows = q.shape[1]
    row = jnp.arange(num_rows)
    own = OwnKeys(
        keys=k,
        values=v,
        visible=row <= row[:, None],
        exists=first + row < prompt.inputs.length,
        classes=prompt.group_class[groups],
    )
    num_classes = prompt.class_group.shape[0]
    if factor is None and query_sets is not None:  # masses need classes
        gates = jnp.ones((q.shape[0], q.shape[2], num_rows, num_classes), jnp.float32)
    else:
        gates = None if factor is None else class_factors(prompt, factor, groups)
    shared = layer_keys(prompt.shared, index)
    z, mass = attend_rows(
        q, shared, [own], num_shared=first, factor=gates, compat=compat, want_mass=query_sets is not None
    )
    return z, None if mass is None or query_sets is None else dot("inrc,qr->inqc", mass, query_sets)


def _attend_wide(
    prompt: SharedPrompt,
    index: Array,
    first: Array,
    groups: Array,
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
            jax.lax.dynamic_update_slice_in_dim(clean[index], rows, first, axis=0)
            for clean, rows in ((prompt.clean.keys, k), (prompt.clean.values, v))
        )
        z, weights = attend_prompt(
            q,
            keys,
            values,
            first_row=first,
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


def _clean_mass(prompt: SharedPrompt, offset: Array, query_sets: Array, num_variants: int) -> Array:
    """What layers that are never replayed attend to: the clean masses, for every variant."""
    assert prompt.clean.mass is not None
    rows = jax.lax.dynamic_slice_in_dim(prompt.clean.mass, offset, query_sets.shape[1], axis=2)
    mass = _by_class(prompt, dot("lnrm,qr->lnqm", rows, query_sets))
    return jnp.broadcast_to(mass, (num_variants, *mass.shape))
