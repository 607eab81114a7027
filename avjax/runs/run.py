"""A run whose parts are known: its samples, its cells, and the blocks that they are computed in."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from avjax.edits.edits import Edit, for_sample
from avjax.edits.grids import CLEAN, Cells
from avjax.metrics import Metric
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import BySample
from avjax.runs.captures import Captured
from avjax.runs.identity import block_digest, cell_key, digest, edits_digest
from avjax.runs.rows import CellLayout
from avjax.sweeping.floor import drawn_samples

CELLS_PER_BLOCK = 512  # lost at most, with each process that is killed


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
class StoredRun:
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
    def layout(self) -> CellLayout:
        return CellLayout.of([sample.name for sample in self.samples], self.cells)

    @functools.cached_property
    def drawn(self) -> set[Any]:
        """Samples whose cells are computed again for the noise floor."""
        return drawn_samples([sample.name for sample in self.samples], len(self.cells.cells))

    def edits(self, block: Block) -> list[tuple[Edit, ...]]:
        """The edits of each cell of a block, on its sample."""
        sample, allow_noop = self.samples[block.sample].name, self.settings.get("allow_noop", False)
        return [for_sample(self.cells.cells[i].edits, sample, allow_noop) for i in block.cells]

    def blocks(self, shard: tuple[int, int] = (0, 1)) -> list[Block]:
        """All blocks, or those of a shard i of n: a share without gaps, so that few samples lie in two."""
        blocks = []
        for number, sample in enumerate(self.samples):
            digests = self._digests(sample.name)
            for start in range(0, len(digests), self.block_cells):
                cells = range(start, min(start + self.block_cells, len(digests)))
                edits = digests[cells.start : cells.stop]
                name = block_digest(self.digest, self._whole(sample), start, edits, clean=not start)
                blocks.append(Block(name=name, sample=number, cells=cells, clean=not start))
        i, n = shard
        return blocks[len(blocks) * i // n : len(blocks) * (i + 1) // n]

    def places(self, shard: tuple[int, int] = (0, 1)) -> set[tuple[Any, int]]:
        """The sample and the place in the grid of each row of a shard; -1 is the unedited run."""
        return {
            (self.samples[block.sample].name, place)
            for block in self.blocks(shard)
            for place in [CLEAN] * block.clean + [*block.cells]
        }

    def keys(self, block: Block) -> list[str]:
        """The key of each row of a block."""
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
        """Whether edits differ from sample to sample."""
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
