"""From the edits of many variants of one prompt to arrays over token groups.

Axes: I variant, L layer, N heads, M token group, T position, S dense sources, V vectors.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.devices.arrays import on_device
from avjax.edits.edits import Edit, name_of
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.operations import EdgeOp, Op, SiteOp, operations
from avjax.models.buckets import source_bucket
from avjax.models.config import DecoderConfig
from avjax.models.intervention import Intervention
from avjax.models.sites import Site, SiteEdit, SiteSources, num_site_heads, site_shape
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import TokenGroups, partition

GROUP_BUCKETS = (2, 4, 8, 16, 32, 64, 128)
FACTOR_PRODUCTS = (1e-31, 1e31)  # of the edits of one edge: float32 still weighs them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """Variants of one prompt, ready to become arrays, a few at a time.

    Attributes:
      ops: each variant's operations.
      groups: a partition of positions of which every selector is a union, padded to a bucket.
      members: bool [M] by position mask (its bytes).
    """

    prompt: Prompt
    config: DecoderConfig
    ops: tuple[tuple[Op, ...], ...]
    groups: TokenGroups
    members: dict[bytes, np.ndarray]
    bank: "Bank"

    def __len__(self) -> int:
        return len(self.ops)

    def interventions(self, variants: Sequence[int]) -> Intervention:
        """Stacked variants, leaves leading with I; without sources, which `bank.sources` holds for all of them."""
        factors = None
        if any(isinstance(op, EdgeOp) for ops in self.ops for op in ops):
            factors = on_device(np.stack([self.factor(i) for i in variants]))
        sites = {site: self._site_edits(site, variants) for site in self.bank.sites}
        return Intervention(attention_factor=factors, sites=sites)

    def intervention(self, variant: int, num_positions: int) -> Intervention:
        """One variant with its sources, for a prompt padded to `num_positions`."""
        stacked = self.interventions([variant])
        one = jax.tree.map(lambda leaf: leaf[0], stacked)
        return dataclasses.replace(one, sources=self.bank.sources(num_positions))

    def factor(self, variant: int, dtype: type = np.float32) -> np.ndarray:
        """[L, N, M, M] of one variant; edits multiply."""
        cfg, size = self.config, self.groups.num_groups
        factor = np.ones((cfg.num_layers, cfg.num_heads, size, size), dtype)
        for op in self.ops[variant]:
            if isinstance(op, EdgeOp):
                query, key = (np.flatnonzero(self.members[m.tobytes()]).tolist() for m in (op.query, op.key))
                factor[np.ix_(op.layers, op.heads, query, key)] *= dtype(op.factor)
        return factor

    def pattern(self, ops: Sequence[EdgeOp]) -> np.ndarray:
        """float32 [M, M] of a head and layer in which these edits apply."""
        factor = np.ones((self.groups.num_groups,) * 2, np.float32)
        for op in ops:
            query, key = (np.flatnonzero(self.members[m.tobytes()]).tolist() for m in (op.query, op.key))
            factor[np.ix_(query, key)] *= np.float32(op.factor)
        return factor

    def _site_edits(self, site: Site, variants: Sequence[int]) -> SiteEdit:
        bank = self.bank.entries[site]
        heads = num_site_heads(site, self.config)
        shape = (
            len(variants),
            self.bank.num_layers(site),
            self.groups.num_groups,
            *(() if heads is None else (heads,)),
        )
        scale = np.ones(shape, np.float32)
        dense = np.zeros((*shape, source_bucket(len(bank.dense))), np.float32)
        vector = np.zeros((*shape, source_bucket(len(bank.vectors))), np.float32)
        for row, variant in enumerate(variants):
            for place, op in enumerate(self.ops[variant]):
                if not isinstance(op, SiteOp) or op.site is not site:
                    continue
                groups = np.flatnonzero(self.members[op.where.tobytes()]).tolist()
                layers = [0] if shape[1] == 1 else list(op.layers)
                cells = np.ix_(layers, groups) if heads is None else np.ix_(layers, groups, list(op.heads or ()))
                for array in (scale, dense, vector):
                    array[row][cells] *= np.float32(op.scale)
                if op.source is not None:
                    weights = vector if op.source.rows is None else dense
                    weights[row][..., bank.slots[variant, place]][cells] += np.float32(op.weight)
        return SiteEdit(scale=jnp.asarray(scale), dense_weight=jnp.asarray(dense), vector_weight=jnp.asarray(vector))


@dataclasses.dataclass(kw_only=True)
class _Entries:
    """The sources of one site; values are functions, called when arrays are asked for."""

    dense: list[tuple[Callable[[], Any], np.ndarray, int]] = dataclasses.field(default_factory=list)  # rows, shift
    vectors: list[tuple[Callable[[], Any], int]] = dataclasses.field(default_factory=list)
    keys: dict[Any, list[int]] = dataclasses.field(default_factory=dict)
    slots: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)  # by variant and operation


class Bank:
    """The sources that the operations mix in, each held once."""

    def __init__(self, variants: Sequence[Sequence[Op]], config: DecoderConfig, *, final: bool):
        """`final`: resid_post holds the last layer alone."""
        self.config, self.final = config, final
        self.entries: dict[Site, _Entries] = {}
        self._needs: dict[tuple[int, Site], tuple[Prompt, Site]] = {}
        for variant, ops in enumerate(variants):
            for place, op in enumerate(ops):
                if isinstance(op, SiteOp):
                    self._add(op, variant, place)

    def _add(self, op: SiteOp, variant: int, place: int) -> None:
        entries = self.entries.setdefault(op.site, _Entries())
        if op.source is None:
            return
        entries.slots[variant, place] = self._slot(entries, op)
        if op.source.needs is not None:
            prompt, site = op.source.needs
            self._needs[id(prompt), site] = (prompt, site)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.entries)

    @property
    def num_dense(self) -> int:
        """How many [L, T, ...] arrays the sources take."""
        return sum(len(entries.dense) for entries in self.entries.values())

    @property
    def needs(self) -> list[tuple[Prompt, Site]]:
        """The clean passes, and their sites, that the sources are made of; each once."""
        return list(self._needs.values())

    @property
    def weights_per_group(self) -> int:
        """How many floats one variant's edits of sites take for each token group."""
        return sum(
            self.num_layers(site)
            * (num_site_heads(site, self.config) or 1)
            * (1 + source_bucket(len(entries.dense)) + source_bucket(len(entries.vectors)))
            for site, entries in self.entries.items()
        )

    def num_layers(self, site: Site) -> int:
        return 1 if self.final and site is Site.RESID_POST else self.config.num_layers

    @staticmethod
    def _slot(entries: _Entries, op: SiteOp) -> int:
        source, shift = op.source, op.shift
        assert source is not None
        known = entries.keys.setdefault((source.key, shift), [])
        if source.rows is None:
            if not known:
                known.append(len(entries.vectors))
                entries.vectors.append((source.values, shift))
            return known[0]
        for slot in known:
            rows = entries.dense[slot][1]
            agree = (rows == source.rows) | (rows < 0) | (source.rows < 0)
            if agree.all():
                np.copyto(rows, source.rows, where=rows < 0)
                return slot
        known.append(len(entries.dense))
        entries.dense.append((source.values, source.rows.copy(), shift))
        return known[-1]

    def sources(self, num_positions: int) -> dict[Site, SiteSources]:
        """Arrays for a prompt padded to `num_positions`."""
        return {site: self._assembled(site, entries, num_positions) for site, entries in self.entries.items()}

    def _assembled(self, site: Site, entries: _Entries, size: int) -> SiteSources:
        shape, layers = site_shape(site, self.config), self.num_layers(site)
        dense = [self._by_layer(_placed(source(), rows, size), shift, layers) for source, rows, shift in entries.dense]
        vectors = [
            self._by_layer(jnp.asarray(source(), jnp.float32), shift, layers) for source, shift in entries.vectors
        ]
        return SiteSources(dense=_stacked(dense, (layers, size, *shape)), vectors=_stacked(vectors, (layers, *shape)))

    def _by_layer(self, values: jax.Array, shift: int, layers: int) -> jax.Array:
        if layers == 1:
            return values[-1:]
        if values.shape[0] == 1:  # the embedding, which is layer 0's
            return jnp.concatenate([values, jnp.zeros((layers - 1, *values.shape[1:]), values.dtype)])
        if shift:
            return jnp.concatenate([jnp.zeros_like(values[:shift]), values[:-shift]])
        return values


def _placed(values: Any, rows: np.ndarray, size: int) -> jax.Array:
    """[L, size, ...]: each position's row of the source, zero where there is none."""
    values = jnp.asarray(values)
    index = np.pad(rows, (0, size - len(rows)), constant_values=-1)
    known = jnp.asarray(index >= 0).reshape(1, -1, *(1,) * (values.ndim - 2))
    return jnp.where(known, values[:, np.maximum(index, 0)], 0)


def _stacked(arrays: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """[L, S, ...], S padded to a bucket."""
    missing = source_bucket(len(arrays)) - len(arrays)
    dtype = arrays[0].dtype if arrays else jnp.float32
    arrays = [*arrays, *[jnp.zeros(shape, dtype)] * missing]
    return jnp.stack(arrays, axis=1) if arrays else jnp.zeros((shape[0], 0, *shape[1:]), dtype)


def lower(
    prompt: Prompt,
    config: DecoderConfig,
    variants: Sequence[Sequence[Edit]],
    *,
    num_decoded: int,
    allow_noop: bool = False,
    clean: CleanRuns,
    selectors: Sequence[np.ndarray] = (),
) -> Lowered:
    """Every variant over one partition of the prompt.

    Args:
      variants: the edits of each variant; an empty one is the clean model.
      num_decoded: how many generated tokens can become queries; 0 when nothing is generated.
      allow_noop: let an edit touch nothing.
      clean: activations of clean passes, for edits that need them.
      selectors: more position masks of which groups must be able to make up.

    Raises:
      ValueError: a selector, layer or head is out of range, or an edit touches nothing; the rule is named.
    """
    ops = tuple(
        operations(edits, prompt, config, num_decoded=num_decoded, allow_noop=allow_noop, clean=clean)
        for edits in variants
    )
    ops = tuple(tuple(_at_layer_zero(op) for op in variant) for variant in ops)
    masks = [mask for variant in ops for op in variant for mask in _masks(op)] + list(selectors)
    distinct = {mask.tobytes(): mask for mask in masks}
    groups = _padded(partition(list(distinct.values()), len(prompt)))
    members = dict(zip(distinct, groups.members, strict=True))
    bank = Bank(ops, config, final=False)
    clean.expect(bank.needs)
    lowered = Lowered(prompt=prompt, config=config, ops=ops, groups=groups, members=members, bank=bank)
    _refuse_extremes(lowered, variants)
    return lowered


def _refuse_extremes(lowered: Lowered, variants: Sequence[Sequence[Edit]]) -> None:
    """Refuses edges whose factors together leave what float32 can weigh."""
    low, high = FACTOR_PRODUCTS
    for index, ops in enumerate(lowered.ops):
        factors = [op.factor for op in ops if isinstance(op, EdgeOp) and op.factor]
        bounds = math.prod(f for f in factors if f < 1), math.prod(f for f in factors if f > 1)
        if low <= bounds[0] and bounds[1] <= high:
            continue
        products = lowered.factor(index, np.float64)
        if ((products != 0) & ((products < low) | (products > high))).any():
            raise ValueError(
                f"{name_of(variants[index])}: expected attention factors whose product on an edge is 0 or within "
                f"{low:g} to {high:g}; use a knockout, or factors closer to 1"
            )


def folded(lowered: Lowered) -> Lowered:
    """The same variants, with edits after a layer written as edits before the next one, where a replay can start.

    What is left at `resid_post` is the last layer's.
    """
    last = lowered.config.num_layers - 1
    variants = []
    for ops in lowered.ops:
        # Moved edits stand before those that are at resid_pre already: the layer before ends first.
        moved: list[Op] = []
        rest: list[Op] = []
        for op in ops:
            if not isinstance(op, SiteOp) or op.site is not Site.RESID_POST:
                rest.append(op)
                continue
            inner = tuple(layer + 1 for layer in op.layers if layer < last)
            if inner:
                moved.append(dataclasses.replace(op, site=Site.RESID_PRE, layers=inner, shift=1))
            if last in op.layers:
                rest.append(dataclasses.replace(op, layers=(last,)))
        variants.append((*moved, *rest))
    bank = Bank(variants, lowered.config, final=True)
    return dataclasses.replace(lowered, ops=tuple(variants), bank=bank)


def _at_layer_zero(op: Op) -> Op:
    """An edit of the embeddings is one of layer 0's input."""
    if isinstance(op, SiteOp) and op.site is Site.EMBED:
        return dataclasses.replace(op, site=Site.RESID_PRE, layers=(0,))
    return op


def _masks(op: Op) -> tuple[np.ndarray, ...]:
    return (op.query, op.key) if isinstance(op, EdgeOp) else (op.where,)


def _padded(groups: TokenGroups) -> TokenGroups:
    """Pads M to a bucket with groups that no position has, so that few executables serve all rules."""
    size = next((b for b in GROUP_BUCKETS if b >= groups.num_groups), groups.num_groups)
    extra = (0, size - groups.num_groups)
    members = tuple(np.pad(mask, extra) for mask in groups.members)
    return dataclasses.replace(groups, num_groups=size, members=members)
