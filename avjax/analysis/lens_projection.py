"""Activations projected to the vocabulary and reduced there, without ever holding all of their logits.

Axes: L layer, P selected position, R row of a chunk, D embed, V vocab, A answer, F surface form.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from avjax.engine.overflow import row_sizes
from avjax.engine.reference import reduced_prefill
from avjax.models.decoder import Decoder
from avjax.models.layers import dot, rounded
from avjax.models.sites import Site
from avjax.models.top_k import top_k
from avjax.prompts.prompt import Inputs

CHUNK_BYTES = 32 * 2**20  # float32 logits of one chunk; three such arrays are alive at a time
NO_FORM = -1  # fills an answer with fewer surface forms than another


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Translators:
    """Affine maps x + x kernel + bias into the basis of the final residual; zeros change nothing.

    Leaves lead with L.
    """

    kernel: jax.Array  # float32 L D D
    bias: jax.Array  # float32 L D

    def __call__(self, x: Float[Array, "R D"]) -> Float[Array, "R D"]:
        """One layer's, whose leaves have no L."""
        y = x.astype(jnp.float32)
        return rounded(y + dot("rd,de->re", y, self.kernel) + self.bias, x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Projected:
    """What is kept of each row's distribution over the vocabulary."""

    top_token: jax.Array  # int32 ... k
    top_log_prob: jax.Array  # float32 ... k, nats
    entropy: jax.Array  # float32 ..., nats
    log_prob: jax.Array  # float32 ... A, nats
    rank: jax.Array  # int32 ... A; 1 is the likeliest
    largest: jax.Array  # float32 ..., of the activation's absolute values; infinite where one is NaN


def chunk_rows(vocab: int, num_rows: int, chunk_bytes: int) -> int:
    """Rows whose logits are computed together: as many as the bytes allow, no more than there are."""
    most = max(1, chunk_bytes // (4 * vocab))
    return min(most, 1 << (num_rows - 1).bit_length())


def padded_rows(rows: np.ndarray, chunk: int) -> np.ndarray:
    """The rows, and the last one again, so that chunks are full."""
    return np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % chunk)]).astype(np.int32)


def lens_logits(decoder: Decoder, x: Float[Array, "R D"], norm: bool) -> Float[Array, "R V"]:
    """float32 logits of activations that are taken for the final residual, with the final norm or raw."""
    if norm:
        return decoder.logits(x)
    return (decoder.embed if decoder.unembed is None else decoder.unembed).logits(x)


def _project_chunk(
    decoder: Decoder, x: Float[Array, "R D"], answers: Int[Array, "A F"], lens: Translators | None, norm: bool, k: int
) -> Projected:
    z_RV = lens_logits(decoder, x if lens is None else lens(x), norm)
    total_R1 = jax.nn.logsumexp(z_RV, axis=-1, keepdims=True)
    values, tokens = top_k(z_RV, k)
    forms_RAF = jnp.where(answers == NO_FORM, -jnp.inf, z_RV[:, jnp.maximum(answers, 0)])
    best_RA = jnp.max(forms_RAF, axis=-1)
    above = jax.lax.map(lambda best: jnp.sum(z_RV > best[:, None], axis=-1), best_RA.T)  # one answer at a time
    return Projected(
        top_token=tokens,
        top_log_prob=values - total_R1,
        entropy=-jnp.sum(jnp.exp(z_RV - total_R1) * (z_RV - total_R1), axis=-1),
        log_prob=jax.nn.logsumexp(forms_RAF, axis=-1) - total_R1,
        rank=1 + above.T,
        largest=row_sizes(x),
    )


def project(
    decoder: Decoder,
    x: Float[Array, "P D"],
    answers: Int[Array, "A F"],
    lens: Translators | None,
    *,
    norm: bool,
    k: int,
    chunk: int,
) -> Projected:
    """Rows of one layer, `chunk` of them at a time.

    Args:
      answers: token ids of each answer's surface forms, filled with `NO_FORM`; A may be 0.
      chunk: divides P.
    """
    one = functools.partial(_project_chunk, decoder, answers=answers, lens=lens, norm=norm, k=k)
    projected = jax.lax.map(one, x.reshape(-1, chunk, x.shape[-1]))
    return jax.tree.map(lambda leaf: leaf.reshape(x.shape[0], *leaf.shape[2:]), projected)


@functools.partial(jax.jit, static_argnames=("site", "norm", "k", "chunk"))
def lens_pass(
    decoder: Decoder,
    inputs: Inputs,
    rows: Int[Array, "P"],
    wanted: Bool[Array, "L"],
    answers: Int[Array, "A F"],
    lens: Translators | None,
    *,
    site: Site,
    norm: bool,
    k: int,
    chunk: int,
) -> tuple[Projected, Float[Array, "L 2"]]:
    """One pass over a prompt that projects the selected positions of each wanted layer as it goes by.

    Returns:
      Leaves [L, P, ...]; those of other layers are zeros. And the largest size of what each layer's norms, before
      attention and before the MLP, were fed.
    """
    read = functools.partial(project, decoder, answers=answers, norm=norm, k=k, chunk=chunk)

    def reduce(seen: dict[Site, Array], own: Any) -> tuple[Projected, Array]:
        here, translator = own
        x = seen[site][rows]
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda x: read(x, lens=translator), x)
        )
        projected = jax.lax.cond(here, lambda x: read(x, lens=translator), lambda _: nothing, x)
        return projected, _fed(seen, inputs)

    sites = (site, Site.PEAK)
    return reduced_prefill(decoder, inputs, None, capture=sites, reduce=reduce, per_layer=(wanted, lens))[1]


def _fed(seen: dict[Site, Array], inputs: Inputs) -> Float[Array, "2"]:
    """The largest size of what one layer's norms were fed at positions that exist."""
    exists = jnp.arange(inputs.embeddings.shape[0]) < inputs.length
    return jnp.max(jnp.where(exists[:, None], seen[Site.PEAK][:, :2], 0.0), axis=0)


@functools.partial(jax.jit, static_argnames="site")
def rows_pass(
    decoder: Decoder, inputs: Inputs, rows: Int[Array, "P"], *, site: Site
) -> tuple[Float[Array, "P D"], Float[Array, "L P D"], Float[Array, "L 2"]]:
    """The final residual and a site at the selected positions alone, and the sizes that `lens_pass` returns too."""
    x, (at_site, fed) = reduced_prefill(
        decoder, inputs, None, capture=(site, Site.PEAK), reduce=lambda seen, _: (seen[site][rows], _fed(seen, inputs))
    )
    return x[rows], at_site, fed
