"""What all variants of a prompt share: one clean pass, and its keys and values laid out for many queries.

Axes: L layer, T position, R row (position at the end of the prompt), K kv heads, H head dim, D embed, N heads, M token
group, C key class.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from avjax.devices.mesh import whole
from avjax.engine.overflow import NORMED, row_sizes
from avjax.models.attention import KEY_BLOCK, SharedKeys, attend_prompt
from avjax.models.decoder import Decoder
from avjax.models.layers import dot
from avjax.models.sites import Site
from avjax.prompts.prompt import Inputs
from avjax.prompts.selectors import TokenGroups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanPass:
    """The clean run of one prompt, as far as replays need it."""

    keys: jax.Array  # L T K H
    values: jax.Array  # L T K H
    residual: jax.Array  # L R D: before each layer, at the last R positions
    final: jax.Array  # P D: after the last layer, at the read-out positions
    mass: jax.Array | None  # float32 L N R M: attention of the last R positions, summed over each token group
    largest: jax.Array  # float32: the largest size of what a norm was fed, as far as the read-outs depend on it


def start_of_last_rows(length: jax.Array | int, num_rows: int) -> jax.Array:
    """Where the last `num_rows` positions of a prompt begin; 0 when it has fewer."""
    return jnp.maximum(length - num_rows, 0)


@functools.partial(jax.jit, static_argnames=("num_rows", "num_reads", "want_mass"))
def clean_pass(
    decoder: Decoder, inputs: Inputs, first_read: jax.Array, *, num_rows: int, num_reads: int, want_mass: bool = False
) -> CleanPass:
    """One pass over a prompt.

    Args:
      first_read, num_reads: where the positions begin whose final residual is wanted, and how many they are; in the
        last layer the others give their keys and values alone.
      num_rows: how many positions, the last ones, are kept of the residual before each layer.
      want_mass: keep the attention masses of those positions, which takes the whole last layer.
    """
    rotary = decoder.rotary(inputs.positions, inputs.embeddings.dtype)
    first = start_of_last_rows(inputs.length, num_rows)
    exists = jnp.arange(inputs.embeddings.shape[0]) < inputs.length

    def rows(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, first, num_rows)

    def reads(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, first_read, num_reads, axis=axis)

    def layer(x: jax.Array, index: jax.Array | int, last: bool = False) -> tuple[jax.Array, tuple]:
        block = jax.tree.map(lambda leaf: leaf[index], decoder.layers)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
            z, weights = attend_prompt(
                q,
                k,
                v,
                first_row=first_read if last else 0,
                length=inputs.length,
                groups=inputs.groups,
                factor=None,
                want=("mass",) if want_mass else (),
                num_groups=inputs.num_groups,
                branches=inputs.branches,
            )
            mass = jax.vmap(rows)(weights["mass"]) if want_mass else None
            return z, (k, v, mass)

        fed: dict[Site, jax.Array] = {}

        def at(site: Site, x: jax.Array) -> jax.Array:
            if site in NORMED:
                fed[site] = row_sizes(x)
            return x

        y, kept = block(x, rotary, attend, at, reads if last else None)
        return y, (fed[Site.RESID_PRE], fed[Site.RESID_MID], rows(x), *kept)

    def largest(pre_LT: jax.Array, inner_LT: jax.Array, mid_P: jax.Array, final_PD: jax.Array) -> jax.Array:
        every = jnp.where(exists, jnp.maximum(jnp.max(pre_LT, axis=0), jnp.max(inner_LT, axis=0, initial=0.0)), 0.0)
        return whole(jnp.maximum(jnp.max(every), jnp.max(jnp.maximum(mid_P, row_sizes(final_PD)))))

    if want_mass:
        x, (pre, mid, residual, keys, values, mass) = jax.lax.scan(
            layer, inputs.embeddings, jnp.arange(decoder.cfg.num_layers)
        )
        final = whole(reads(x, 0))
        size = largest(pre, mid[:-1], reads(mid[-1], 0), final)
        return CleanPass(keys=keys, values=values, residual=residual, final=final, mass=whole(mass), largest=size)
    # Layers are picked by index: a slice of all but the last would copy the parameters.
    x, kept = jax.lax.scan(layer, inputs.embeddings, jnp.arange(decoder.cfg.num_layers - 1))
    final, (last_pre, last_mid, *kept_last) = layer(x, decoder.cfg.num_layers - 1, last=True)
    size = largest(jnp.concatenate([kept[0], last_pre[None]]), kept[1], last_mid, final)
    residual, keys, values = (jnp.concatenate([a, b[None]]) for a, b in zip(kept[2:5], kept_last[:3], strict=True))
    return CleanPass(keys=keys, values=values, residual=residual, final=whole(final), mass=None, largest=size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """How prompt positions are sorted into blocks of one key class.

    Attributes:
      slots: int32 [S], the position in each slot; `size` for an empty one.
      block_class: int32 [S / KEY_BLOCK].
      group_class: int32 [M], the class of each token group.
      class_group: int32 [C], a group of each class.
    """

    slots: np.ndarray
    block_class: np.ndarray
    group_class: np.ndarray
    class_group: np.ndarray


def key_layout(groups: TokenGroups, keys: list[np.ndarray], size: int) -> KeyLayout:
    """Sorts positions by which of the key selectors hold them.

    Args:
      keys: bool [M], the groups of each selector that edges or masses speak of as keys.
      size: the padded prompt length, a multiple of `KEY_BLOCK`.
    """
    signature = np.stack(keys) if keys else np.zeros((0, groups.num_groups), bool)
    _, class_group, group_class = np.unique(signature, axis=1, return_index=True, return_inverse=True)
    group_class = group_class.reshape(-1).astype(np.int32)
    num_classes = 1 << (len(class_group) - 1).bit_length()
    class_group = np.resize(class_group, num_classes).astype(np.int32)
    capacity = size + (KEY_BLOCK * num_classes if num_classes > 1 else 0)
    slots = np.full(capacity, size, np.int32)
    block_class = np.zeros(capacity // KEY_BLOCK, np.int32)
    start = 0
    for index in range(num_classes):
        members = np.flatnonzero(group_class[groups.prompt] == index)
        stop = start + -(-len(members) // KEY_BLOCK) * KEY_BLOCK
        slots[start : start + len(members)] = members
        block_class[start // KEY_BLOCK : stop // KEY_BLOCK] = index
        start = stop
    return KeyLayout(slots=slots, block_class=block_class, group_class=group_class, class_group=class_group)


@jax.jit
def shared_keys(clean: CleanPass, slots: jax.Array, block_class: jax.Array) -> SharedKeys:
    """The clean keys and values in a key layout, [L, K, S, H]."""
    index = jnp.minimum(slots, clean.keys.shape[1] - 1)
    keys, values = (jnp.swapaxes(x[:, index], 1, 2) for x in (clean.keys, clean.values))
    return SharedKeys(keys=keys, values=values, positions=slots, block_class=block_class)


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


def class_factors(
    prompt: SharedPrompt, factor: Float[Array, "I N M M"], query_groups: Int[Array, "R"]
) -> Float[Array, "I N R C"]:
    """Each query's factor by key class."""
    return factor[:, :, query_groups][..., prompt.class_group]


def layer_keys(shared: SharedKeys, index: Array | int) -> SharedKeys:
    return dataclasses.replace(shared, keys=shared.keys[index], values=shared.values[index])


def by_class(prompt: SharedPrompt, mass: Float[Array, "... M"]) -> Float[Array, "... C"]:
    """Masses of token groups, summed over each key class."""
    classes = jax.nn.one_hot(prompt.group_class, prompt.class_group.shape[0], dtype=jnp.float32)
    return dot("...m,mc->...c", mass, classes)


def clean_mass(prompt: SharedPrompt, query_sets: Float[Array, "Q R"], offset: Array | int = 0) -> Array:
    """The clean run's masses, float32 [L, N, Q, C]; also those of layers that no variant changes.

    Args:
      offset: where the rows of the query sets begin among those that the clean pass kept.
    """
    assert prompt.clean.mass is not None
    rows = jax.lax.dynamic_slice_in_dim(prompt.clean.mass, offset, query_sets.shape[1], axis=2)
    return by_class(prompt, dot("lnrm,qr->lnqm", rows, query_sets))
