"""A forward pass to differentiate: the rows that edits can reach, over the clean run's keys and values.

Layers and heads are computed again on the way back, so that no array of a row and a key outlives its head.

Axes: R row, S position (padded), T position, D embed, N heads, K kv heads, H head dim, L layer, M token group, V vocab,
n continued token.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.analysis.gradient_cases import Case, metric_value
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.overflow import NORMED, refuse_overflow, row_sizes
from avjax.engine.reference import largest_read, pad_inputs, prefill
from avjax.engine.scoring import read_block
from avjax.metrics import Metric
from avjax.model import Model
from avjax.models.attention import attend_prompt
from avjax.models.buckets import bucket
from avjax.models.decoder import Block, Decoder
from avjax.models.intervention import Intervention, edited
from avjax.models.sites import Site
from avjax.prompts.prompt import Inputs
from avjax.prompts.selectors import TokenGroups

FEWEST_ROWS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Consecutive positions of a prompt, which a pass computes; those before them are the clean run's.

    Attributes:
      embeddings: [R, D]. positions: int32 [3, R]. groups: int32 [S]. first_row, length: int32 [].
      keys, values: [L, S, K, H] of the clean run; None where the rows are the whole prompt.
      num_groups: M.
      branches: int32 [S], see `avjax.prompts.prompt.Inputs`.
    """

    embeddings: jax.Array
    positions: jax.Array
    groups: jax.Array
    first_row: jax.Array
    length: jax.Array
    keys: jax.Array | None
    values: jax.Array | None
    num_groups: int = dataclasses.field(metadata={"static": True})
    branches: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where a metric is read, and what it needs.

    Attributes:
      first_read: int32 [], a row. tokens: int32 [V], None for the whole vocabulary.
      predictors, continued: int32 [n], see `avjax.engine.scoring.read_block`.
      num_reads: rows that are read out, from the first on.
      clean: the clean run's logits and log-probabilities; None where the pass itself is clean.
    """

    first_read: jax.Array
    predictors: jax.Array
    continued: jax.Array
    tokens: jax.Array | None
    prepared: Any
    num_reads: int = dataclasses.field(metadata={"static": True})
    clean: tuple[jax.Array, jax.Array] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """One sample, ready to be differentiated; `members`: bool [M] for each mask."""

    rows: Rows
    target: Target
    members: tuple[np.ndarray, ...]


def prepared(
    model: Model, case: Case, masks: Sequence[np.ndarray], *, first_row: int = 0, with_clean: bool = False
) -> Prepared:
    """Arrays of one sample.

    Args:
      masks: bool [T] over the whole prompt, of which token groups must be able to make up.
      first_row: the first position that an edit can reach.
      with_clean: run the prompt once without edits: the rows before `first_row` are then never computed again, and
        the metric can compare with the clean run.
    """
    padded = [np.append(mask, False) for mask in masks]  # nothing is generated after the whole prompt
    lowered = lower(case.whole, model.config.decoder, [()], num_decoded=0, clean=CleanRuns(model), selectors=padded)
    total = len(case.whole)
    first, count = 0, bucket(total)
    rows = total - min(first_row, case.first_read)
    if with_clean and rows < total // 2:
        count = max(FEWEST_ROWS, 1 << (rows - 1).bit_length())
        first = max(0, total - count)
    inputs = pad_inputs(_encoded(model, case, lowered.groups), bucket(max(total, first + count)))
    read = case.metric.read_tokens(model)
    target = Target(
        first_read=jnp.int32(case.first_read - first),
        predictors=jnp.asarray(case.reads.predictors),
        continued=jnp.asarray(case.reads.continued),
        num_reads=1 + len(case.reads.fed),
        tokens=None if read is None else jnp.asarray(read, jnp.int32),
        prepared=jax.tree.map(jnp.asarray, case.metric.prepare(model, case.prompt)),
    )
    prompt_rows = _rows(inputs, first, count)
    if with_clean:
        keys, values, clean, largest = _clean(model.network.decoder, inputs, target, jnp.int32(case.first_read))
        refuse_overflow(largest, f"sample {case.sample!r}")
        if first:
            prompt_rows = dataclasses.replace(prompt_rows, keys=keys, values=values)
        target = dataclasses.replace(target, clean=clean)
    return Prepared(rows=prompt_rows, target=target, members=tuple(lowered.members[mask.tobytes()] for mask in padded))


def _encoded(model: Model, case: Case, groups: TokenGroups) -> Inputs:
    """The whole prompt; each of several continuations begins where the prompt ends, and sees no other."""
    inputs = model.encode(case.whole, groups)
    if (branches := case.reads.branches) is None:
        return inputs
    size = len(case.prompt)
    steps = case.prompt.next_position() + jnp.asarray(case.reads.steps)
    return dataclasses.replace(
        inputs, positions=inputs.positions.at[:, size:].set(steps), branches=jnp.asarray(np.pad(branches, (size, 0)))
    )


def _rows(inputs: Inputs, first: int, count: int) -> Rows:
    return Rows(
        embeddings=inputs.embeddings[first : first + count],
        positions=inputs.positions[:, first : first + count],
        groups=inputs.groups,
        first_row=jnp.int32(first),
        length=inputs.length,
        keys=None,
        values=None,
        num_groups=inputs.num_groups,
        branches=inputs.branches,
    )


@jax.jit
def _clean(decoder: Decoder, inputs: Inputs, target: Target, first_read: jax.Array) -> tuple[Any, Any, Any, Any]:
    """Keys and values [L, S, K, H] of the clean run, its read-outs, and the largest size of what a norm was fed."""
    x, (keys, values), captures = prefill(decoder, inputs, None, capture=(Site.PEAK,))
    return keys, values, _read(decoder, x, target, first_read), largest_read(captures[Site.PEAK], inputs)


def objective(decoder: Decoder, rows: Rows, edit: Intervention, target: Target, metric: Metric) -> jax.Array:
    """The metric [] under an edit over the rows' token groups; differentiable in its factors, scales and weights."""
    return watched_objective(decoder, rows, edit, target, metric)[0]


def watched_objective(
    decoder: Decoder, rows: Rows, edit: Intervention, target: Target, metric: Metric
) -> tuple[jax.Array, jax.Array]:
    """`objective`, and the largest size [] of what a norm was fed, which has no slope; see `avjax.engine.overflow`."""
    x, largest = _final_rows(decoder, rows, edit)
    at = _read(decoder, x, target, target.first_read)
    clean = jax.lax.stop_gradient(at) if target.clean is None else target.clean
    return metric_value(metric, target.prepared, at, clean), largest


def _read(decoder: Decoder, x: jax.Array, target: Target, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [V] of what the metric reads, and log-probabilities [n]."""
    read = jax.lax.dynamic_slice_in_dim(x, first, target.num_reads)
    logits, logprobs = read_block(decoder, read[None], target.predictors, target.continued, target.tokens)
    if target.continued.shape[0] and target.tokens is not None:
        logits = logits[:, target.tokens]
    return logits[0], logprobs[0]


def final_rows(decoder: Decoder, rows: Rows, edit: Intervention) -> jax.Array:
    """The final residual [R, D]; equal to the reference pass there, if no edit reaches an earlier position."""
    return _final_rows(decoder, rows, edit)[0]


def _final_rows(decoder: Decoder, rows: Rows, edit: Intervention) -> tuple[jax.Array, jax.Array]:
    """The final residual [R, D], and the largest size [] of what a norm was fed."""
    exists = rows.first_row + jnp.arange(rows.embeddings.shape[0]) < rows.length
    rotary = decoder.rotary(rows.positions, rows.embeddings.dtype)
    groups = jax.lax.dynamic_slice_in_dim(rows.groups, rows.first_row, rows.embeddings.shape[0])
    keys_values = None if rows.keys is None else (rows.keys, rows.values)

    def size(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(exists, row_sizes(jax.lax.stop_gradient(x)), 0.0))

    def step(x: jax.Array, layer: tuple[Block, Intervention, Any]) -> tuple[jax.Array, list[jax.Array]]:
        block, here, clean = layer
        fed: list[jax.Array] = []

        def at(site: Site, x: jax.Array) -> jax.Array:
            x = edited(site, x, here, groups, rows.first_row)
            if site in NORMED:
                fed.append(size(x))
            return x

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            if clean is not None:
                k, v = (
                    jax.lax.dynamic_update_slice_in_dim(c, own, rows.first_row, 0)
                    for c, own in zip(clean, (k, v), strict=True)
                )
            return _attend(rows, here.attention_factor, q, k, v), None

        x, _ = block(x, rotary, attend, at)
        return x, fed

    x, fed = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), rows.embeddings, (decoder.layers, edit, keys_values))
    return x, jnp.maximum(jnp.max(jnp.stack(fed)), size(x))


def _attend(rows: Rows, factor: jax.Array | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """z [R, N, H], head after head on every platform: on the way back one head's weights live at a time."""
    per_kv = q.shape[1] // k.shape[1]

    def one(head: tuple[jax.Array, jax.Array | None, jax.Array]) -> jax.Array:
        q_RH, factor_MM, index = head
        k_S1H, v_S1H = (jax.lax.dynamic_slice_in_dim(x, index // per_kv, 1, axis=1) for x in (k, v))
        z, _ = attend_prompt(
            q_RH[:, None],
            k_S1H,
            v_S1H,
            first_row=rows.first_row,
            length=rows.length,
            groups=rows.groups,
            factor=None if factor_MM is None else factor_MM[None],
            num_groups=rows.num_groups,
            branches=rows.branches,
        )
        return z[:, 0]

    heads = jnp.moveaxis(q, 1, 0), factor, jnp.arange(q.shape[1])
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(one, prevent_cse=False), heads), 0, 1)


@functools.partial(jax.jit, static_argnames="metric")
def value_of(decoder: Decoder, rows: Rows, edit: Intervention, target: Target, *, metric: Metric) -> jax.Array:
    """`objective`, compiled."""
    return objective(decoder, rows, edit, target, metric)
