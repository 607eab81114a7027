"""The reference forward pass: a whole prompt under one intervention. It defines what every edit means.

Axes: T position, D embed, N heads, K kv heads, H head dim, L layer, V vocab, P selected positions, M token group.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.devices.mesh import whole
from avjax.engine.overflow import largest_fed, row_sizes
from avjax.models.attention import Compat, Weights, attend_prompt
from avjax.models.decoder import Block, Decoder
from avjax.models.intervention import Intervention, edited
from avjax.models.layers import dot
from avjax.models.sites import Site
from avjax.prompts.prompt import Inputs

KeysValues = tuple[Array, Array]  # L T K H each
Reduce = Callable[[dict[Site, Array], Any], Any]
_WEIGHTS: dict[Site, Weights] = {
    Site.PATTERN: "pattern",
    Site.MASS: "mass",
    Site.VALUE_MASS: "value_mass",
    Site.RECEIVED: "received",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPrompt:
    """The prompt rows that each variant computed itself; they end where the prompt ends."""

    keys: Array  # L I R K H
    values: Array
    last: Array  # I D, the final residual of the last prompt position
    largest: Array  # float32 I, the largest size of what a norm was fed


def prefill(
    decoder: Decoder,
    inputs: Inputs,
    intervention: Intervention | None,
    *,
    capture: Sequence[Site] = (),
    compat: Compat | None = None,
) -> tuple[Float[Array, "T D"], KeysValues, dict[Site, Array]]:
    """The final residual at every position, each layer's keys and values, and the captured sites.

    Pure: `jit` with `static_argnames=("capture", "compat")`; `vmap` over `intervention` alone to sweep.

    Args:
      intervention: the edit over `inputs.groups`; None, like `Intervention.none`, is the checkpoint itself.
      compat: `"published"` gives a query whose every visible key is blocked the mean value of all keys of the prompt,
        as the published hooks do; the default reads zero.

    Returns:
      Captures lead with L, then positions; `pattern` is [L, N, T, T], `mass` and `value_mass` [L, N, T, M], `received`
      [L, N, M, T], `peak` [L, T, 3], and `embed` [T, D], which is what layer 0 is fed, after edits.
    """
    x, keys_values, captures = _layers(
        decoder, inputs, intervention, capture, compat, lambda captures, _: captures, None
    )
    if Site.EMBED in capture:
        captures[Site.EMBED] = captures[Site.RESID_PRE][0]
    return x, keys_values, {site: captures[site] for site in capture}


def reduced_prefill(
    decoder: Decoder,
    inputs: Inputs,
    intervention: Intervention | None,
    *,
    capture: Sequence[Site],
    reduce: Reduce,
    per_layer: Any = None,
    compat: Compat | None = None,
) -> tuple[Float[Array, "T D"], Any]:
    """The final residual, and what `reduce` makes of each layer's sites while the layer is at hand.

    For what is too large to keep of every layer and position: no site leaves its layer whole. `prefill` otherwise.

    Args:
      capture: sites [T, ...] that `reduce` reads; `embed` has no layer, take `resid_pre`.
      reduce: called in each layer with its sites and its part of `per_layer`.
      per_layer: a pytree whose leaves lead with L.

    Returns:
      The final residual, and the results of `reduce` stacked on L.
    """
    x, _, reduced = _layers(decoder, inputs, intervention, capture, compat, reduce, per_layer)
    return x, reduced


def _layers(
    decoder: Decoder,
    inputs: Inputs,
    intervention: Intervention | None,
    capture: Sequence[Site],
    compat: Compat | None,
    reduce: Reduce,
    per_layer: Any,
) -> tuple[Array, KeysValues, Any]:
    rotary = decoder.rotary(inputs.positions, inputs.embeddings.dtype)
    _check_groups(intervention, inputs)
    want: tuple[Weights, ...] = tuple(_WEIGHTS[site] for site in capture if site in _WEIGHTS)
    in_layer = [Site.RESID_PRE if site is Site.EMBED else site for site in capture]

    def step(x: Array, layer: tuple[Block, Intervention | None, Any]) -> tuple[Array, tuple[KeysValues, Any]]:
        block, edit, own = layer
        captures: dict[Site, Array] = {}

        def at(site: Site, x: Array) -> Array:
            captures[site] = edited(site, x, edit, inputs.groups)
            return captures[site]

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, KeysValues]:
            z, weights = attend_prompt(
                q,
                k,
                v,
                length=inputs.length,
                groups=inputs.groups,
                factor=None if edit is None else edit.attention_factor,
                compat=compat,
                want=want,
                num_groups=inputs.num_groups,
                branches=inputs.branches,
            )
            captures.update({site: weights[name] for site, name in _WEIGHTS.items() if name in weights})
            return z, (k, v)

        x, keys_values = block(x, rotary, attend, at)
        if Site.PEAK in capture:
            fed = (captures[site] for site in (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST))
            captures[Site.PEAK] = jnp.stack([row_sizes(y) for y in fed], axis=-1)
        return x, (keys_values, reduce({site: captures[site] for site in in_layer}, own))

    x, (keys_values, reduced) = jax.lax.scan(step, inputs.embeddings, (decoder.layers, intervention, per_layer))
    return x, keys_values, reduced


def _check_groups(intervention: Intervention | None, inputs: Inputs) -> None:
    num_groups = None if intervention is None else intervention.num_groups
    if num_groups not in (None, inputs.num_groups):
        raise ValueError(
            f"intervention: expected factors over the {inputs.num_groups} token groups of the inputs, got "
            f"{num_groups}; take both from one avjax.lower_edits"
        )


def largest_read(peak: Float[Array, "L T 3"], inputs: Inputs, reads: Int[Array, "*P"] | None = None) -> Array:
    """The largest size [] that read-outs depend on, at the positions `reads` or at all; see `largest_fed`."""
    positions = jnp.arange(peak.shape[1])
    exists = positions < inputs.length
    return largest_fed(peak, exists, exists if reads is None else jnp.isin(positions, reads))


@functools.partial(jax.jit, static_argnames=("capture", "compat"))
def logits_at(
    decoder: Decoder,
    inputs: Inputs,
    intervention: Intervention | None,
    at: Array,
    *,
    capture: tuple[Site, ...] = (),
    compat: Compat | None = None,
) -> tuple[Float[Array, "P V"], dict[Site, Array]]:
    """Next-token logits at the positions `at` [P], and captures."""
    x, _, captures = prefill(decoder, inputs, intervention, capture=capture, compat=compat)
    return whole((decoder.logits(x[at]), captures))


@functools.partial(jax.jit, static_argnames=("num_variants", "num_classes", "compat"))
def reference_batch(
    decoder: Decoder,
    inputs: Inputs,
    variants: Intervention,
    reads: Array,
    query_sets: Array | None,
    group_class: Array,
    *,
    num_variants: int,
    num_classes: int,
    compat: Compat | None,
) -> tuple[Array, Array, Array | None]:
    """Whole forward passes: final residuals [I, P, D], largest sizes [I] and attention masses [I, L, N, Q, C]."""
    capture = (Site.PEAK,) if query_sets is None else (Site.PEAK, Site.MASS)

    def one(edit: Intervention) -> tuple[Array, Array, Array | None]:
        x, _, captures = prefill(decoder, inputs, edit, capture=capture, compat=compat)
        largest = largest_read(captures[Site.PEAK], inputs, reads)
        if query_sets is None:
            return x[reads], largest, None
        classes = jax.nn.one_hot(group_class, num_classes, dtype=jnp.float32)
        return x[reads], largest, dot("lnqm,mc->lnqc", dot("lntm,qt->lnqm", captures[Site.MASS], query_sets), classes)

    return whole(_over_variants(one, variants, num_variants))


@functools.partial(jax.jit, static_argnames=("num_variants", "compat"))
def reference_prompt(
    decoder: Decoder, inputs: Inputs, variants: Intervention, *, num_variants: int, compat: Compat | None
) -> OwnPrompt:
    """Each variant's whole prompt, for decoding."""

    def one(edit: Intervention) -> tuple[Array, Array, KeysValues]:
        x_TD, keys_values, captures = prefill(decoder, inputs, edit, capture=(Site.PEAK,), compat=compat)
        last = inputs.length - 1
        return x_TD[last], largest_read(captures[Site.PEAK], inputs, last), keys_values

    last, largest, (keys, values) = _over_variants(one, variants, num_variants)
    return OwnPrompt(
        keys=jnp.swapaxes(keys, 0, 1), values=jnp.swapaxes(values, 0, 1), last=last, largest=whole(largest)
    )


def _over_variants(one: Callable[[Intervention], Any], variants: Intervention, num_variants: int) -> Any:
    """`one` of each variant: one after the other on a CPU, where a batched pass is slower, else together."""

    def pick(index: Array) -> Any:
        return one(
            Intervention(
                attention_factor=None if variants.attention_factor is None else variants.attention_factor[index],
                sites=jax.tree.map(lambda leaf: leaf[index], variants.sites),
                sources=variants.sources,
            )
        )

    return jax.lax.platform_dependent(
        jnp.arange(num_variants), cpu=lambda i: jax.lax.map(pick, i), default=lambda i: jax.vmap(pick)(i)
    )


@functools.partial(jax.jit, static_argnames="size")
def pad_inputs(inputs: Inputs, size: int) -> Inputs:
    """Inputs padded on the right to `size` positions; causality hides the padding from every real query."""
    extra = size - inputs.embeddings.shape[0]
    return Inputs(
        embeddings=jnp.pad(inputs.embeddings, ((0, extra), (0, 0))),
        positions=jnp.pad(inputs.positions, ((0, 0), (0, extra))),
        groups=jnp.pad(inputs.groups, (0, extra)),
        generated_group=inputs.generated_group,
        length=inputs.length,
        num_groups=inputs.num_groups,
        branches=None if inputs.branches is None else jnp.pad(inputs.branches, (0, extra)),
    )
