"""`sweep`: every cell of a grid on every prompt, reduced to metrics, as one labelled dataset."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.api import checked_compat
from avjax.engine.activations import CleanRuns
from avjax.engine.scoring import (
    Attended,
    block_size,
    blocks,
    check_values,
    first_of_block,
    places_of,
    read_block,
    score,
    unembedded,
)
from avjax.engine.session import Reads, Session, with_fed
from avjax.generation import Executor, checked_executor, decoded, generation_penalty, num_slots
from avjax.grids import Cells, Grid, as_cells
from avjax.interventions import Edit, for_sample
from avjax.metrics import Caption, Metric
from avjax.model import Model
from avjax.models.attention import Compat
from avjax.prompt import Prompt, named_prompts
from avjax.provenance import provenance
from avjax.report.progress import Progress
from avjax.slices import Slice, Team, at_once, memory_of, slices_here
from avjax.tokens import select

CELL = "cell"  # the coordinate that says in words what a cell does
COUNTS = ("edges", "positions", "blocked_queries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Metrics that one pass over a prompt can serve."""

    continuation: tuple[int, ...]
    metrics: tuple[Metric, ...]

    def unembedded(self, model: Model) -> np.ndarray | None:
        """The token ids whose logits the pass computes; None is the whole vocabulary."""
        wanted = [metric.read_tokens(model) for metric in self.metrics]
        return unembedded(wanted, len(self.continuation), model.config.decoder.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep whose parts all fit together; nothing has been compiled yet."""

    model: Model
    prompts: dict[Any, Prompt]
    cells: Cells
    passes: tuple[Pass, ...]
    captions: tuple[Caption, ...]
    compat: Compat | None
    allow_noop: bool
    memory_bytes: int
    clean_runs: CleanRuns
    sessions: dict[tuple[Any, int], Session] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[Pass | Caption, ...]:
        """What each prompt is run for."""
        return (*self.passes, *self.captions)

    def variants(self, sample: Any) -> list[tuple[Edit, ...]]:
        """Each cell's edits on one sample."""
        return [for_sample(cell.edits, sample, self.allow_noop) for cell in self.cells.cells]

    def num_decoded(self) -> int:
        """The most generated tokens that any metric feeds back."""
        fed = [len(p.continuation) - 1 for p in self.passes] + [c.max_new_tokens - 1 for c in self.captions]
        return max(0, *fed)

    def session(self, prompt: Prompt, one: Pass | Caption, variants: Sequence[Sequence[Edit]]) -> Session:
        """One prompt for one pass or caption.

        Raises:
          ValueError: an edit does not fit the prompt, or the memory does not suffice.
        """
        slots = num_slots(one.max_new_tokens) if isinstance(one, Caption) else 0
        return Session(
            self.model,
            prompt,
            variants,
            reads=Reads() if isinstance(one, Caption) else _reads(prompt, one),
            num_decoded=self.num_decoded(),
            allow_noop=self.allow_noop,
            compat=self.compat,
            memory_bytes=self.memory_bytes,
            num_slots=slots,
            clean_runs=self.clean_runs,
        )


def sweep(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    store: str | os.PathLike[str] | None = None,
    executor: Executor = "replay",
    memory_bytes: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Every cell of a grid on every prompt.

    Args:
      prompts: one, several, or several by name.
      grid: `avjax.grid(...)`; or an edit, a rule string, or a list of variants, whose dimension is then `variant`.
      metrics: of `avjax.metrics`, or your own.
      store: a directory, local or of an object store (gs://...), that keeps cells as they are done: a sweep that was
        stopped goes on where it was, and several processes share it. See `avjax.runs`.
      executor: "replay" computes only what each cell changes; "reference" runs a full forward pass per cell. Both
        give the same to rounding.
      memory_bytes: what the sweep may use beside the parameters; by default half of what the device has free.
      compat, allow_noop: see `avjax.run`.
      progress: show a bar with rate and time left when it takes long.

    Returns:
      A dataset whose dimensions are the grid's axes and `sample`, with a variable per metric; beside each the unedited
      run's as `NAME_clean`. `edges`, `positions` and `blocked_queries` say what each cell touched, `cell` what it does.

    Raises:
      ValueError: something does not fit, such as a store that holds another sweep; all of it is found before anything
        is compiled.
      OverflowError: a cell's activations grew beyond float32; the cell is named.
    """
    checked_executor(executor)
    if store is not None:
        from avjax.runs.stored import stored_sweep

        settings = {"executor": executor, "memory_bytes": memory_bytes, "compat": compat, "allow_noop": allow_noop}
        return stored_sweep(model, prompts, grid, metrics, store, progress=progress, **settings)
    settings = {"memory_bytes": memory_bytes, "compat": compat, "allow_noop": allow_noop}
    named = named_prompts(prompts)
    parts, team = [part for part in slices_here(model) if part.deal(named)], Team(model.mesh)
    attributes = provenance(model, executor=executor, compat=compat)

    def checked(part: Slice) -> Sweep:
        return prepare(part.model, part.deal(named), grid, metrics, **settings)

    def swept(part: Slice) -> xr.Dataset:
        return _swept(planned[part.index], executor, attributes, progress and part is parts[0])

    planned = at_once(checked, parts, team, in_turn=True)
    return _in_order(team.gathered(at_once(swept, parts, team)), [*named])


def _swept(planned: Sweep, executor: Executor, attributes: Mapping[str, Any], progress: bool) -> xr.Dataset:
    model, columns = planned.model, Columns(planned)
    steps = len(planned.prompts) * len(planned.parts) * (len(planned.cells.cells) + 1)  # and the clean cell
    with Progress("sweep", steps, "cells", enabled=progress) as bar:
        for sample, name in enumerate(planned.prompts):
            for place, one in enumerate(planned.parts):
                session = planned.sessions.pop((name, place))  # and with it, what it keeps on the device
                if isinstance(one, Caption):
                    penalty = generation_penalty(model, session.prompt, None)
                    columns.add_captions(sample, one, decoded(session, one.max_new_tokens, penalty, executor))
                    bar.advance(len(planned.cells.cells) + 1)
                    continue
                session.begin()
                columns.add_touched(sample, session, planned.num_decoded())  # while the device is busy
                for variants, values in _ahead(_scored(session, one, executor), 1):
                    columns.add(sample, one, variants, values)
                    bar.advance(len(variants))
    return columns.dataset(attributes)


def _in_order(found: Mapping[int, xr.Dataset], samples: Sequence[Any]) -> xr.Dataset:
    """The slices' datasets as one, samples as they were given."""
    if len(found) == 1:
        return next(iter(found.values()))
    one = xr.concat(
        [*found.values()], "sample", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    dealt = [name for index in found for name in samples[index :: len(found)]]
    return one.isel(sample=[dealt.index(name) for name in samples])


def prepare(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    memory_bytes: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    clean_runs: CleanRuns | None = None,
) -> Sweep:
    """Checks that everything fits together.

    Args:
      clean_runs: where sources find activations; by default, in clean passes.

    Raises:
      ValueError: it does not; the message says what was expected, what came, and what to do.
    """
    named = named_prompts(prompts)
    cells = as_cells(grid, model.config.decoder)
    if isinstance(metrics, type):
        raise TypeError(
            f"metrics: expected a metric, got the class {metrics.__name__}; call it: {metrics.__name__}(...)"
        )
    several = [metrics] if isinstance(metrics, Metric) else list(metrics)
    if not several:
        raise ValueError("metrics: expected at least one, got none")
    for metric in several:
        if not isinstance(metric, Metric):
            raise TypeError(f"metrics: expected a Metric, got {type(metric).__name__}: {metric!r}")
        if type(metric).__hash__ is None:
            raise TypeError(f"metrics: {type(metric).__name__} cannot be hashed; declare it dataclass(frozen=True)")
    names = [m.name for m in several]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"metrics: {twice[0]!r} occurs twice; give one of them another name=")
    captions = tuple(m for m in several if isinstance(m, Caption))
    read = [m for m in several if not isinstance(m, Caption)]
    planned = Sweep(
        model=model,
        prompts=named,
        cells=cells,
        passes=_passes(model, read),
        captions=captions,
        compat=checked_compat(compat, named.values()),
        allow_noop=allow_noop,
        memory_bytes=memory_of(model, memory_bytes),
        clean_runs=clean_runs or CleanRuns(model),
    )
    return dataclasses.replace(planned, sessions=_check(planned))


def _refuse_collisions(
    cells: Cells, names: Mapping[str, Sequence[str]], shapes: Mapping[Metric, Sequence[int]]
) -> None:
    """Each name of the dataset may mean one thing.

    Args:
      names: of each metric's variables.
      shapes: of one value of each metric.
    """
    taken: dict[str, str] = dict.fromkeys(("sample", CELL, *COUNTS), "a name of the dataset's own")
    for metric, variables in names.items():
        for name in (v + suffix for v in variables for suffix in ("", "_clean")):
            if name in taken:
                raise ValueError(f"metric {metric!r}: its variable {name!r} is {taken[name]} too; pass another name=")
            taken[name] = f"a variable of the metric {metric!r}"
    for dim in sorted({dim for dims in dimensions(shapes).values() for dim in dims}):
        if dim in taken:
            raise ValueError(f"metrics: {dim!r} is {taken[dim]} and a dimension of a metric too; pass another name=")
        taken[dim] = "a dimension of a metric"
    for name in (*cells.dims, *cells.notes):
        if name in taken:
            raise ValueError(f"grid: the axis {name!r} has the name of {taken[name]}; pass name=")


def dimensions(shapes: Mapping[Metric, Sequence[int]]) -> dict[Metric, tuple[str, ...]]:
    """The dataset's names of each metric's dimensions: its own, behind the metric's name where lengths differ.

    Args:
      shapes: of one value of each metric.
    """
    lengths: dict[str, set[int]] = {}
    for metric, shape in shapes.items():
        for dim, length in zip(metric.dims, shape, strict=True):
            lengths.setdefault(dim, set()).add(length)
    return {m: tuple(d if len(lengths[d]) == 1 else f"{m.name}_{d}" for d in m.dims) for m in shapes}


def _check(planned: Sweep) -> dict[tuple[Any, int], Session]:
    """Every session of the sweep, by sample and place among passes and captions; none has computed anything."""
    model, cfg = planned.model, planned.model.config.decoder
    if planned.compat == "published" and any(p.continuation for p in planned.passes):
        raise ValueError(
            "compat='published' with a teacher-forced continuation: a blocked query would read the continuation; use "
            "Caption, or a metric of the next token"
        )
    sessions: dict[tuple[Any, int], Session] = {}
    names: dict[str, Sequence[str]] = {c.name: (c.name, f"{c.name}_tokens") for c in planned.captions}
    shapes: dict[Metric, Sequence[int]] = {}
    for name, prompt in planned.prompts.items():
        model.check(prompt)
        if planned.captions:
            generation_penalty(model, prompt, None)  # refuses what cannot be decoded
        for one in planned.passes:
            for metric in one.metrics:
                attention = None if metric.attention() is None else (cfg.num_layers, cfg.num_heads)
                read = metric.read_tokens(model)
                found = check_values(
                    metric,
                    metric.prepare(model, prompt),
                    num_tokens=cfg.vocab_size if read is None else len(read),
                    continuation=len(one.continuation),
                    attention=attention,
                )
                names[metric.name] = [f"{metric.name}_{suffix}" if suffix else metric.name for suffix in found]
                shapes[metric] = next(iter(found.values())).shape
        _refuse_collisions(planned.cells, names, shapes)
        variants = planned.variants(name)
        for place, one in enumerate(planned.parts):
            made = variants if isinstance(one, Pass) else [(), *variants]
            sessions[name, place] = planned.session(prompt, one, made)
    return sessions


def _passes(model: Model, metrics: Sequence[Metric]) -> tuple[Pass, ...]:
    """Metrics by continuation; those of the next token alone join the first pass there is."""
    by_continuation: dict[tuple[int, ...], list[Metric]] = {}
    for metric in metrics:
        by_continuation.setdefault(metric.continuation(model), []).append(metric)
    plain = by_continuation.pop((), [])
    if plain and not by_continuation:
        return (Pass(continuation=(), metrics=tuple(plain)),)
    passes = [Pass(continuation=c, metrics=tuple(ms)) for c, ms in by_continuation.items()]
    if plain:
        passes[0] = dataclasses.replace(passes[0], metrics=(*plain, *passes[0].metrics))
    return tuple(passes)


def _reads(prompt: Prompt, one: Pass) -> Reads:
    queries, keys = [], []
    for metric in one.metrics:
        if (asked := metric.attention()) is not None:
            fed = max(0, len(one.continuation) - 1)
            query, key = (select(prompt, s) for s in asked)
            if not with_fed(query, fed).any():
                why = "and no continuation is fed whose tokens could ask" if query[-1] else "to ask for attention"
                raise ValueError(f"metric {metric.name!r}: the prompt has no {asked[0]} tokens {why}")
            if not with_fed(key, fed).any():
                raise ValueError(f"metric {metric.name!r}: the prompt has no {asked[1]} tokens (key)")
            if not (with_fed(query, fed) & (np.cumsum(with_fed(key, fed)) > 0)).any():
                raise ValueError(f"metric {metric.name!r}: no {asked[0]} token comes at or after a {asked[1]} token")
            queries.append(query)
            keys.append(key)
    return Reads(continuation=one.continuation, queries=tuple(queries), keys=tuple(keys))


def _scored(session: Session, one: Pass, executor: Executor) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    """Blocks of variants with the metrics' values; the clean run is variant -1."""
    model, prompt = session.model, session.prompt
    decoder = model.network.decoder
    continuation = jnp.asarray(one.continuation, jnp.int32)
    prepared = [metric.prepare(model, prompt) for metric in one.metrics]
    attended = _attended(session, one)
    tokens = one.unembedded(model)
    places = places_of([metric.read_tokens(model) for metric in one.metrics], tokens)
    num_tokens = decoder.cfg.vocab_size if tokens is None else len(tokens)
    computed = tuple(metric.computed() for metric in one.metrics)
    size = block_size(len(session.lowered) + 1, session.num_reads, num_tokens, session.budget.memory_bytes)
    readings = session.replayed() if executor == "replay" else session.referenced()
    clean = None
    for variants, residual, mass in blocks(session, _ahead(itertools.chain([session.clean_reading()], readings)), size):
        logits, logprobs = read_block(decoder, residual, continuation, tokens)
        if clean is None:
            clean = first_of_block(logits, logprobs, mass)
        yield variants, score(logits, logprobs, mass, clean, prepared, attended, places, metrics=computed)


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
        key = session.reads.keys[index]
        members = session.lowered.members[key.tobytes()]
        classes = members[session.layout.class_group].astype(np.float32)
        rows = np.flatnonzero(session.fed_too(session.reads.queries[index]))
        share = np.mean(np.cumsum(session.fed_too(key))[rows] / (rows + 1))
        places.append(Attended(query_set=jnp.int32(index), classes=jnp.asarray(classes), key_share=jnp.float32(share)))
        index += 1
    return places


class Columns:
    """Values as they come in, and the dataset that they make up."""

    def __init__(self, planned: Sweep):
        self.planned = planned
        self.size = (len(planned.cells.cells), len(planned.prompts))
        self.values: dict[str, np.ndarray] = {}
        self.clean: dict[str, np.ndarray] = {}
        self.metric: dict[str, Metric] = {}
        self.touched = {name: np.zeros(self.size, np.int64) for name in COUNTS}

    def add(self, sample: int, one: Pass, variants: Sequence[int], values: Sequence[Any]) -> None:
        """Values of each metric; variant -1 is the clean run."""
        for metric, found in zip(one.metrics, values, strict=True):
            by_suffix = found if isinstance(found, Mapping) else {"": found}
            for suffix, array in by_suffix.items():
                name = f"{metric.name}_{suffix}" if suffix else metric.name
                self._put(name, metric, sample, variants, np.asarray(array))

    def _put(self, name: str, metric: Metric, sample: int, variants: Sequence[int], array: np.ndarray) -> None:
        self.metric.setdefault(name, metric)
        shape = array.shape[1:]
        if name not in self.clean:
            self.clean[name] = np.zeros((self.size[1], *shape), array.dtype)
            self.values[name] = np.zeros((*self.size, *shape), array.dtype)
        for variant, value in zip(variants, array, strict=False):
            if variant < 0:
                self.clean[name][sample] = value
            else:
                self.values[name][variant, sample] = value

    def add_captions(self, sample: int, caption: Caption, found: Sequence[Any]) -> None:
        """Continuations of the clean run and of every cell."""
        texts = [g.text if g.text is not None else " ".join(map(str, g.tokens)) for g in found]
        columns = {"": np.array(texts, object), "tokens": np.array([len(g.tokens) for g in found])}
        for suffix, column in columns.items():
            name = f"{caption.name}_{suffix}" if suffix else caption.name
            self._put(name, caption, sample, range(-1, len(found) - 1), column)
        for name in COUNTS:
            self.touched[name][:, sample] = [getattr(g.touched, name) for g in found[1:]]

    def add_touched(self, sample: int, session: Session, num_decoded: int) -> None:
        """What each cell reaches when so many generated tokens are fed back."""
        for variant in range(self.size[0]):
            touched = session.lowered.touched(variant, num_decoded)
            for name in COUNTS:
                self.touched[name][variant, sample] = getattr(touched, name)

    def dataset(self, attributes: Mapping[str, Any]) -> xr.Dataset:
        cells = self.planned.cells
        dims = (*cells.dims, "sample")
        variables: dict[str, Any] = {}
        axes = dimensions({m: self.clean[name].shape[1:] for name, m in self.metric.items()})
        for name, metric in self.metric.items():
            about = {"units": metric.unit, "averages": int(metric.averages)}
            about |= {k: str(v) for k, v in metric.attributes(self.planned.model).items()}
            values = self.values[name].reshape(*cells.shape, *self.values[name].shape[1:])
            variables[name] = ((*dims, *axes[metric]), values, about)
            variables[f"{name}_clean"] = (("sample", *axes[metric]), self.clean[name], about | {"cell": "clean"})
        for name in COUNTS:
            variables[name] = (dims, self.touched[name].reshape(*cells.shape, -1), {"units": "count", "averages": 0})
        coordinates: dict[str, Any] = {name: list(cells.coordinates[name]) for name in cells.dims}
        coordinates["sample"] = list(self.planned.prompts)
        coordinates[CELL] = (cells.dims, np.array([c.name for c in cells.cells], object).reshape(cells.shape))
        coordinates |= {note: (dim, list(values)) for note, (dim, values) in cells.notes.items()}
        return xr.Dataset(variables, coordinates, dict(attributes))
