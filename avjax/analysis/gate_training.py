"""How gates on edges are learned: hard-concrete or clipped ones, by Adam, over the rows that the edges reach.

Axes: L layer, N heads, M token group, C case, B batch. A gate's cut is 0 for an open edge and 1 for a cut one.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from avjax.analysis.gradient_cases import Case
from avjax.analysis.gradient_pass import Prepared, Rows, Target, prepared, watched_objective
from avjax.edits.edits import Knockout
from avjax.engine.overflow import refuse_overflow
from avjax.metrics import Metric
from avjax.model import Model
from avjax.models.decoder import Decoder
from avjax.models.intervention import Intervention
from avjax.progress import Progress
from avjax.prompts.selectors import Selector

Penalty = Literal["l0", "l1"]
Per = Literal["head", "layer"]
# The stretched, clipped concrete distribution of Louizos et al. 2018: its temperature, and how far it is stretched.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The edges that have gates."""

    query: Selector
    key: Selector
    per: Per
    layers: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.layers), len(self.heads)) if self.per == "head" else (len(self.layers),)

    def edits(self, cut: np.ndarray) -> list[Knockout]:
        """The knock-outs of a set of cuts, bool of `shape`."""
        edits = []
        for layer, row in zip(self.layers, cut.reshape(len(self.layers), -1), strict=True):
            if row.any():
                heads = self.heads if self.per == "layer" else [h for h, c in zip(self.heads, row, strict=True) if c]
                edits.append(Knockout(query=self.query, key=self.key, layers=[layer], heads=heads))
        return edits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How gates are learned."""

    penalty: Penalty
    strength: float
    steps: int
    batch: int
    learning_rate: float
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Cases of one shape, stacked on C."""

    rows: Rows
    target: Target
    edges: jax.Array  # float32 C M M: 1 for the pairs of groups that have gates
    metric: Metric
    count: int


def grouped(model: Model, window: Window, train: Mapping[Any, Case]) -> list[Group]:
    by_shape: dict[Any, list[tuple[Case, Prepared]]] = {}
    for case in train.values():
        masks = [case.select(window.query), case.select(window.key)]
        ready = prepared(model, case, masks, first_row=int(np.flatnonzero(masks[0])[0]), with_clean=True)
        leaves, tree = jax.tree.flatten((ready.rows, ready.target))
        key = (case.metric.compiled_form(), tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        by_shape.setdefault(key, []).append((case, ready))
    groups = []
    for members in by_shape.values():
        edges = [np.outer(*r.members).astype(np.float32) for _, r in members]
        rows, target = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[(r.rows, r.target) for _, r in members])
        groups.append(
            Group(
                rows=rows,
                target=target,
                edges=jnp.asarray(np.stack(edges)),
                metric=members[0][0].metric.compiled_form(),
                count=len(members),
            )
        )
    return groups


def learned(
    model: Model, window: Window, train: Mapping[Any, Case], training: Training, bar: Progress
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gates between 0 (cut) and 1, and the curve."""
    groups = grouped(model, window, train)
    rng, key = np.random.default_rng(training.seed), jax.random.key(training.seed)
    share = np.array([group.count for group in groups]) / len(train)
    parameters = jnp.full(window.shape, 0.0 if training.penalty == "l0" else 0.5, jnp.float32)
    state = optax.adam(training.learning_rate).init(parameters)
    curve: dict[str, list[float]] = {"train": [], "cuts": [], "train_objective": []}
    for step in range(training.steps):
        group = groups[rng.choice(len(groups), p=share)]
        index = rng.choice(group.count, size=min(training.batch, group.count), replace=False)
        parameters, state, objective_value = _step(
            model.network.decoder,
            (group.rows, group.target, group.edges),
            jnp.asarray(index),
            (parameters, state),
            jax.random.fold_in(key, step),
            (jnp.asarray(window.layers), jnp.asarray(window.heads)),
            (jnp.float32(training.learning_rate), jnp.float32(training.strength)),
            metric=group.metric,
            penalty=training.penalty,
        )
        mean, cuts, largest = (float(value) for value in objective_value)
        refuse_overflow(largest, f"step {step}")
        if not np.isfinite([mean, cuts, *np.asarray(parameters).ravel()]).all():
            raise ValueError(f"step {step}: the metric or its gradient is not finite; look at the prompts")
        for name, value in zip(curve, (mean, cuts, mean - training.strength * cuts), strict=True):
            curve[name].append(value)
        bar.advance(1)
    cut = _settled(parameters, training.penalty)
    return 1 - np.asarray(cut, np.float64), {name: np.array(values) for name, values in curve.items()}


@functools.partial(jax.jit, static_argnames=("metric", "penalty"))
def _step(
    decoder: Decoder,
    group: tuple[Rows, Target, jax.Array],
    index: jax.Array,
    learned: tuple[jax.Array, Any],
    key: jax.Array,
    window: tuple[jax.Array, jax.Array],
    settings: tuple[jax.Array, jax.Array],
    *,
    metric: Metric,
    penalty: Penalty,
) -> tuple[jax.Array, Any, tuple[jax.Array, jax.Array, jax.Array]]:
    """One step of Adam on a batch [B] of cases.

    Also returns the batch's mean metric, the expected cuts, and the largest size of what a norm was fed.
    """
    (parameters, state), (learning_rate, strength) = learned, settings

    def value(parameters: jax.Array, case: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, target, edges_MM = jax.tree.map(lambda leaf: leaf[case], group)
        cut = _noisy(parameters, key) if penalty == "l0" else parameters
        factor = 1 - _spread(cut, decoder, window)[..., None, None] * edges_MM
        return watched_objective(decoder, rows, Intervention(attention_factor=factor), target, metric)

    keys = jax.random.split(key, len(index))
    # One case after the other: memory for one backward pass.
    slope_of = jax.value_and_grad(value, has_aux=True)
    (values, largest), slopes = jax.lax.map(lambda x: slope_of(parameters, *x), (index, keys))
    cuts, cost = jax.value_and_grad(_expected_cuts)(parameters, penalty)
    changes, state = optax.adam(learning_rate).update(strength * cost - slopes.mean(0), state, parameters)
    parameters = jnp.asarray(optax.apply_updates(parameters, changes))
    if penalty == "l1":
        parameters = jnp.asarray(optax.projections.projection_hypercube(parameters))
    return parameters, state, (values.mean(), cuts, largest.max())


def _spread(cut: jax.Array, decoder: Decoder, window: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cuts [L, N] of the whole model."""
    layers, heads = window
    of_heads = jnp.broadcast_to(cut if cut.ndim == 2 else cut[:, None], (len(layers), len(heads)))
    return jnp.zeros((decoder.cfg.num_layers, decoder.cfg.num_heads)).at[layers[:, None], heads].set(of_heads)


def _noisy(log_alpha: jax.Array, key: jax.Array) -> jax.Array:
    """A draw of hard-concrete cuts."""
    noise = jax.random.logistic(key, log_alpha.shape)
    return _stretched((noise + log_alpha) / TEMPERATURE)


def _stretched(x: jax.Array) -> jax.Array:
    return jnp.clip(jax.nn.sigmoid(x) * (HIGH - LOW) + LOW, 0.0, 1.0)


def _settled(parameters: jax.Array, penalty: Penalty) -> jax.Array:
    """Cuts without noise."""
    return _stretched(parameters) if penalty == "l0" else parameters


def _expected_cuts(parameters: jax.Array, penalty: Penalty) -> jax.Array:
    """How many gates are not open, in expectation; for L1 the summed cuts."""
    if penalty == "l1":
        return jnp.sum(parameters)
    return jnp.sum(jax.nn.sigmoid(parameters - TEMPERATURE * jnp.log(-LOW / HIGH)))
