"""`plan`: what a sweep will cost, before it starts.

Counts are of matrix products alone (2 per multiply-add). The naive way is one full forward pass, or one whole greedy
generation with a key-value cache, per cell and sample, as hooks do it.
"""

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from avjax.edits.edits import Edit
from avjax.edits.grids import Grid
from avjax.edits.identities import refuse_identities
from avjax.engine.batches import Batch
from avjax.metrics import Caption, Metric
from avjax.model import Model, refuse_no_model
from avjax.models.config import DecoderConfig
from avjax.prompts.compat import Compat
from avjax.prompts.prompt import Prompt
from avjax.sweeping.prepare import Sweep, prepare

CALIBRATION_SECONDS = 0.2
DISPATCH_SECONDS = 2e-3  # of the host, per batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a sweep.

    Attributes:
      cells, samples: of the dataset; the clean cell comes on top.
      naive_forwards: full passes over a prompt that one per cell would take, of all samples together.
      forwards: full passes of the replay: clean ones, of the prompts and of those that sources come from.
      naive_flops, flops: of one forward pass per cell, and of the replay.
      naive_bytes, bytes: parameters and keys and values read from memory.
      peak_bytes: parameters, and the most that a batch holds beside them.
      executables: programs of the decoder that are compiled, at most; the encoders' and the metrics' come on top.
      seconds: from a short calibration of this device; compilation and the encoders come on top. None without one.
    """

    cells: int
    samples: int
    naive_forwards: int
    forwards: int
    naive_flops: float
    flops: float
    naive_bytes: float
    bytes: float
    peak_bytes: int
    executables: int
    seconds: float | None

    @property
    def speedup(self) -> float:
        """Operations of one forward pass per cell over those of the replay."""
        return self.naive_flops / self.flops

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", about {_seconds(self.seconds)} after compiling"
        return (
            f"{self.cells:,} cells x {self.samples:,} samples: {_si(self.flops)}FLOP instead of "
            f"{_si(self.naive_flops)}FLOP for {self.naive_forwards:,} passes ({self.speedup:,.1f}x less), "
            f"{_si(self.bytes)}B instead of {_si(self.naive_bytes)}B read, peak {_si(self.peak_bytes)}B, at most "
            f"{self.executables} executables{time}"
        )


def plan(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    memory_bytes: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    floor: bool = True,
    calibrate: bool = True,
) -> Plan:
    """What `avjax.sweep` would cost with the same arguments.

    What the noise floor takes in float32 is part of it; the few cells that narrower types run again in float32 are not.

    Args:
      calibrate: measure the device for a moment, for an estimate in seconds.

    Raises:
      ValueError: as `avjax.sweep`.
    """
    refuse_no_model(model)
    refuse_identities(grid, allow_noop)
    settings = {"memory_bytes": memory_bytes, "compat": compat, "allow_noop": allow_noop, "floor": floor}
    planned = prepare(model, prompts, grid, metrics, **settings)
    return cost(planned, calibrate=calibrate)


def combine_plans(plans: Iterable[Plan]) -> Plan:
    """The cost of sweeps one after the other, of the same cells on other samples; programs are shared where they can.

    Raises:
      ValueError: there is none.
    """
    several = list(plans)
    if not several:
        raise ValueError("plan: expected at least one sample, got none")
    summed = ("samples", "naive_forwards", "forwards", "naive_flops", "flops", "naive_bytes", "bytes")
    largest = ("peak_bytes", "executables")
    combined: dict[str, Any] = {name: sum(getattr(p, name) for p in several) for name in summed}
    combined |= {name: max(getattr(p, name) for p in several) for name in largest}
    timed = [p for p in several if p.seconds is not None]
    seconds = None
    if timed:
        seconds = combined["flops"] * sum(p.seconds or 0.0 for p in timed) / sum(p.flops for p in timed)
    return Plan(cells=several[0].cells, seconds=seconds, **combined)


def add_passes(plan: Plan, more: int, *, replayed: bool = True) -> Plan:
    """The cost with full passes on top, each as much as one of the naive way.

    Args:
      more: such as those that captures take.
      replayed: else the cells are computed by full passes too, as the executor "reference" does.
    """
    flops, read = (total / plan.naive_forwards for total in (plan.naive_flops, plan.naive_bytes))
    whole = more + (0 if replayed else plan.forwards + plan.naive_forwards)
    raised = dataclasses.replace(
        plan,
        forwards=more + plan.forwards + (0 if replayed else plan.naive_forwards),
        flops=whole * flops + (plan.flops if replayed else 0.0),
        bytes=whole * read + (plan.bytes if replayed else 0.0),
    )
    seconds = None if plan.seconds is None else plan.seconds * raised.flops / plan.flops
    return dataclasses.replace(raised, seconds=seconds)


def cost(planned: Sweep, *, calibrate: bool) -> Plan:
    """The cost of a prepared sweep."""
    cfg, itemsize = planned.model.config.decoder, planned.model.dtype.itemsize
    counts = Counts(cfg, itemsize)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(planned.model.network.decoder))
    naive_flops = flops = naive_bytes = read = 0.0
    peak, num_batches, shapes = 0, 0, set()
    cells = len(planned.cells.cells)
    sources: dict[Any, dict[int, Prompt]] = {}  # run once for all passes of a sample
    for (sample, place), session in planned.sessions.items():
        needed = {id(prompt): prompt for prompt, _ in session.folded.bank.needs}
        sources.setdefault(sample, {}).update(needed)
        one = planned.parts[place]
        steps = one.limit - 1 if isinstance(one, Caption) else 0
        size = session.num_positions
        tokens = None if isinstance(one, Caption) else one.unembedded(planned.model)
        unembed = counts.unembed(session.num_reads, cfg.vocab_size if tokens is None else len(tokens))
        naive = counts.forward(size) + counts.unembed(session.num_reads, cfg.vocab_size) + counts.decoding(size, steps)
        naive_flops += cells * naive
        naive_bytes += cells * (1 + steps) * (weights + counts.cache_bytes(size))
        flops += counts.forward(size) + unembed
        read += weights + counts.cache_bytes(size)
        for batch in session.planned:
            share = max(0, cfg.num_layers - batch.start_layer) / cfg.num_layers
            region = counts.region(size, batch, session.num_reads) + unembed
            flops += batch.size * (region + counts.decoding(size, steps))
            read += (share + steps) * (weights + counts.cache_bytes(size))
            shapes.add((session.size, batch.size, batch.num_rows, bool(steps)))
            peak = max(peak, session.budget.shared_bytes() + batch.size * session.budget.variant_bytes(batch.num_rows))
            num_batches += 1
        shapes |= {("clean", session.size, session.clean_rows), ("keys", len(session.layout.slots))}
    runs = [prompt for needed in sources.values() for prompt in needed.values()]
    flops += sum(counts.forward(len(prompt)) for prompt in runs)
    read += sum(weights + counts.cache_bytes(len(prompt)) for prompt in runs)
    seconds = None
    if calibrate:
        rate, bandwidth = calibration(cfg.embed_dim, cfg.mlp_dim, str(planned.model.dtype))
        seconds = max(flops / rate, read / bandwidth) + DISPATCH_SECONDS * num_batches
    return Plan(
        cells=cells,
        samples=len(planned.prompts),
        naive_forwards=cells * len(planned.sessions),
        forwards=len(planned.sessions) + len(runs),
        naive_flops=naive_flops,
        flops=flops,
        naive_bytes=naive_bytes,
        bytes=read,
        peak_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(planned.model)) + peak,
        executables=len(shapes) + 2 * len(planned.passes),
        seconds=seconds,
    )


@dataclasses.dataclass(frozen=True)
class Counts:
    """Operations and bytes of a decoder's parts."""

    cfg: DecoderConfig
    itemsize: int

    @property
    def per_row(self) -> int:
        """Of the linear maps of one layer, for one position."""
        cfg = self.cfg
        heads = cfg.num_heads * cfg.head_dim
        projections = 2 * heads + 2 * cfg.num_kv_heads * cfg.head_dim
        return 2 * cfg.embed_dim * (projections + 3 * cfg.mlp_dim)

    def attention(self, edges: float) -> float:
        return 4.0 * self.cfg.num_heads * self.cfg.head_dim * edges

    def unembed(self, reads: int, tokens: int) -> float:
        return 2.0 * reads * self.cfg.embed_dim * tokens

    def forward(self, size: int) -> float:
        """Of a whole prompt, up to the last residual."""
        return self.cfg.num_layers * (size * self.per_row + self.attention(size * (size + 1) / 2))

    def region(self, size: int, batch: Batch, reads: int) -> float:
        """Of one variant's region of effect; the last layer computes what is read out alone."""
        rows = min(batch.num_rows, size)
        edges = rows * (size - rows) + rows * (rows + 1) / 2
        inner = max(0, self.cfg.num_layers - 1 - batch.start_layer)
        last = (reads / rows) if batch.start_layer < self.cfg.num_layers else 0.0
        return (inner + last) * (rows * self.per_row + self.attention(edges))

    def decoding(self, size: int, steps: int) -> float:
        """Of one variant's tokens after the first."""
        edges = steps * size + steps * (steps + 1) / 2
        layers = self.cfg.num_layers * (steps * self.per_row + self.attention(edges))
        return layers + self.unembed(steps, self.cfg.vocab_size)

    def cache_bytes(self, size: int) -> int:
        cfg = self.cfg
        return 2 * cfg.num_layers * size * cfg.num_kv_heads * cfg.head_dim * self.itemsize


@functools.cache
def calibration(width: int, mlp: int, dtype: str) -> tuple[float, float]:
    """Operations and bytes per second of this device: a product of a layer's size, and of one row with its matrix."""
    rows = jnp.ones((512, width), dtype)
    kernel = jnp.ones((width, mlp), dtype)
    product = jax.jit(lambda x, y: x @ y)
    rate = _per_second(lambda: product(rows, kernel), 2.0 * rows.size * mlp)
    table = jnp.ones((max(2**24 // width, 1), width), dtype)  # too large for a cache
    bandwidth = _per_second(lambda: product(table, rows[0]), float(table.nbytes))
    return rate, bandwidth


def _per_second(call: Any, amount: float) -> float:
    jax.block_until_ready(call())
    best, end = float("inf"), time.perf_counter() + CALIBRATION_SECONDS / 2
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(call())
        best = min(best, time.perf_counter() - start)
    return amount / best


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} E"


def _seconds(value: float) -> str:
    if value < 90:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
