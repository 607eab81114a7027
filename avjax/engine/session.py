"""One prompt under many variants: everything the executors share, prepared once.

Axes: I variant, P read-out position, D embed, V vocab, L layer, N heads, Q query set, C key class, T position.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from avjax.devices.arrays import on_device
from avjax.devices.mesh import MODEL, VARIANT
from avjax.edits.edits import Edit, name_of
from avjax.edits.grids import CLEAN
from avjax.engine.batches import Batch, Region, batches, longest, region
from avjax.engine.budget import Budget
from avjax.engine.clean_pass import (
    CleanPass,
    KeyLayout,
    SharedPrompt,
    clean_mass,
    clean_pass,
    key_layout,
    shared_keys,
)
from avjax.engine.clean_passes import clean_passes
from avjax.engine.clean_runs import CleanRuns, as_dtype
from avjax.engine.lowering import folded, lower
from avjax.engine.operations import EdgeOp
from avjax.engine.overflow import refuse_overflow
from avjax.engine.reads import Reads
from avjax.engine.reference import pad_inputs, reference_batch
from avjax.engine.replay import replay
from avjax.engine.touched import TouchedCounter
from avjax.model import Model
from avjax.models.attention import SharedKeys
from avjax.models.buckets import bucket
from avjax.models.intervention import Intervention
from avjax.models.layers import Embedding
from avjax.models.sites import Site
from avjax.prompts.compat import Compat, attention_compat, compatible_prompt
from avjax.prompts.prompt import Inputs, Prompt
from avjax.prompts.selectors import TokenGroups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A batch's final residuals at the read-out positions, attention masses, and the sizes that reveal an overflow."""

    variants: tuple[int, ...]
    residual: jax.Array  # I P D; I may be padded beyond `variants`
    mass: jax.Array | None  # float32 I L N Q C
    largest: jax.Array  # float32 I, the largest size of what a norm was fed


class Session:
    """A prompt, its variants and what is read of them; nothing is compiled before it is complete."""

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        variants: Sequence[Sequence[Edit]],
        *,
        reads: Reads | None = None,
        num_decoded: int | None = None,
        allow_noop: bool = False,
        compat: Compat | None = None,
        memory_bytes: int,
        num_slots: int = 0,
        kept_logits: int = 0,
        clean_runs: CleanRuns | None = None,
        with_clean: bool = False,
        dtype: DTypeLike | None = None,
    ):
        """See the class.

        Args:
          with_clean: the last variant has no edits, and the largest region of effect of the others.
          dtype: of activations; None is the model's own.
        """
        model.check(prompt)
        prompt = compatible_prompt(prompt, compat)
        self.model, self.prompt, self.reads = model, prompt, reads or Reads()
        self.compat = attention_compat(compat)
        self.variants, self.with_clean = variants, with_clean
        self.dtype = jnp.dtype(model.dtype if dtype is None else dtype)
        fed = len(self.reads.fed)
        self.num_reads = 1 + fed
        cfg, mesh = model.config.decoder, model.mesh
        self.lowered = lower(
            prompt,
            cfg,
            variants,
            num_decoded=max(self.reads.longest_fed, num_decoded or 0),
            allow_noop=allow_noop,
            clean=clean_runs or CleanRuns(model, compat, dtype=self.dtype),
            selectors=[mask for read in self.reads.attention for mask in (read.query, read.key)],
        )
        self.folded = folded(self.lowered)
        self.touched = TouchedCounter(self.lowered)
        self.num_positions = len(prompt) + fed
        self.size = bucket(self.num_positions)
        self.groups = _extended(self.lowered.groups, fed)
        regions = self.regions()
        self.clean_rows = longest(regions)
        self.budget = Budget(
            cfg=cfg,
            memory_bytes=memory_bytes,
            itemsize=self.dtype.itemsize,
            num_keys=self.size,
            num_reads=self.num_reads,
            num_groups=self.groups.num_groups,
            num_slots=num_slots,
            kept_logits=kept_logits,
            edges=self.has_edges,
            clean_rows=self.clean_rows,
            key_slots=len(self.layout.slots),
            masses=len(self.reads.attention) * len(self.layout.class_group),
            site_weights=self.folded.bank.weights_per_group * self.groups.num_groups,
            num_sources=self.folded.bank.num_dense + len(self.folded.bank.needs),
            variant_devices=1 if mesh is None else mesh.shape[VARIANT],
            model_devices=1 if mesh is None else mesh.shape[MODEL],
            on_cpu=(jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]).platform == "cpu",
        )
        self.planned = batches(regions, self.budget)

    @property
    def has_edges(self) -> bool:
        return any(isinstance(op, EdgeOp) for ops in self.lowered.ops for op in ops)

    def regions(self) -> list[Region]:
        """Each variant's region of effect, and of its readings."""
        first_read = len(self.prompt) - 1
        for read in self.reads.attention:
            first_read = min(first_read, int(self.reads.query_rows(read, len(self.prompt))[0]))
        regions = [
            region(self.folded, i, num_positions=self.num_positions, first_read=first_read)
            for i in range(len(self.folded))
        ]
        if self.with_clean and len(regions) > 1:
            regions[-1] = max(regions[:-1], key=lambda region: (region.num_rows, -region.start_layer))
        return regions

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The prompt and the tokens fed after it, padded to the bucket."""
        inputs = as_dtype(self.model.encode(self.prompt, self.lowered.groups), self.dtype)
        if fed := self.reads.fed:
            after = self.prompt.next_position() + np.asarray(self.reads.steps)
            branches = self.reads.branches
            positions = np.concatenate([self.prompt.positions, np.broadcast_to(after, (3, len(fed)))], axis=1)
            inputs = dataclasses.replace(
                inputs,
                embeddings=_with_tokens(self.model.network.decoder.embed, inputs.embeddings, on_device(fed)),
                positions=on_device(positions, np.int32),
                groups=on_device(self.groups.prompt),
                length=on_device(self.num_positions, np.int32),
                branches=None if branches is None else on_device(np.pad(branches, (len(self.prompt), 0))),
            )
        return pad_inputs(inputs, self.size)

    @functools.cached_property
    def layout(self) -> KeyLayout:
        """Which positions edits and masses tell apart as keys."""
        keys = {op.key.tobytes() for ops in self.lowered.ops for op in ops if isinstance(op, EdgeOp)}
        keys |= {read.key.tobytes() for read in self.reads.attention}
        return key_layout(self.groups, [self.lowered.members[k] for k in sorted(keys)], self.size)

    @functools.cached_property
    def shared(self) -> SharedPrompt:
        """The clean pass, and its keys and values laid out for replays."""
        masses, branches = bool(self.reads.attention), self.reads.branches
        clean = clean_passes(self.model.host).take(
            self.prompt.digest(),
            (
                str(self.dtype),
                (self.size, self.num_reads),
                (self.reads.fed, None if branches is None else branches.tobytes()),
                (self.clean_rows, self.groups.prompt.tobytes(), self.groups.num_groups) if masses else None,
            ),
            self.clean_rows,
            jax.tree.leaves(self.model.network),
            lambda: clean_pass(
                self.model.network.decoder,
                self.inputs,
                np.int32(len(self.prompt) - 1),
                num_rows=self.clean_rows,
                num_reads=self.num_reads,
                want_mass=masses,
            ),
            self.budget.memory_bytes - self._planned_bytes(),
        )
        layout = self.layout
        shared = shared_keys(clean, layout.slots, layout.block_class)
        return self._with_classes(clean, shared, layout.group_class, layout.class_group)

    def _planned_bytes(self) -> int:
        """What the clean pass and the largest batch take."""
        batches = (self.budget.variant_bytes(batch.num_rows) * batch.size for batch in self.planned)
        return self.budget.shared_bytes() + max(batches, default=0)

    def without_shared_keys(self) -> SharedPrompt:
        """What the reference executor decodes over: each variant owns its whole prompt."""
        cfg = self.model.config.decoder
        empty = jnp.zeros((cfg.num_layers, cfg.num_kv_heads, 0, cfg.head_dim), self.dtype)
        none = jnp.zeros(0, jnp.int32)
        shared = SharedKeys(keys=empty, values=empty, positions=none, block_class=none)
        nothing = jnp.float32(0)
        clean = CleanPass(keys=none, values=none, residual=none, final=none, mass=None, largest=nothing)
        each = np.arange(self.groups.num_groups, dtype=np.int32)  # every group is a class of its own
        return self._with_classes(clean, shared, each, each)

    def _with_classes(
        self, clean: CleanPass, shared: SharedKeys, group_class: np.ndarray, class_group: np.ndarray
    ) -> SharedPrompt:
        return SharedPrompt(
            inputs=self.inputs,
            clean=clean,
            shared=shared,
            group_class=on_device(group_class),
            class_group=on_device(class_group),
            first_read=on_device(len(self.prompt) - 1, np.int32),
        )

    @functools.cached_property
    def sources(self) -> dict[Site, Any]:
        return self.folded.bank.sources(self.size)

    def stacked(self, variants: Sequence[int]) -> Intervention:
        """Folded variants for a replay."""
        return dataclasses.replace(self.folded.interventions(variants), sources=self.sources)

    def unfolded(self, variants: Sequence[int]) -> Intervention:
        """Variants for full forward passes."""
        return dataclasses.replace(self.lowered.interventions(variants), sources=self.unfolded_sources)

    @functools.cached_property
    def unfolded_sources(self) -> dict[Site, Any]:
        return self.lowered.bank.sources(self.size)

    def query_weights(self, num_rows: int) -> jax.Array | None:
        """float32 [Q, R]: the mean over each query selector's rows among the last `num_rows`."""
        if not self.reads.attention:
            return None
        first = max(0, self.num_positions - num_rows)
        weights = np.zeros((len(self.reads.attention), max(num_rows, self.num_positions - first)), np.float32)
        for row, read in enumerate(self.reads.attention):
            where = self.reads.query_rows(read, len(self.prompt))
            weights[row, where - first] = 1 / len(where)
        return jnp.asarray(weights[:, :num_rows])

    def begin(self) -> None:
        """Starts the clean pass, which runs while the caller goes on."""
        _ = self.shared

    def clean_reading(self) -> Reading:
        """The unedited run, from the clean pass itself."""
        weights = self.query_weights(self.clean_rows)
        mass = None if weights is None else _clean_mass(self.shared, weights)[None]
        clean = self.shared.clean
        residual, largest = _as_variants((clean.final, clean.largest))
        return Reading(variants=(CLEAN,), residual=residual, mass=mass, largest=largest)

    def refuse_overflow(self, variants: Sequence[int], largest: np.ndarray) -> None:
        """Refuses variants whose norms were fed more than they can square, [I, ...]; see `avjax.engine.overflow`.

        Raises:
          ActivationOverflow: the first such variant is named.
        """
        refuse_overflow(
            largest, lambda place: name_of(() if variants[place] == CLEAN else self.variants[variants[place]])
        )

    def replayed(self) -> Iterator[Reading]:
        """Batches of variants, each from its first dirty layer and row on."""
        for batch in self.planned:
            replayed = self.replay_batch(batch)
            yield Reading(
                variants=batch.variants, residual=replayed.residual, mass=replayed.mass, largest=replayed.largest
            )

    def replay_batch(self, batch: Batch, *, keep_cache: bool = False) -> Any:
        return replay(
            self.model.network.decoder,
            self.shared,
            self.stacked(batch.padded()),
            np.int32(batch.start_layer),
            self.query_weights(batch.num_rows),
            num_variants=batch.size,
            num_rows=batch.num_rows,
            keep_cache=keep_cache,
            compat=self.compat,
        )

    def referenced(self) -> Iterator[Reading]:
        """A full forward pass per variant: what replays must equal."""
        reads = jnp.arange(len(self.prompt) - 1, len(self.prompt) - 1 + self.num_reads)
        weights = self.query_weights(self.size)
        size = self.budget.references()
        for start in range(0, len(self.lowered), size):
            variants = tuple(range(start, min(start + size, len(self.lowered))))
            residual, largest, mass = reference_batch(
                self.model.network.decoder,
                self.inputs,
                self.unfolded(variants),
                reads,
                weights,
                jnp.asarray(self.layout.group_class),
                num_variants=len(variants),
                num_classes=len(self.layout.class_group),
                compat=self.compat,
            )
            yield Reading(variants=variants, residual=residual, mass=mass, largest=largest)


_clean_mass = jax.jit(clean_mass)
_as_variants = jax.jit(functools.partial(jax.tree.map, lambda leaf: leaf[None]))


@jax.jit
def _with_tokens(embed: Embedding, embeddings: jax.Array, token_ids: jax.Array) -> jax.Array:
    return jnp.concatenate([embeddings, embed(token_ids).astype(embeddings.dtype)])


def _extended(groups: TokenGroups, fed: int) -> TokenGroups:
    """The partition with `fed` generated tokens after the prompt."""
    return dataclasses.replace(groups, prompt=np.concatenate([groups.prompt, np.full(fed, groups.generated)]))
