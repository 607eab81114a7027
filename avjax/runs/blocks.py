"""A run as blocks of cells: each is computed, kept, and left to another process where that has it already."""

import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import xarray as xr

from avjax.devices.processes import Team
from avjax.edits.edits import Edit, for_sample
from avjax.edits.grids import Cells
from avjax.metrics import Metric
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import BySample
from avjax.runs.captures import Captured, keep
from avjax.runs.events import Tell, silent
from avjax.runs.identity import block_digest, cell_key, digest, edits_digest, owner
from avjax.runs.rows import Layout, encoded
from avjax.runs.store import Store
from avjax.sweeping.computing import computed
from avjax.sweeping.floor import drawn_samples
from avjax.sweeping.slices import Slice, run_slices, slices_here

CELLS_PER_BLOCK = 512  # with each block the unedited run is computed anew
DONE, WAIT = -1, -2  # said by a leader in place of a block
GO, STOP = -3, -4  # said by who follows
PATIENCE_SECONDS = 0.5  # between two looks at what other processes compute


class StoppedError(Exception):
    """The run was asked to stop while a clip was being decoded."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A sample of a run.

    Attributes:
      digest: of all that decides its values beside what all samples share.
      prompt: makes the prompt; decoding its clip may take long, or fail.
    """

    name: Any
    digest: str
    prompt: Callable[[], Prompt]
    metrics: Sequence[Metric]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Cells of one sample that are computed together.

    Attributes:
      name: a digest of all that decides their values.
      cells: places in the grid.
      clean: whether the unedited run is kept with them.
    """

    name: str
    sample: int
    cells: range
    clean: bool

    @property
    def num_rows(self) -> int:
        return len(self.cells) + self.clean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run whose parts are known; nothing has been decoded or computed.

    Attributes:
      digest: of what decides the values of all samples.
      settings: of `avjax.sweep`.
      captured: what is kept of every cell's activations.
    """

    digest: str
    cells: Cells
    samples: tuple[Sample, ...]
    settings: dict[str, Any]
    block_cells: int
    captured: Captured | None = None

    @property
    def layout(self) -> Layout:
        return Layout.of([sample.name for sample in self.samples], self.cells)

    @functools.cached_property
    def drawn(self) -> set[Any]:
        """Samples whose cells are computed again for the noise floor."""
        return drawn_samples([sample.name for sample in self.samples], len(self.cells.cells))

    def edits(self, block: Block) -> list[tuple[Edit, ...]]:
        """Of each cell of a block, on its sample."""
        sample, allow_noop = self.samples[block.sample].name, self.settings.get("allow_noop", False)
        return [for_sample(self.cells.cells[i].edits, sample, allow_noop) for i in block.cells]

    def blocks(self, shard: tuple[int, int] = (0, 1)) -> list[Block]:
        """All blocks, or those of a shard i of n: a share without gaps, so that few samples lie in two."""
        found = []
        for number, sample in enumerate(self.samples):
            digests = self._digests(sample.name)
            for start in range(0, len(digests), self.block_cells):
                cells = range(start, min(start + self.block_cells, len(digests)))
                own = digests[cells.start : cells.stop]
                name = block_digest(self.digest, self._whole(sample), start, own, clean=not start)
                found.append(Block(name=name, sample=number, cells=cells, clean=not start))
        i, n = shard
        return found[len(found) * i // n : len(found) * (i + 1) // n]

    def places(self, shard: tuple[int, int] = (0, 1)) -> set[tuple[Any, int]]:
        """The sample and the place in the grid of each row of a shard; -1 is the unedited run."""
        return {
            (self.samples[block.sample].name, place)
            for block in self.blocks(shard)
            for place in [-1] * block.clean + [*block.cells]
        }

    def keys(self, block: Block) -> list[str]:
        """Of each row of a block."""
        sample = self.samples[block.sample]
        edits = ["clean"] * block.clean + self._digests(sample.name)[block.cells.start : block.cells.stop]
        return [cell_key(self.digest, self._whole(sample), edit) for edit in edits]

    def _whole(self, sample: Sample) -> str:
        """Of a sample and its name: two of one content are two samples."""
        return digest(sample.name, sample.digest)

    @functools.cached_property
    def grid_digest(self) -> str:
        """Of the grid's points, how they are called, and what the edits are on each sample."""
        edits = [self._digests(sample.name) for sample in self.samples] if self._by_sample else self._of_all
        points = {name: value for name, value in vars(self.layout).items() if name != "samples"}
        return digest(points, edits)

    def _digests(self, sample: Any) -> list[str]:
        """Of every cell's edits."""
        return self._of_sample(sample) if self._by_sample else self._of_all

    @functools.cached_property
    def _by_sample(self) -> bool:
        """Whether edits are others for each sample."""
        values = [
            getattr(edit, field.name)
            for cell in self.cells.cells
            for edit in cell.edits
            for field in dataclasses.fields(edit)  # pyright: ignore[reportArgumentType]
        ]
        return any(isinstance(value, BySample | Mapping) for value in values)

    @functools.cached_property
    def _of_all(self) -> list[str]:
        return [edits_digest(cell.edits) for cell in self.cells.cells]

    def _of_sample(self, sample: Any) -> list[str]:
        allow_noop = self.settings.get("allow_noop", False)
        return [edits_digest(for_sample(cell.edits, sample, allow_noop)) for cell in self.cells.cells]


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
      computed: cells that this process computed.
      failed: samples that could not be computed, with the reason.
      stopped: it was asked to stop before everything was done.
    """

    computed: int = 0
    failed: dict[Any, str] = dataclasses.field(default_factory=dict)
    stopped: bool = False


def execute(
    model: Model,
    run: Run,
    store: Store,
    *,
    shard: tuple[int, int] = (0, 1),
    keep_going: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = True,
    tell: Tell = silent,
) -> Outcome:
    """Computes the blocks that are missing, and waits for those that other processes have.

    On a mesh, each slice of its `data` axis takes blocks as a process of its own would. Where a slice has devices of
    several processes, the first of them looks after the store.

    Args:
      keep_going: a sample that fails is reported, and the others go on; else its error is raised.
      stop: asked between blocks.
      tell: is called with each event and its values.

    Raises:
      StoreError: the store or the log cannot be written; what is finished stays.
    """
    blocks, parts, everyone = run.blocks(shard), slices_here(model), Team(model.mesh)
    halted = threading.Event()

    def ends() -> bool:
        return halted.is_set() or stop()

    def work(part: Slice) -> Outcome:
        team, shown = Team(part.model.mesh), progress and part is parts[0]
        if not team.leads:
            return _follow(part.model, run, blocks, team, keep_going, ends)
        try:
            return _lead(part, run, blocks, team, store, keep_going, ends, shown, tell)
        finally:
            team.broadcast(DONE)

    def begin() -> None:
        store.tidy()
        done = store.parts()
        missing = sum(block.num_rows for block in blocks if block.name not in done)
        tell("started", cells=sum(block.num_rows for block in blocks), missing=missing)

    everyone.run_together(begin)
    outcome = Outcome()
    try:
        for found in everyone.merged(run_slices(work, parts, everyone, halt=halted.set)).values():
            outcome.computed += found.computed
            outcome.failed |= found.failed
            outcome.stopped |= found.stopped
    finally:
        store.tidy()
    tell("stopped" if outcome.stopped else "finished", computed=outcome.computed, failed=len(outcome.failed))
    return outcome


def _lead(
    part: Slice,
    run: Run,
    mine: Sequence[Block],
    team: Team,
    store: Store,
    keep_going: bool,
    stop: Callable[[], bool],
    progress: bool,
    tell: Tell,
) -> Outcome:
    outcome, layout, about = Outcome(), run.layout, store.read()
    places = {block.name: place for place, block in enumerate(mine)}
    with Progress("run", sum(b.num_rows for b in mine), "cells", enabled=progress) as bar:
        counted: set[str] = set()

        def count(blocks: Sequence[Block]) -> None:
            new = [b for b in blocks if b.name not in counted]
            counted.update(b.name for b in new)
            bar.advance(sum(b.num_rows for b in new))

        asked: list[bool] = []  # by a process that follows

        def ends() -> bool:
            return bool(asked) or stop()

        def say(value: int) -> None:
            if STOP in team.all_gather(value):
                asked.append(True)

        while True:
            done = store.parts()
            count([b for b in mine if b.name in done])
            missing = [b for b in mine if b.name not in done and run.samples[b.sample].name not in outcome.failed]
            if not missing or ends():
                outcome.stopped = bool(missing)
                break
            before = outcome.computed
            missing.sort(key=lambda block: block.sample % part.count != part.index)  # each slice begins with its own
            for block, prompt in _prepared(run, missing, ends):
                if ends():
                    break
                sample = run.samples[block.sample]
                if sample.name in outcome.failed:
                    continue
                place = digest(sample.name, block.cells.start)
                with store.claimed(block.name) as claim:
                    if claim is None:
                        continue
                    say(places[block.name])
                    began = time.perf_counter()
                    try:
                        made = _made(prompt, team)
                        found, seen = _computed(part.model, run, block, made), _seen(part.model, run, block, made)
                    except StoppedError:
                        break
                    except (ValueError, OverflowError, OSError) as error:
                        if not keep_going:
                            raise
                        outcome.failed[sample.name] = str(error)
                        failure = {"sample": sample.name, "block": block.name, "reason": str(error)}
                        store.report_failure(place, failure)
                        tell("failed", sample=sample.name, reason=str(error))
                        continue
                    if seen is not None:
                        keep(store, block.name, seen)
                    keys, cells = run.keys(block), np.array(block.cells)
                    of_run = owner(about, sample.name)
                    store.write(claim, encoded(found, layout, sample.name, cells, keys, block.clean, of_run))
                store.forget_failure(place)
                outcome.computed += block.num_rows
                seconds = time.perf_counter() - began
                rate = round(block.num_rows / seconds, 3)
                tell("block", sample=sample.name, cells=block.num_rows, seconds=seconds, cells_per_second=rate)
                count([block])
            if outcome.computed == before:  # others have the rest
                say(WAIT)  # who hears nothing for minutes gives up
                time.sleep(PATIENCE_SECONDS)
    return outcome


def _follow(
    model: Model, run: Run, mine: Sequence[Block], team: Team, keep_going: bool, stop: Callable[[], bool]
) -> Outcome:
    """Computes what the leader names, in step with it; the leader keeps it."""
    outcome = Outcome()
    while (place := team.all_gather(STOP if stop() else GO)[0]) != DONE:
        if place == WAIT:
            continue
        sample = run.samples[mine[place].sample]
        try:
            made = _made(sample.prompt, team)
            _computed(model, run, mine[place], made)
            _seen(model, run, mine[place], made)
        except (ValueError, OverflowError, OSError) as error:
            if not keep_going:
                raise
            outcome.failed[sample.name] = str(error)
    return outcome


def _made(prompt: Callable[[], Prompt], team: Team) -> Prompt:
    """A sample's prompt, or an error on all processes of a team when one of them cannot use the clip."""
    try:
        made = prompt()
    except Exception as error:
        team.minimum(0)
        if isinstance(error, ValueError | OSError | StoppedError):
            raise
        raise OSError(f"the clip cannot be read ({type(error).__name__}: {error})") from error
    if not team.minimum(1):
        raise OSError("another process of the mesh cannot use the clip; its own message says why")
    return made


def _computed(model: Model, run: Run, block: Block, prompt: Prompt) -> xr.Dataset:
    sample = run.samples[block.sample]
    variants = [list(edits) for edits in run.edits(block)]
    settings = {**run.settings, "floor": block.clean and run.settings.get("floor", True), "drawn": run.drawn}
    return computed(model, {sample.name: prompt}, variants, list(sample.metrics), progress=False, **settings)


def _seen(model: Model, run: Run, block: Block, prompt: Prompt) -> xr.Dataset | None:
    """The activations that are kept of a block's cells."""
    if run.captured is None:
        return None
    edits = [()] * block.clean + run.edits(block)
    places = [-1] * block.clean + [*block.cells]
    cells = [(i, run.cells.cells[i].name if i >= 0 else "clean", own) for i, own in zip(places, edits, strict=True)]
    settings = {name: run.settings.get(name) for name in ("compat", "allow_noop") if run.settings.get(name)}
    found = run.captured.of(model, prompt, cells, **settings)
    return found.assign_attrs(sample=str(run.samples[block.sample].name))


def _prepared(
    run: Run, blocks: Sequence[Block], stop: Callable[[], bool]
) -> Iterator[tuple[Block, Callable[[], Prompt]]]:
    """Blocks, with what gives their prompt, which raises `StoppedError` when asked to stop before it is there.

    A clip is decoded when its prompt is asked for; the next sample's then too, while the device computes.
    """
    order = list(dict.fromkeys(block.sample for block in blocks))
    following = dict(itertools.pairwise(order))
    pool, made = ThreadPoolExecutor(1), dict[int, Future[Prompt]]()

    def decoding(sample: int) -> Future[Prompt]:
        if sample not in made:
            made[sample] = pool.submit(run.samples[sample].prompt)
        return made[sample]

    def prompt(sample: int) -> Prompt:
        own = decoding(sample)
        if sample in following:
            decoding(following[sample])
        for earlier in [s for s in made if s not in (sample, following.get(sample))]:
            del made[earlier]  # and its features
        while not own.done():
            if stop():
                raise StoppedError
            wait([own], timeout=PATIENCE_SECONDS)
        return own.result()

    try:
        for block in blocks:
            yield block, functools.partial(prompt, block.sample)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # the next clip may take minutes; who reads it ends it
