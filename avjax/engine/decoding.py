"""Greedy decoding of several variants in one compiled loop, each under its own edit.

Axes: I variant, S prompt slot, G generated slot, K kv heads, H head dim, D embed, L layer, V vocab.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from avjax.engine.reference import KeysValues, prefill
from avjax.interventions import Intervention
from avjax.models.attention import Compat, Edges, Segment
from avjax.models.decoder import Block, Decoder
from avjax.prompt import Inputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """The loop's carry."""

    step: jax.Array  # int32: tokens chosen so far
    tokens: jax.Array  # int32 I G
    done: jax.Array  # bool I
    logits: jax.Array  # float32 I G V, or I 0 V when they are not kept
    seen: jax.Array  # bool I V: tokens of the prompt and so far, for the repetition penalty
    keys: jax.Array  # I L G K H
    values: jax.Array


@functools.partial(jax.jit, static_argnames=("num_slots", "keep_logits", "compat"))
def decode(
    decoder: Decoder,
    inputs: Inputs,
    interventions: Intervention,
    prompt_tokens: Bool[Array, "V"],
    next_position: Int[Array, ""],
    limit: Int[Array, ""],
    stop_tokens: Int[Array, "stop"],
    repetition_penalty: Float[Array, ""],
    *,
    num_slots: int,
    keep_logits: bool,
    compat: Compat | None,
) -> tuple[Int[Array, "I G"], Int[Array, "I"], Float[Array, "I G V"] | None]:
    """The most likely token at each step, until a stop token or `limit` tokens.

    Args:
      interventions: leaves lead with I.
      prompt_tokens: which tokens the prompt has.
      next_position: the rotary position of the first generated token.
      num_slots: G, at least `limit`.
      repetition_penalty: divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019);
        1 leaves them alone.

    Returns:
      Tokens, how many of them are real per variant (a stop token counts), and the logits they were chosen from.
    """
    last_ID, cache = jax.lax.map(lambda iv: _prompt_pass(decoder, inputs, iv, compat), interventions)
    num_variants, vocab = last_ID.shape[0], decoder.cfg.vocab_size
    cache_shape = (num_variants, decoder.cfg.num_layers, num_slots, *cache[0].shape[3:])
    state = _State(
        step=jnp.int32(0),
        tokens=jnp.zeros((num_variants, num_slots), jnp.int32),
        done=jnp.zeros(num_variants, bool),
        logits=jnp.zeros((num_variants, num_slots if keep_logits else 0, vocab), jnp.float32),
        seen=jnp.broadcast_to(prompt_tokens, (num_variants, vocab)),
        keys=jnp.zeros(cache_shape, cache[0].dtype),
        values=jnp.zeros(cache_shape, cache[0].dtype),
    )
    choose = functools.partial(_choose, stop_tokens=stop_tokens, penalty=repetition_penalty, keep_logits=keep_logits)
    advance = jax.vmap(functools.partial(_token_pass, decoder, inputs, compat=compat), in_axes=(0, 0, 0, 0, None, None))

    def step(state: _State) -> _State:
        fed = state.tokens[:, state.step - 1]
        x_ID, (keys, values) = advance(
            fed, interventions, cache, (state.keys, state.values), state.step - 1, next_position + state.step - 1
        )
        return choose(dataclasses.replace(state, keys=keys, values=values), decoder.logits(x_ID))

    state = choose(state, decoder.logits(last_ID))
    state = jax.lax.while_loop(lambda s: (s.step < limit) & ~jnp.all(s.done), step, state)
    stops = jnp.isin(state.tokens, stop_tokens) & (jnp.arange(num_slots) < state.step)
    lengths = jnp.where(stops.any(axis=1), jnp.argmax(stops, axis=1) + 1, state.step)
    return state.tokens, lengths, state.logits if keep_logits else None


def _prompt_pass(
    decoder: Decoder, inputs: Inputs, intervention: Intervention, compat: Compat | None
) -> tuple[Float[Array, "D"], KeysValues]:
    x_TD, keys_values, _ = prefill(decoder, inputs, intervention, compat=compat)
    return x_TD[inputs.length - 1], keys_values


def _token_pass(
    decoder: Decoder,
    inputs: Inputs,
    token: Int[Array, ""],
    intervention: Intervention,
    cache: KeysValues,
    decoded: KeysValues,
    slot: Int[Array, ""],
    position: Int[Array, ""],
    *,
    compat: Compat | None,
) -> tuple[Float[Array, "D"], KeysValues]:
    """One token through every layer: its final residual, and the decoded keys and values with its own at `slot`."""
    x_D = decoder.embed(token)
    rotary = decoder.rotary(jnp.broadcast_to(position, (3,)), x_D.dtype)
    prompt_visible = jnp.arange(inputs.groups.shape[0]) < inputs.length
    decoded_visible = jnp.arange(decoded[0].shape[1]) <= slot
    decoded_groups = jnp.full(decoded[0].shape[1], inputs.generated_group)

    def step(x: Array, layer: tuple[Block, Array, KeysValues, KeysValues]) -> tuple[Array, KeysValues]:
        block, factor, (keys, values), (new_keys, new_values) = layer
        prompt = Segment(keys=keys, values=values, visible=prompt_visible, groups=inputs.groups)
        after = Segment(keys=new_keys, values=new_values, visible=decoded_visible, groups=decoded_groups)
        edges = Edges(factor=factor, compat=compat)
        return block.token(x, rotary, prompt, after, slot, inputs.generated_group, edges)

    return jax.lax.scan(step, x_D, (decoder.layers, intervention.attention_factor, cache, decoded))


def _choose(
    state: _State, logits_IV: Float[Array, "I V"], *, stop_tokens: Array, penalty: Array, keep_logits: bool
) -> _State:
    """Takes each variant's most likely next token; finished variants repeat what no one reads."""
    penalized_IV = jnp.where(logits_IV > 0, logits_IV / penalty, logits_IV * penalty)
    token_I = jnp.argmax(jnp.where(state.seen, penalized_IV, logits_IV), axis=-1).astype(jnp.int32)
    rows = jnp.arange(len(token_I))
    kept = state.logits.at[:, state.step].set(logits_IV) if keep_logits else state.logits
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=state.tokens.at[:, state.step].set(token_I),
        done=state.done | jnp.isin(token_I, stop_tokens),
        logits=kept,
        seen=state.seen.at[rows, token_I].set(True),
    )
