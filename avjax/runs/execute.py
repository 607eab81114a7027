"""A run's blocks, one after the other: each is computed and stored, or left to another process that has it already."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.devices.processes import Team
from avjax.edits.grids import CLEAN
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt
from avjax.runs.captures import keep
from avjax.runs.events import Tell, silent
from avjax.runs.identity import digest, owner
from avjax.runs.prompts_ahead import PATIENCE_SECONDS, StoppedError, prompt_together, prompts_ahead
from avjax.runs.rows import encoded
from avjax.runs.run import Block, StoredRun
from avjax.runs.store import Claim, Store
from avjax.sweeping.compute import compute_prepared, computed
from avjax.sweeping.prepare import Sweep
from avjax.sweeping.slices import Slice, run_slices, slices_here

DONE, WAIT = -1, -2  # a leader sends them in place of a block's number
GO, STOP = -3, -4  # a follower sends them


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """How a run ended.

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
    run: StoredRun,
    store: Store,
    *,
    shard: tuple[int, int] = (0, 1),
    keep_going: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = True,
    tell: Tell = silent,
    prepared: Sweep | None = None,
) -> Outcome:
    """Computes the blocks that are missing, and waits for those that other processes have.

    On a mesh, each slice of its `data` axis takes blocks as a process of its own would. Where a slice has devices of
    several processes, the first of them looks after the store.

    Args:
      keep_going: a sample that fails is reported, and the others go on; else its error is raised.
      stop: asked between blocks.
      tell: is called with each event and its values.
      prepared: the whole sweep on this model, if it was prepared already; where a sample is one block it is not
        prepared again.

    Raises:
      StoreError: the store or the log cannot be written; finished parts are kept.
    """
    blocks, slices, everyone = run.blocks(shard), slices_here(model), Team(model.mesh)
    halted = threading.Event()

    def ends() -> bool:
        return halted.is_set() or stop()

    def work(part: Slice) -> Outcome:
        team = Team(part.model.mesh)
        if not team.leads:
            return _follow(part.model, run, blocks, team, keep_going, ends, prepared)
        leader = _Leader(part, run, blocks, team, store, keep_going=keep_going, stop=ends, tell=tell, prepared=prepared)
        total = sum(block.num_rows for block in blocks)
        try:
            with Progress("run", total, "cells", enabled=progress and part is slices[0]) as bar:
                return leader.work(bar)
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
        for of_slice in everyone.merged(run_slices(work, slices, everyone, halt=halted.set)).values():
            outcome.computed += of_slice.computed
            outcome.failed |= of_slice.failed
            outcome.stopped |= of_slice.stopped
    finally:
        store.tidy()
    tell("stopped" if outcome.stopped else "finished", computed=outcome.computed, failed=len(outcome.failed))
    return outcome


class _Leader:
    """The process of a slice that claims blocks and stores what all processes of the slice compute."""

    def __init__(
        self,
        part: Slice,
        run: StoredRun,
        blocks: Sequence[Block],
        team: Team,
        store: Store,
        *,
        keep_going: bool,
        stop: Callable[[], bool],
        tell: Tell,
        prepared: Sweep | None,
    ):
        self.part, self.run, self.blocks, self.team, self.store = part, run, blocks, team, store
        self.keep_going, self.stop, self.tell, self.prepared = keep_going, stop, tell, prepared
        self.outcome, self.layout, self.about = Outcome(), run.layout, store.read()
        self.numbers = {block.name: number for number, block in enumerate(blocks)}
        self.counted: set[str] = set()
        self.asked_to_stop = False  # by a process that follows

    def work(self, bar: Progress) -> Outcome:
        """Rounds over the missing blocks until none is left, or the run is asked to stop."""
        while missing := self._missing(bar):
            if self._stops():
                self.outcome.stopped = True
                break
            if not self._compute_missing(missing, bar):  # other processes have the rest
                self._send(WAIT)  # followers time out after minutes of silence
                time.sleep(PATIENCE_SECONDS)
        return self.outcome

    def _missing(self, bar: Progress) -> list[Block]:
        """Blocks that no process has stored, those of this slice's own samples first."""
        done, failed = self.store.parts(), self.outcome.failed
        self._count([block for block in self.blocks if block.name in done], bar)
        missing = [b for b in self.blocks if b.name not in done and self.run.samples[b.sample].name not in failed]
        return sorted(missing, key=lambda block: block.sample % self.part.count != self.part.index)

    def _compute_missing(self, missing: Sequence[Block], bar: Progress) -> bool:
        """One round; whether any block was computed."""
        before = self.outcome.computed
        for block, prompt in prompts_ahead(self.run, missing, self._stops):
            if self._stops():
                break
            if self.run.samples[block.sample].name in self.outcome.failed:
                continue
            with self.store.claimed(block.name) as claim:
                if claim is None:
                    continue
                self._send(self.numbers[block.name])
                began = time.perf_counter()
                try:
                    results = self._compute(block, prompt)
                except StoppedError:
                    break
                except (ValueError, OverflowError, OSError) as error:
                    if not self.keep_going:
                        raise
                    self._report_failure(block, error)
                    continue
                self._publish(claim, block, *results)
            self._report(block, time.perf_counter() - began)
            self._count([block], bar)
        return self.outcome.computed > before

    def _compute(self, block: Block, prompt: Callable[[], Prompt]) -> tuple[xr.Dataset, xr.Dataset | None]:
        """A block's values, and the activations that are kept of it."""
        model, decoded = self.part.model, prompt_together(prompt, self.team)
        values = _computed(model, self.run, block, decoded, self.prepared)
        return values, _captured(model, self.run, block, decoded)

    def _publish(self, claim: Claim, block: Block, values: xr.Dataset, activations: xr.Dataset | None) -> None:
        run, sample = self.run, self.run.samples[block.sample].name
        if activations is not None:
            keep(self.store, block.name, activations)
        keys, cells = run.keys(block), np.array(block.cells)
        of_run = owner(self.about, sample)
        self.store.write(claim, encoded(values, self.layout, sample, cells, keys, block.clean, of_run))

    def _report(self, block: Block, seconds: float) -> None:
        sample = self.run.samples[block.sample].name
        self.store.forget_failure(self._failure_key(block))
        self.outcome.computed += block.num_rows
        rate = round(block.num_rows / seconds, 3)
        self.tell("block", sample=sample, cells=block.num_rows, seconds=seconds, cells_per_second=rate)

    def _report_failure(self, block: Block, error: Exception) -> None:
        sample = self.run.samples[block.sample].name
        self.outcome.failed[sample] = str(error)
        failure = {"sample": sample, "block": block.name, "reason": str(error)}
        self.store.report_failure(self._failure_key(block), failure)
        self.tell("failed", sample=sample, reason=str(error))

    def _failure_key(self, block: Block) -> str:
        return digest(self.run.samples[block.sample].name, block.cells.start)

    def _count(self, blocks: Sequence[Block], bar: Progress) -> None:
        new = [block for block in blocks if block.name not in self.counted]
        self.counted.update(block.name for block in new)
        bar.advance(sum(block.num_rows for block in new))

    def _stops(self) -> bool:
        return self.asked_to_stop or self.stop()

    def _send(self, value: int) -> None:
        """A block's number, or `WAIT`, to the followers; one of them may have been asked to stop."""
        if STOP in self.team.all_gather(value):
            self.asked_to_stop = True


def _follow(
    model: Model,
    run: StoredRun,
    blocks: Sequence[Block],
    team: Team,
    keep_going: bool,
    stop: Callable[[], bool],
    prepared: Sweep | None,
) -> Outcome:
    """Computes the blocks that the leader names, in step with it; the leader stores them."""
    outcome = Outcome()
    while (place := team.all_gather(STOP if stop() else GO)[0]) != DONE:
        if place == WAIT:
            continue
        sample = run.samples[blocks[place].sample]
        try:
            prompt = prompt_together(sample.prompt, team)
            _computed(model, run, blocks[place], prompt, prepared)
            _captured(model, run, blocks[place], prompt)
        except (ValueError, OverflowError, OSError) as error:
            if not keep_going:
                raise
            outcome.failed[sample.name] = str(error)
    return outcome


def _computed(model: Model, run: StoredRun, block: Block, prompt: Prompt, prepared: Sweep | None = None) -> xr.Dataset:
    sample = run.samples[block.sample]
    if prepared is not None and len(block.cells) == len(run.cells.cells) and (sample.name, 0) in prepared.sessions:
        executor = run.settings.get("executor", "replay")
        return compute_prepared(prepared.of_sample(sample.name), executor=executor, drawn=run.drawn)
    variants = [list(edits) for edits in run.edits(block)]
    settings = {**run.settings, "floor": block.clean and run.settings.get("floor", True), "drawn": run.drawn}
    return computed(model, {sample.name: prompt}, variants, list(sample.metrics), progress=False, **settings)


def _captured(model: Model, run: StoredRun, block: Block, prompt: Prompt) -> xr.Dataset | None:
    """The activations that are kept of a block's cells."""
    if run.captured is None:
        return None
    edits = [()] * block.clean + run.edits(block)
    places = [CLEAN] * block.clean + [*block.cells]
    names = ["clean" if i == CLEAN else run.cells.cells[i].name for i in places]
    cells = [*zip(places, names, edits, strict=True)]
    settings = {name: run.settings.get(name) for name in ("compat", "allow_noop") if run.settings.get(name)}
    activations = run.captured.of(model, prompt, cells, **settings)
    return activations.assign_attrs(sample=str(run.samples[block.sample].name))
