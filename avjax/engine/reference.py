"""The reference forward pass: a whole prompt under one intervention. It defines what every edit means.

Axes: T position, D embed, K kv heads, H head dim, L layer, V vocab, P selected positions.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from avjax.interventions import Intervention
from avjax.models.attention import Compat, Edges
from avjax.models.decoder import Block, Decoder, Site
from avjax.prompt import Inputs

KeysValues = tuple[Array, Array]  # L T K H each


def prefill(
    decoder: Decoder,
    inputs: Inputs,
    intervention: Intervention | None,
    *,
    capture: Sequence[Site] = (),
    compat: Compat | None = None,
) -> tuple[Float[Array, "T D"], KeysValues, dict[Site, Array]]:
    """The final residual at every position, each layer's keys and values, and the captured sites stacked on L.

    Pure: `jit` with `static_argnames=("capture", "compat")`; `vmap` over `intervention` alone to sweep.

    Args:
      intervention: the edit over `inputs.groups`; None, like `Intervention.none`, is the checkpoint itself.
      compat: `"published"` gives a query whose every visible key is blocked the mean value of all keys of the prompt,
        as the published hooks do; the default reads zero.
    """
    rotary = decoder.rotary(inputs.positions, inputs.embeddings.dtype)

    def step(x: Array, layer: tuple[Block, Array | None]) -> tuple[Array, tuple[KeysValues, dict[Site, Array]]]:
        block, factor = layer
        edges = None if factor is None else Edges(factor=factor, compat=compat)
        x, keys_values, seen = block.prompt(x, rotary, inputs.length, inputs.groups, edges, capture)
        return x, (keys_values, seen)

    factor = None if intervention is None else intervention.attention_factor
    if factor is not None and factor.shape[-1] != inputs.num_groups:
        raise ValueError(
            f"intervention: expected factors over the {inputs.num_groups} token groups of the inputs, got "
            f"{factor.shape[-1]}; take both from one avjax.lower_edits"
        )
    x, (keys_values, seen) = jax.lax.scan(step, inputs.embeddings, (decoder.layers, factor))
    return x, keys_values, seen


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
    x, _, seen = prefill(decoder, inputs, intervention, capture=capture, compat=compat)
    return decoder.logits(x[at]), seen


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
    )


def bucket(size: int) -> int:
    """The padded length that serves `size` positions: multiples of an eighth of the power of two below, 64 at least."""
    step = max(64, (1 << max(size - 1, 1).bit_length() - 1) // 8)
    return -(-size // step) * step
