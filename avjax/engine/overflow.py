"""Overflow: activations that a norm cannot square, whose read-outs mean nothing, found and refused in one way.

A norm squares what it is fed in float32. Beyond about 1e18 the squares are infinite and the norm gives zeros, of an
infinite activation NaN; what follows looks like an ordinary run again. So every pass carries the largest size of what
its norms were fed (`Site.PEAK`), a reduction on the device, and the host refuses it when it fetches the results anyway.

Axes: L layer, T position, D embed; the last axis of a peak is what the norms before attention and before the MLP
are fed, and what leaves the layer.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from avjax.models.sites import Site

MAX_ACTIVATION = 1e17  # its square, summed over any width there is, is far below the 3e38 of float32
NORMED = (Site.RESID_PRE, Site.RESID_MID)  # what each layer's two norms are fed


class ActivationOverflow(OverflowError, ValueError):
    """Activations grew beyond what float32 carries through a norm."""


def row_sizes(x: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """Each row's largest absolute value; infinite where one is NaN, which a compiled maximum alone may pass over."""
    y = jnp.abs(x.astype(jnp.float32))
    return jnp.max(jnp.where(jnp.isnan(y), jnp.inf, y), axis=-1)


def largest_fed(peak: Float[Array, "L T 3"], counted: Bool[Array, "T"], read: Bool[Array, "T"]) -> Float[Array, ""]:
    """The largest size that the read-outs of a pass depend on.

    Args:
      peak: of `Site.PEAK`.
      counted: the positions that exist; padding is none of a run's values.
      read: those that are read after the last layer; of the others its keys and values alone matter.
    """
    pre_LT, mid_LT, last_T = peak[..., 0], peak[..., 1], jnp.max(peak[-1], axis=-1)
    every_T = jnp.maximum(jnp.max(pre_LT, axis=0), jnp.max(mid_LT[:-1], axis=0, initial=0.0))
    return jnp.max(jnp.maximum(jnp.where(counted, every_T, 0.0), jnp.where(read, last_T, 0.0)))


def refuse_overflow(largest: Any, name: str | Callable[[int], str] = "this pass") -> None:
    """Refuses activations beyond 1e17, which a norm cannot square in float32: all that follows them means nothing.

    The one check of `avjax.run`, `generate`, `sweep` and the analyses. For `avjax.forward`, which is pure:

        logits, seen = avjax.forward(model, inputs, intervention, capture=("peak",))
        avjax.refuse_overflow(seen["peak"])

    Args:
      largest: sizes of activations, of any shape; variants come first where `name` is a function.
      name: what was run, or a function of the variant's place that says it.

    Raises:
      ActivationOverflow: an OverflowError and a ValueError; the first such variant is named.
    """
    sizes = np.asarray(largest, np.float32)
    by_variant = sizes.reshape(len(sizes), -1) if callable(name) else sizes.reshape(1, -1)
    for place, row in enumerate(by_variant):
        if not (row <= MAX_ACTIVATION).all():
            value = np.where(np.isnan(row), np.inf, row).max()
            raise ActivationOverflow(
                f"{name(place) if callable(name) else name}: activations reach {value:g}, which float32 cannot carry "
                f"through a norm (expected at most {MAX_ACTIVATION:g}); use smaller factors or vectors, or, where "
                "nothing is edited, look for an overflow in the checkpoint or the prompt's embeddings"
            )
