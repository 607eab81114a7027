"""Replays: only what variants change is computed again, many variants at a time, against one clean pass.

An edit changes only positions from the first one it touches, in layers from its first on. A replay takes the clean
residual there and runs the rest, the region of effect, for all variants of a batch together.

Axes: I variant, R dirty row, P read-out, L layer, K kv heads, H head dim, D embed, N heads, C key class, Q query set.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.devices.mesh import by_variant, whole
from avjax.engine.clean_pass import SharedPrompt, clean_mass, start_of_last_rows
from avjax.engine.overflow import NORMED, row_sizes
from avjax.engine.region import RegionAttention, Rows
from avjax.models.attention import Compat
from avjax.models.decoder import Decoder
from avjax.models.intervention import Intervention, layer_of, split_last
from avjax.models.sites import BEFORE_ATTENTION, Site

# Rows [I, R, D]; keys and values [L, I, R, K, H]; masses; the largest size [I] of what a norm was fed.
Carry = tuple[Array, tuple[Array, ...], Array | None, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a batch of variants computed."""

    residual: jax.Array  # I P D: after the last layer, at the read-out positions
    keys: jax.Array | None  # L I R K H of the dirty rows
    values: jax.Array | None
    mass: jax.Array | None  # float32 I L N Q C: mean attention of each query set, summed over each key class
    largest: jax.Array  # float32 I: the largest size of what a norm was fed, as far as the read-outs depend on it


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
    clean, last = prompt.clean, decoder.cfg.num_layers - 1
    first, num_reads = start_of_last_rows(prompt.inputs.length, num_rows), clean.final.shape[0]
    all_rows, read_rows = Rows(prompt, first, num_rows), Rows(prompt, prompt.first_read, num_reads)
    region = RegionAttention(prompt=prompt, rows=all_rows, query_sets=query_sets, compat=compat)
    positions = jax.lax.dynamic_slice_in_dim(prompt.inputs.positions, first, num_rows, axis=1)
    rotary = decoder.rotary(positions, prompt.inputs.embeddings.dtype)
    variants, last_edit = split_last(variants)

    def reads(x: Array, axis: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, prompt.first_read - first, num_reads, axis=axis)

    exists = all_rows.positions < prompt.inputs.length

    def layer(index: Array | int, carry: Carry, keep: Callable | None = None, read: Array | None = None) -> Carry:
        """`read`: bool [R], the rows whose residual is read out after this layer; None where all of them flow on."""
        x, cache, mass, largest = carry
        block = jax.tree.map(lambda leaf: leaf[index], decoder.layers)
        edit = layer_of(variants, index)
        later = all_rows if keep is None else read_rows

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
            z, mass = region.attend(later, q, k, v, edit.attention_factor, index)
            return z, (k, v, mass)

        def at(site: Site, x: Array) -> Array:
            nonlocal largest
            x = (all_rows if site in BEFORE_ATTENTION else later).edited(site, x, edit)
            if site in NORMED:
                sizes = row_sizes(x)
                if site is Site.RESID_PRE or keep is None:
                    counted = exists if site is Site.RESID_PRE or read is None else read
                    sizes = jnp.where(counted, sizes, 0.0)
                largest = jnp.maximum(largest, jnp.max(sizes, axis=-1))
            return x

        x, (*own, attended) = block(x, rotary, attend, at, keep)
        cache = tuple(
            jax.lax.dynamic_update_index_in_dim(all_layers, new, index, 0)
            for all_layers, new in zip(cache, own, strict=False)  # nothing is kept where there is no cache
        )
        if mass is not None:
            mass = jax.lax.dynamic_update_index_in_dim(mass, attended, index, 1)
        return x, cache, mass, largest

    def last_layer(carry: Carry) -> Carry:
        if query_sets is None and num_reads < num_rows:
            return layer(last, carry, reads)  # only what is read out
        later = all_rows.positions - prompt.first_read
        x, cache, mass, largest = layer(last, carry, read=(later >= 0) & (later < num_reads))
        return reads(x, -2), cache, mass, largest

    def untouched(carry: Carry) -> Carry:
        return jnp.broadcast_to(clean.final, (num_variants, *clean.final.shape)), *carry[1:]

    carry = by_variant(_clean_carry(prompt, start_layer, first, num_rows, num_variants, keep_cache, query_sets))
    carry = jax.lax.fori_loop(start_layer, last, layer, carry)
    x_IPD, cache, mass, largest = jax.lax.cond(start_layer <= last, last_layer, untouched, carry)
    if last_edit is not None:
        x_IPD = read_rows.edited(Site.RESID_POST, x_IPD, layer_of(last_edit, 0))
    largest = jnp.maximum(largest, jnp.max(row_sizes(x_IPD), axis=-1))
    keys, values = cache if keep_cache else (None, None)
    return Replayed(residual=whole(x_IPD), keys=keys, values=values, mass=whole(mass), largest=whole(largest))


def _clean_carry(
    prompt: SharedPrompt,
    start_layer: Array,
    first: Array,
    num_rows: int,
    num_variants: int,
    keep_cache: bool,
    query_sets: Array | None,
) -> Carry:
    """The clean run's rows before the first layer, for every variant; and its caches and masses in every layer."""
    clean = prompt.clean
    kept_first = start_of_last_rows(prompt.inputs.length, clean.residual.shape[1])
    residual = clean.residual[jnp.minimum(start_layer, clean.residual.shape[0] - 1)]
    x_RD = jax.lax.dynamic_slice_in_dim(residual, first - kept_first, num_rows)
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
    return jnp.broadcast_to(x_RD, (num_variants, *x_RD.shape)), cache, mass, jnp.zeros(num_variants, jnp.float32)
