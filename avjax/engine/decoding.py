"""Greedy decoding of several variants in one compiled loop, each under its own edit, over one shared prompt.

Axes: I variant, R dirty prompt row, G generated slot, K kv heads, H head dim, D embed, L layer, V vocab.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from avjax.devices.mesh import by_variant, whole
from avjax.engine.clean_pass import SharedPrompt, class_factors, layer_keys, start_of_last_rows
from avjax.engine.overflow import NORMED, row_sizes
from avjax.engine.reference import OwnPrompt
from avjax.models.attention import Compat, OwnKeys, attend_rows
from avjax.models.decoder import Decoder
from avjax.models.intervention import VARIANTS, Intervention, edited_token, layer_of, split_last
from avjax.models.sites import Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """The loop's carry."""

    step: jax.Array  # int32: tokens chosen so far
    tokens: jax.Array  # int32 I G
    done: jax.Array  # bool I
    logits: jax.Array  # float32 I G V, or I 0 V when they are not kept
    largest: jax.Array  # float32 I: the largest size of what a norm was fed so far
    seen: jax.Array  # bool I V: tokens of the prompt and so far, for the repetition penalty
    keys: jax.Array  # L I G K H
    values: jax.Array


@functools.partial(jax.jit, static_argnames=("num_slots", "keep_logits", "compat"))
def decode(
    decoder: Decoder,
    prompt: SharedPrompt,
    own: OwnPrompt,
    variants: Intervention,
    prompt_tokens: Bool[Array, "V"],
    next_position: Int[Array, ""],
    limit: Int[Array, ""],
    stop_tokens: Int[Array, "stop"],
    repetition_penalty: Float[Array, ""],
    *,
    num_slots: int,
    keep_logits: bool,
    compat: Compat | None,
) -> tuple[Int[Array, "I G"], Int[Array, "I"], Float[Array, "I G V"] | None, Float[Array, "I"]]:
    """The most likely token at each step, until a stop token or `limit` tokens.

    Args:
      prompt: what all variants share; positions from the own rows on are stale there and hidden.
      variants: leaves lead with I. Edits at `resid_post` may be the last layer's alone.
      prompt_tokens: which tokens the prompt has.
      next_position: the rotary position of the first generated token.
      num_slots: G, at least `limit`.
      repetition_penalty: divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019);
        1 leaves them alone.

    Returns:
      Tokens, how many of them are real per variant (a stop token counts), the logits they were chosen from, and the
      largest size of what a norm was fed, the prompt's own rows included: see `avjax.engine.overflow`.
    """
    num_layers, num_variants, _, *per_key = own.keys.shape
    vocab = decoder.cfg.vocab_size
    state = _State(
        step=jnp.int32(0),
        tokens=jnp.zeros((num_variants, num_slots), jnp.int32),
        done=jnp.zeros(num_variants, bool),
        logits=jnp.zeros((num_variants, num_slots if keep_logits else 0, vocab), jnp.float32),
        largest=own.largest,
        seen=jnp.broadcast_to(prompt_tokens, (num_variants, vocab)),
        keys=jnp.zeros((num_layers, num_variants, num_slots, *per_key), own.keys.dtype),
        values=jnp.zeros((num_layers, num_variants, num_slots, *per_key), own.keys.dtype),
    )
    choose = functools.partial(_choose, stop_tokens=stop_tokens, penalty=repetition_penalty, keep_logits=keep_logits)

    def step(state: _State) -> _State:
        fed = state.tokens[:, state.step - 1]
        position = next_position + state.step - 1
        x_ID, cache, size = _token_pass(
            decoder, prompt, own, variants, fed, (state.keys, state.values), state.step - 1, position, compat
        )
        # What follows a variant's end is not its own.
        largest = jnp.maximum(state.largest, jnp.where(state.done, 0.0, size))
        state = dataclasses.replace(state, keys=cache[0], values=cache[1], largest=largest)
        return choose(state, decoder.logits(x_ID))

    state = choose(state, decoder.logits(own.last))
    state = jax.lax.while_loop(lambda s: (s.step < limit) & ~jnp.all(s.done), step, state)
    stops = jnp.isin(state.tokens, stop_tokens) & (jnp.arange(num_slots) < state.step)
    lengths = jnp.where(stops.any(axis=1), jnp.argmax(stops, axis=1) + 1, state.step)
    return whole((state.tokens, lengths, state.logits if keep_logits else None, state.largest))


def _token_pass(
    decoder: Decoder,
    prompt: SharedPrompt,
    own: OwnPrompt,
    variants: Intervention,
    token_I: Int[Array, "I"],
    decoded: tuple[Array, Array],
    slot: Int[Array, ""],
    position: Int[Array, ""],
    compat: Compat | None,
) -> tuple[Float[Array, "I D"], tuple[Array, Array], Float[Array, "I"]]:
    """One token of each variant through every layer; the decoded keys and values gain it at `slot`.

    Also the largest size of what a norm was fed.
    """
    group, length = prompt.inputs.generated_group, prompt.inputs.length
    x_I1D = by_variant(whole(decoder.embed(token_I)[:, None]))
    rotary = decoder.rotary(jnp.broadcast_to(position, (3, 1)), x_I1D.dtype)
    num_own, num_slots = own.keys.shape[2], decoded[0].shape[2]
    first = start_of_last_rows(length, num_own)
    rows = first + jnp.arange(num_own)
    row_exists, slot_exists = rows < length, jnp.arange(num_slots) <= slot
    row_classes = prompt.group_class[jax.lax.dynamic_slice_in_dim(prompt.inputs.groups, first, num_own)]
    slot_classes = jnp.full(num_slots, prompt.group_class[group])
    variants, last_edit = split_last(variants)

    def edit_all(site: Site, x_I1: Array, edit: Intervention) -> Array:
        if site not in edit.sites:
            return x_I1
        one = jax.vmap(lambda x, e: edited_token(site, x[0], e, group)[None], in_axes=(0, VARIANTS))
        return one(x_I1, edit)

    def layer(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x_I1D, keys, values, largest = carry
        block = jax.tree.map(lambda leaf: leaf[index], decoder.layers)
        edit = layer_of(variants, index)

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            new_keys = jax.lax.dynamic_update_slice(keys, k[None], (index, 0, slot, 0, 0))
            new_values = jax.lax.dynamic_update_slice(values, v[None], (index, 0, slot, 0, 0))
            owned = [
                _owned(own.keys[index], own.values[index], row_exists, row_classes),
                _owned(new_keys[index], new_values[index], slot_exists, slot_classes),
            ]
            factor = edit.attention_factor
            gates = None if factor is None else class_factors(prompt, factor, group[None])
            shared = layer_keys(prompt.shared, index)
            z, _ = attend_rows(q, shared, owned, num_shared=first, factor=gates, compat=compat)
            return z, (new_keys, new_values)

        def at(site: Site, x_I1: Array) -> Array:
            nonlocal largest
            x_I1 = edit_all(site, x_I1, edit)
            if site in NORMED:
                largest = jnp.maximum(largest, row_sizes(x_I1[:, 0]))
            return x_I1

        x_I1D, (keys, values) = block(x_I1D, rotary, attend, at)
        return x_I1D, keys, values, largest

    nothing = jnp.zeros(x_I1D.shape[0], jnp.float32)
    x_I1D, keys, values, largest = jax.lax.fori_loop(0, decoder.cfg.num_layers, layer, (x_I1D, *decoded, nothing))
    if last_edit is not None:
        x_I1D = edit_all(Site.RESID_POST, x_I1D, layer_of(last_edit, 0))
    x_ID = x_I1D[:, 0]
    return x_ID, (keys, values), jnp.maximum(largest, row_sizes(x_ID))


def _owned(keys: Array, values: Array, exists: Array, classes: Array) -> OwnKeys:
    return OwnKeys(keys=keys, values=values, visible=exists[None], exists=exists, classes=classes)


def _choose(
    state: _State, logits_IV: Float[Array, "I V"], *, stop_tokens: Array, penalty: Array, keep_logits: bool
) -> _State:
    """Takes each variant's most likely next token; finished variants repeat what no one reads."""
    penalized_IV = jnp.where(logits_IV > 0, logits_IV / penalty, logits_IV * penalty)
    token_I = jnp.argmax(jnp.where(state.seen, penalized_IV, logits_IV), axis=-1).astype(jnp.int32)
    rows = jnp.arange(len(token_I))
    logits = state.logits.at[:, state.step].set(logits_IV) if keep_logits else state.logits
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=state.tokens.at[:, state.step].set(token_I),
        done=state.done | jnp.isin(token_I, stop_tokens),
        logits=logits,
        seen=state.seen.at[rows, token_I].set(True),
    )
