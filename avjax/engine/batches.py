"""How the variants of one prompt are cut into batches: by region of effect, first layer and memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from avjax.engine.budget import Budget
from avjax.engine.lowering import Lowered
from avjax.engine.operations import SiteOp, first_row
from avjax.models.buckets import bucket, row_bucket
from avjax.models.sites import Site

FIRST_ROWS = 16  # an edit of nearly all of a prompt leaves what is before its first position, in such steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Where a variant differs from the clean run: the last `num_rows` positions, from `start_layer` on."""

    num_rows: int
    start_layer: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Variants that are computed together; `size` of them with the padding."""

    variants: tuple[int, ...]
    size: int
    num_rows: int
    start_layer: int

    def padded(self) -> list[int]:
        """The last variant again where the batch is not full."""
        return [*self.variants, *[self.variants[-1]] * (self.size - len(self.variants))]


def region(lowered: Lowered, variant: int, *, num_positions: int, first_read: int) -> Region:
    """The region of effect of one folded variant.

    Args:
      num_positions: real positions of the pass, teacher-forced ones included.
      first_read: the first position that is read out; rows from it on are always computed.
    """
    size, num_layers = len(lowered.prompt), lowered.config.num_layers
    first, start = first_read, num_layers
    for op in lowered.ops[variant]:
        row = first_row(op, size)
        if row >= num_positions:
            continue  # it changes generated tokens alone, and none is fed here
        first = min(first, row)
        last_only = isinstance(op, SiteOp) and op.site is Site.RESID_POST
        start = min(start, num_layers if last_only else min(op.layers))
    most = bucket(num_positions) - first // FIRST_ROWS * FIRST_ROWS  # the same for all prompts of a bucket
    return Region(num_rows=row_bucket(num_positions - first, most), start_layer=start)


def batches(regions: Sequence[Region], budget: Budget) -> list[Batch]:
    """Variants of one region size together, by first layer, as many as the budget and the device can use."""
    num_layers = budget.cfg.num_layers

    def kind(r: Region) -> tuple[int, bool]:
        # Variants that change nothing in the prompt stay apart and are the clean run to the bit; but what is decoded
        # later is decoded together.
        return r.num_rows, r.start_layer < num_layers or budget.num_slots > 0

    planned: list[Batch] = []
    for num_rows, changed in sorted({kind(r) for r in regions}):
        members = [i for i, r in enumerate(regions) if kind(r) == (num_rows, changed)]
        members.sort(key=lambda i: regions[i].start_layer)
        size = budget.variants(num_rows, len(members))
        for begin in range(0, len(members), size):
            chosen = tuple(members[begin : begin + size])
            start = min(regions[i].start_layer for i in chosen)
            planned.append(Batch(variants=chosen, size=size, num_rows=num_rows, start_layer=start))
    return planned


def longest(regions: Sequence[Region]) -> int:
    return int(np.max([r.num_rows for r in regions]))
