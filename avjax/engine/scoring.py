"""Metrics on the device: from a batch's residuals to one value per variant; logits are never kept.

Axes: I variant, P read-out position, D embed, V vocab, U unembedded token, L layer, N heads, Q query set, C key class.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.devices.mesh import by_vocabulary, whole
from avjax.engine.session import Reading, Session
from avjax.metrics import Metric, View
from avjax.models.buckets import count_bucket
from avjax.models.decoder import Decoder
from avjax.models.layers import dot

LOGIT_BYTES = 64 * 2**20  # logits of the variants that are scored at once, at most
SCORED_TOGETHER = 128  # variants, at most
WORTH_GATHERING = 0.25  # of the vocabulary; beyond, the unembedding is not gathered


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attended:
    """Where a metric's attention mass is found."""

    query_set: jax.Array  # int32 []
    classes: jax.Array  # float32 C: 1 for the key classes that belong to its keys
    key_share: jax.Array  # float32 []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanScores:
    """The clean run's read-outs, which every metric may compare with."""

    logits: jax.Array  # float32 U
    logprobs: jax.Array  # float32 n
    mass: jax.Array | None  # float32 L N Q C


def unembedded(wanted: Sequence[tuple[int, ...] | None], num_continued: int, vocab: int) -> np.ndarray | None:
    """The ids [U] whose logits a pass computes: all that its metrics read, sorted; None is the whole vocabulary.

    Args:
      wanted: `Metric.read_tokens` of each metric.
      num_continued: tokens of continuations; their log-probabilities need the whole vocabulary.
    """
    named = [ids for ids in wanted if ids is not None]
    tokens = sorted({token for ids in named for token in ids})
    if num_continued or len(named) < len(wanted) or len(tokens) > vocab * WORTH_GATHERING:
        return None
    return np.array(tokens, np.int32)


def places_of(wanted: Sequence[tuple[int, ...] | None], tokens: np.ndarray | None) -> list[np.ndarray | None]:
    """Where each metric's logits stand among the unembedded ones; None for a metric that reads all of them."""
    places: list[np.ndarray | None] = []
    for ids in wanted:
        read = None if ids is None else np.array(ids, np.int32)
        places.append(read if read is None or tokens is None else np.searchsorted(tokens, read).astype(np.int32))
    return places


def block_size(count: int, num_reads: int, num_tokens: int, memory_bytes: int) -> int:
    """Variants that are scored together: one shape for all of a sweep, so that equal residuals give equal bits."""
    most = min(LOGIT_BYTES, memory_bytes // 8) // (4 * num_reads * max(1, num_tokens))
    most = max(1, min(SCORED_TOGETHER, most))
    return min(most, count_bucket(-(-count // -(-count // most))))


def blocks(
    session: Session, readings: Iterable[Reading], size: int
) -> Iterator[tuple[tuple[int, ...], np.ndarray, np.ndarray | None]]:
    """Readings regrouped to `size` variants each: their indices, residuals [size, P, D] and masses.

    The last block repeats its last variant.

    Raises:
      OverflowError: see `Session.refuse_overflow`.
    """
    variants: list[int] = []
    residuals: list[np.ndarray] = []
    masses: list[np.ndarray] = []

    def cut() -> tuple[tuple[int, ...], np.ndarray, np.ndarray | None]:
        index = np.minimum(np.arange(size), len(variants) - 1)
        block = tuple(variants[:size])
        arrays = [np.stack(x[:size])[np.minimum(index, len(x) - 1)] if x else None for x in (residuals, masses)]
        for kept in (variants, residuals, masses):
            del kept[:size]
        assert arrays[0] is not None
        return block, arrays[0], arrays[1]

    for reading in readings:
        count = len(reading.variants)
        residual = np.asarray(reading.residual)[:count]
        session.refuse_overflow(reading.variants, np.asarray(reading.largest)[:count])
        variants.extend(reading.variants)
        residuals.extend(residual)
        if reading.mass is not None:
            masses.extend(np.asarray(reading.mass)[:count])
        while len(variants) >= size:
            yield cut()
    if variants:
        yield cut()


@jax.jit
def read_block(
    decoder: Decoder, residual: jax.Array, predictors: jax.Array, continued: jax.Array, tokens: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Logits [I, U] at the last prompt position, and log-probabilities [I, n] of continuations' tokens.

    Args:
      residual: [I, P, D], final residuals.
      predictors, continued: int32 [n], the read-out that predicts each token of the continuations, and its id.
      tokens: int32 [U], see `unembedded`; None is the whole vocabulary.
    """
    if not continued.shape[0]:
        return whole(_logits(decoder, residual[:, 0], tokens)), jnp.zeros((residual.shape[0], 0), jnp.float32)
    logits = _logits(decoder, residual, None)
    logprobs = jax.nn.log_softmax(logits)[:, predictors, continued]
    return whole((logits[:, 0], logprobs))


def _logits(decoder: Decoder, residual: jax.Array, tokens: jax.Array | None) -> jax.Array:
    logits = decoder.logits(residual, tokens)
    return by_vocabulary(logits) if tokens is None else logits


@functools.partial(jax.jit, static_argnames=("metrics",))
def score(
    logits: jax.Array,
    logprobs: jax.Array,
    mass: jax.Array | None,
    clean: CleanScores,
    prepared: Sequence[Any],
    attended: Sequence[Attended | None],
    places: Sequence[jax.Array | None],
    spans: Sequence[jax.Array],
    *,
    metrics: tuple[Metric, ...],
) -> list[Any]:
    """Each metric's values, leading with I.

    Args:
      logits, logprobs: what `read_block` returned.
      mass: float32 [I, L, N, Q, C].
      prepared, attended, places: for each metric; see `places_of`.
      spans: int32, for each metric where the log-probabilities of its own continuations stand among the pass's.
    """

    def one(logits_U: jax.Array, logprobs_n: jax.Array, mass_LNQC: jax.Array | None) -> list[Any]:
        return [
            metric(
                View(
                    logits=logits_U if read is None else logits_U[read],
                    clean_logits=clean.logits if read is None else clean.logits[read],
                    logprobs=logprobs_n[span],
                    clean_logprobs=clean.logprobs[span],
                    mass=_mass(mass_LNQC, where),
                    clean_mass=_mass(clean.mass, where),
                    key_share=None if where is None else where.key_share,
                    prepared=ready,
                )
            )
            for metric, ready, where, read, span in zip(metrics, prepared, attended, places, spans, strict=True)
        ]

    return whole(jax.vmap(one)(logits, logprobs, mass))


@jax.jit
def first_of_block(logits: jax.Array, logprobs: jax.Array, mass: jax.Array | None) -> CleanScores:
    """The clean run's read-outs, which lead the first block."""
    return CleanScores(logits=logits[0], logprobs=logprobs[0], mass=None if mass is None else mass[0])


def _mass(mass_LNQC: jax.Array | None, where: Attended | None) -> jax.Array | None:
    if mass_LNQC is None or where is None:
        return None
    return dot("lnc,c->ln", mass_LNQC[:, :, where.query_set], where.classes)


def check_values(
    metric: Metric,
    prepared: Any,
    *,
    num_tokens: int,
    continuation: int,
    attention: tuple[int, int] | None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a metric returns, by suffix, found without computing anything.

    Raises:
      ValueError: it is no array of the dimensions that the metric declares.
    """

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    masses = None if attention is None else of(*attention)
    ready = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x).dtype), prepared)
    arrays = {"logits": of(num_tokens), "clean_logits": of(num_tokens)}
    arrays |= {"logprobs": of(continuation), "clean_logprobs": of(continuation)}
    attended = {"mass": masses, "clean_mass": masses, "key_share": None if attention is None else of()}
    try:
        value_type = jax.eval_shape(lambda xs: metric(View(**xs)), arrays | attended | {"prepared": ready})
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"metric {metric.name!r}: it cannot be computed: {error}") from error
    values = dict(value_type) if isinstance(value_type, Mapping) else {"": value_type}
    for suffix, value in values.items():
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != len(metric.dims):
            raise ValueError(
                f"metric {metric.name!r}{f' ({suffix})' if suffix else ''}: expected an array with the dimensions "
                f"{list(metric.dims)} for one cell, got {'no array' if shape is None else f'shape {list(shape)}'}"
            )
    return values
