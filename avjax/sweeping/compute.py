"""A sweep in this process: sessions one after the other, their readings scored in blocks of variants."""

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.devices.processes import Team
from avjax.edits.edits import Edit
from avjax.edits.grids import Grid
from avjax.engine.budget import NoRoom
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.generate import Executor, decoded, generation_penalty
from avjax.engine.scoring import (
    Attended,
    block_size,
    blocks,
    first_of_block,
    places_of,
    read_block,
    score,
)
from avjax.engine.session import Session
from avjax.metrics import Caption, Metric
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.compat import Compat
from avjax.prompts.prompt import Prompt, common_order, named_prompts
from avjax.provenance import provenance
from avjax.sweeping.columns import Columns
from avjax.sweeping.floor import drawn_cells, drawn_samples
from avjax.sweeping.joining import join_samples
from avjax.sweeping.prepare import Pass, Sweep, prepare
from avjax.sweeping.slices import Slice, run_slices, slices_here


def computed(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    executor: Executor = "replay",
    memory_bytes: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    progress: bool = True,
    floor: bool = True,
    drawn: Collection[Any] | None = None,
) -> xr.Dataset:
    """`avjax.sweep` without a store, each slice of the model's mesh at work on its share of the prompts.

    Args:
      floor: whether the noise floor is measured.
      drawn: samples of which cells may be computed again for it; None takes some of those given.
    """
    settings = {"memory_bytes": memory_bytes, "compat": compat, "allow_noop": allow_noop, "floor": floor}
    prepared = prepare_slices(model, prompts, grid, metrics, **settings)
    return prepared.compute(executor=executor, progress=progress, drawn=drawn)


def compute_prepared(sweep: Sweep, *, executor: Executor, drawn: Collection[Any]) -> xr.Dataset:
    """`computed` of what is prepared on a model that is no slice of another."""
    whole = Slice(index=0, count=1, model=sweep.model)
    prepared = PreparedSlices(
        model=sweep.model, prompts=sweep.prompts, compat=sweep.compat, slices=[whole], by_slice={0: sweep}
    )
    return prepared.compute(executor=executor, progress=False, drawn=drawn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSlices:
    """A sweep that is checked on each slice of the model's mesh, ready to be computed once.

    Attributes:
      by_slice: what each slice here computes, by its index.
    """

    model: Model
    prompts: Mapping[Any, Prompt]
    compat: Compat | None
    slices: Sequence[Slice]
    by_slice: Mapping[int, Sweep]

    def compute(
        self, *, executor: Executor = "replay", progress: bool = True, drawn: Collection[Any] | None = None
    ) -> xr.Dataset:
        """The dataset; see `computed`. Sessions are used up."""
        order = common_order(self.prompts.values())
        attributes = provenance(self.model, executor=executor, compat=self.compat, order=order)

        def swept(part: Slice) -> xr.Dataset:
            own = self.by_slice[part.index]
            again = drawn_samples([*own.prompts], len(own.cells.cells)) if drawn is None else drawn
            return _swept(own, executor, attributes, again, progress and part is self.slices[0])

        team = Team(self.model.mesh)
        return _in_order(team.merged(run_slices(swept, self.slices, team)), [*self.prompts])


def prepare_slices(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    compat: Compat | None = None,
    **settings: Any,
) -> PreparedSlices:
    """Checks a sweep on each slice of the model's mesh; `settings` are those of `prepare`.

    Raises:
      ValueError: something does not fit.
    """
    named = named_prompts(prompts)
    parts, team = [part for part in slices_here(model) if part.deal(named)], Team(model.mesh)

    def checked(part: Slice) -> Sweep:
        return prepare(part.model, part.deal(named), grid, metrics, compat=compat, **settings)

    by_slice = run_slices(checked, parts, team, in_turn=True)
    return PreparedSlices(model=model, prompts=named, compat=compat, slices=parts, by_slice=by_slice)


def _swept(
    planned: Sweep, executor: Executor, attributes: Mapping[str, Any], drawn: Collection[Any], progress: bool
) -> xr.Dataset:
    columns = Columns(planned)
    steps = len(planned.prompts) * len(planned.parts) * (len(planned.cells.cells) + 1)  # and the clean cell
    precisely = planned.floor and not planned.rides_clean
    exact_runs = CleanRuns(planned.model, planned.compat, dtype=np.float32)
    with Progress("sweep", steps, "cells", enabled=progress) as bar:
        for sample, name in enumerate(planned.prompts):
            for place, one in enumerate(planned.parts):
                session = planned.sessions.pop((name, place))
                if isinstance(one, Caption):
                    penalty = generation_penalty(session)
                    columns.add_captions(sample, one, decoded(session, one.limit, penalty, executor))
                    bar.advance(len(planned.cells.cells) + 1)
                    continue
                session.begin()
                columns.add_touched(sample, session, one)  # while the device is busy
                for variants, values in _ahead(_scored(session, one, executor), 1):
                    columns.add(sample, one, variants, values)
                    bar.advance(sum(variant < len(planned.cells.cells) for variant in variants))
                del session  # and with it, what it keeps on the device
                if precisely and name in drawn:
                    cells = drawn_cells(len(planned.cells.cells))
                    if (exact := _in_float32(planned, name, one, cells, exact_runs)) is not None:
                        columns.add_float32(sample, cells, exact)
    return columns.dataset(attributes)


def _in_float32(planned: Sweep, name: Any, one: Pass, cells: np.ndarray, clean_runs: CleanRuns) -> Columns | None:
    """Some cells of a sample, with float32 activations; None where the memory does not suffice for them."""
    variants = [planned.variants(name)[cell] for cell in cells]
    try:
        session = planned.session(planned.prompts[name], one, variants, dtype=np.float32, clean_runs=clean_runs)
    except NoRoom:
        return None
    columns = Columns(planned, size=(len(cells), 1))
    for block, values in _scored(session, one, "replay"):
        columns.add(0, one, block, values)
    return columns


def _in_order(by_slice: Mapping[int, xr.Dataset], samples: Sequence[Any]) -> xr.Dataset:
    """The slices' datasets as one, samples as they were given."""
    if len(by_slice) == 1:
        return next(iter(by_slice.values()))
    how: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}
    joined = join_samples([*by_slice.values()], **how)
    dealt = [name for index in by_slice for name in samples[index :: len(by_slice)]]
    return joined.isel(sample=[dealt.index(name) for name in samples])


def _scored(session: Session, one: Pass, executor: Executor) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    """Blocks of variants with the metrics' values; the clean run is variant `CLEAN`."""
    model, prompt = session.model, session.prompt
    decoder = model.network.decoder
    predictors, continued, spans = session.reads.predictors, session.reads.continued, one.spans()
    prepared = [metric.prepare(model, prompt) for metric in one.metrics]
    attended = _attended(session, one)
    tokens = one.unembedded(model)
    places = places_of([metric.read_tokens(model) for metric in one.metrics], tokens)
    num_tokens = decoder.cfg.vocab_size if tokens is None else len(tokens)
    compiled = tuple(metric.compiled_form() for metric in one.metrics)
    size = block_size(len(session.lowered) + 1, session.num_reads, num_tokens, session.budget.memory_bytes)
    readings = session.replayed() if executor == "replay" else session.referenced()
    clean = None
    for variants, residual, mass in blocks(session, _ahead(itertools.chain([session.clean_reading()], readings)), size):
        logits, logprobs = read_block(decoder, residual, predictors, continued, tokens)
        if clean is None:
            clean = first_of_block(logits, logprobs, mass)
        yield variants, score(logits, logprobs, mass, clean, prepared, attended, places, spans, metrics=compiled)


def _ahead(results: Iterator[Any], count: int = 2) -> Iterator[Any]:
    """The same, begun `count` results ahead: the host prepares a batch while the device computes the one before."""
    waiting: collections.deque[Any] = collections.deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _attended(session: Session, one: Pass) -> list[Attended | None]:
    """Where each metric's mass lies among query sets and key classes, and its keys' share of what is visible."""
    places: list[Attended | None] = []
    index = 0
    for metric in one.metrics:
        if metric.attention() is None:
            places.append(None)
            continue
        read = session.reads.attention[index]
        members = session.lowered.members[read.key.tobytes()]
        classes = members[session.layout.class_group].astype(np.float32)
        share = session.reads.key_share(read, len(session.prompt))
        places.append(Attended(query_set=jnp.int32(index), classes=jnp.asarray(classes), key_share=jnp.float32(share)))
        index += 1
    return places
