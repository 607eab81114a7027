"""`plan_topology`: whether a sweep fits TPU chips, and what it costs there, found by compiling it for them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from avjax.devices.memory import MEMORY_SHARE
from avjax.devices.mesh import AXES, slices
from avjax.edits.edits import Edit
from avjax.edits.grids import Grid, as_cells
from avjax.engine.budget import NoRoom
from avjax.families.registry import abstract_network
from avjax.metrics import Metric
from avjax.model import CACHED_CLIPS
from avjax.models.config import ModelConfig
from avjax.prompts.compat import Compat
from avjax.prompts.selectors import KINDS
from avjax.sweeping.prepare import prepare
from avjax.tpu.chips import GIB, PASSES, Chip, Topology
from avjax.tpu.programs import Program, TooLarge, held_bytes, programs
from avjax.tpu.synthetic import NoRuns, SyntheticPrompt, abstract_model, named_config

Sizes = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopologyPlan:
    """A sweep over one prompt on TPU chips; bytes, operations and seconds are of one chip.

    Attributes:
      mesh: sizes of data, variant and model. Each place on `data` takes samples of its own.
      parameter_bytes: held throughout.
      encoded_bytes: of the clips whose encoder outputs are kept.
      smallest: the smallest topology of this chip that holds the sweep, and the mesh there.
    """

    config: str
    dtype: str
    topology: str
    mesh: Sizes
    prompt_tokens: int
    cells: int
    hbm_bytes: int
    parameter_bytes: int
    encoded_bytes: int
    programs: tuple[Program, ...]
    seconds_of: tuple[float, ...]
    smallest: tuple[str, Sizes]

    @property
    def temporary_bytes(self) -> int:
        return max(p.temporary_bytes for p in self.programs)

    @property
    def peak_bytes(self) -> int:
        """Parameters, and the most that a program holds beside them."""
        return self.parameter_bytes + self.encoded_bytes + max(p.working_bytes for p in self.programs)

    @property
    def flops(self) -> float:
        """Of one prompt."""
        return sum(p.flops * p.calls for p in self.programs)

    @property
    def seconds(self) -> float:
        """Of one prompt with its encoders: each program's slower of arithmetic and memory, at the chip's peaks."""
        return sum(self.seconds_of)


class DoesNotFit(ValueError):
    """A sweep needs more memory than the chips have."""


def plan_topology(
    config: str,
    topology: str,
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    prompt_tokens: int,
    dtype: str = "bfloat16",
    mesh: Sizes | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    memory_bytes: int | None = None,
    opening: str = "",
    block_cells: int | None = None,
    quick: bool = False,
) -> TopologyPlan:
    """Compiles a sweep for TPU chips, which need not be at hand.

    Args:
      config: a published model, such as "qwen2.5-omni-7b"; a config.json, or a checkpoint's directory.
      topology: such as "v5e:2x4".
      prompt_tokens: of the prompt, most of them a clip's, the last ones its opening's.
      dtype: "bfloat16" or "float32".
      mesh: sizes of data, variant and model; by default the smallest `model` that fits, the rest for `data`.
      compat, allow_noop: see `avjax.run`.
      memory_bytes: what a sweep may use beside the parameters; by default half of what they leave.
      opening: what the answer begins with.
      block_cells: cells that are swept together, as a run's blocks are; by default all.
      quick: let the compiler try less hard: a fraction of the time, and a tenth more temporary memory or so.

    Raises:
      DoesNotFit: the chips have too little memory; the smallest topology that has enough is named.
      ValueError: a name is unknown, or an edit does not fit or touches nothing.
      ImportError: libtpu is not installed (the extra `tpu`).
    """
    if dtype not in PASSES:
        raise ValueError(f"dtype: expected {' or '.join(PASSES)}, got {dtype!r}")
    place = Topology.of(topology)
    if mesh is not None and math.prod(mesh) != place.size:
        raise ValueError(f"mesh: expected sizes whose product is {place.size}, the chips of {place}, got {list(mesh)}")
    settings = {"compat": compat, "allow_noop": allow_noop, "memory_bytes": memory_bytes}
    architecture = named_config(config)
    cells = [[*cell.edits] for cell in as_cells(grid, architecture.decoder).cells]
    size = block_cells or len(cells)
    blocks = [cells[start : start + size] for start in range(0, len(cells), size)]
    case = _Case(config, architecture, blocks, metrics, prompt_tokens, opening, dtype, settings, quick)
    wanted = [(place.size // model, 1, model) for model in _divisors(place.size)] if mesh is None else [mesh]
    reason = ""
    for sizes in wanted:
        try:
            attempt = case.attempt(place, sizes)
        except TooLarge as error:
            reason = str(error)
        else:
            return dataclasses.replace(attempt, smallest=case.smallest(place.chip))
    where, sizes = case.smallest(place.chip)
    raise DoesNotFit(
        f"{config} in {dtype} with {prompt_tokens:,} tokens does not fit {place}: {reason}; the smallest topology of "
        f"this chip that fits is {where}, with the mesh data {sizes[0]}, variant {sizes[1]}, model {sizes[2]}"
    )


def _divisors(count: int) -> list[int]:
    """Those among powers of two."""
    return [1 << i for i in range(count.bit_length()) if count % (1 << i) == 0]


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is planned, wherever it runs."""

    config: str
    architecture: ModelConfig
    blocks: list[list[Any]]
    metrics: Any
    prompt_tokens: int
    opening: str
    dtype: str
    settings: dict[str, Any]
    quick: bool
    tried: dict[Any, TopologyPlan | TooLarge] = dataclasses.field(default_factory=dict)

    def smallest(self, chip: Chip) -> tuple[str, Sizes]:
        """The smallest topology of a chip that has room, and the mesh there.

        Raises:
          DoesNotFit: there is none.
        """
        reason = ""
        for place in Topology(chip, chip.shapes[0]).of_this_chip():
            for model in _divisors(place.size):
                try:
                    attempt = self.attempt(place, (place.size // model, 1, model))
                except TooLarge as error:
                    reason = f"{place}: {error}"
                    continue
                return attempt.topology, attempt.mesh
        raise DoesNotFit(
            f"{self.config} in {self.dtype} with {self.prompt_tokens:,} tokens fits no known {chip.name} topology; "
            f"on {reason}"
        )

    def attempt(self, place: Topology, mesh: Sizes) -> TopologyPlan:
        """The plan on some chips.

        Raises:
          TooLarge: they have too little memory.
        """
        # Each place on `data` runs the same programs on as many chips, whatever the topology is.
        if (key := (place.chip, mesh[1:])) not in self.tried:
            try:
                self.tried[key] = self._compiled(place, mesh)
            except TooLarge as error:
                self.tried[key] = error
        if isinstance(tried := self.tried[key], TooLarge):
            raise tried
        return dataclasses.replace(tried, topology=str(place), mesh=mesh)

    def _compiled(self, place: Topology, sizes: Sizes) -> TopologyPlan:
        chip, cuts = place.chip, sizes[1] * sizes[2]
        network = abstract_network(self.architecture, self.dtype)
        least = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network)) // cuts
        if least > chip.hbm_bytes:
            raise TooLarge(
                f"its parameters alone take {least / GIB:.1f} GiB of a chip's {chip.hbm_bytes / GIB:.2f} GiB"
            )
        part = slices(jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=place.devices()))[0]
        model = abstract_model(self.architecture, self.dtype, part, self.config)
        held = held_bytes(model.network)
        opening = [0] * len(model.encode_text(self.opening)) if self.opening else []
        layout = SyntheticPrompt.of(self.prompt_tokens - len(opening), self.architecture)
        prompt = layout.prompt(self.architecture).continued(opening)
        media = int(np.isin(prompt.kinds, [KINDS.index("video"), KINDS.index("audio")]).sum())
        samples = CACHED_CLIPS // (2 if layout.hears else 1)  # a clip's picture and its sound are two outputs
        encoded = samples * media * self.architecture.decoder.embed_dim * model.dtype.itemsize
        free = chip.hbm_bytes - held - encoded
        if free <= 0:
            raise TooLarge(
                f"its parameters and encoded clips take {(held + encoded) / GIB:.1f} GiB, more than a chip has"
            )
        settings = {**self.settings, "clean_runs": NoRuns(model)}
        if settings["memory_bytes"] is None:
            settings["memory_bytes"] = int(MEMORY_SHARE * free)
        try:
            planned = [prepare(model, {"prompt": prompt}, block, self.metrics, **settings) for block in self.blocks]
        except NoRoom as error:
            raise TooLarge(
                f"the clean pass and one variant need an estimated {error.need / GIB:.1f} GiB; of the "
                f"{free / GIB:.1f} GiB beside the parameters a sweep may use {settings['memory_bytes'] / GIB:.1f}"
            ) from error
        compiled = tuple(programs(planned, layout, quick=self.quick))
        rate = chip.rate(self.dtype)
        plan = TopologyPlan(
            config=self.config,
            dtype=self.dtype,
            topology=str(place),
            mesh=sizes,
            prompt_tokens=self.prompt_tokens,
            cells=sum(map(len, self.blocks)),
            hbm_bytes=chip.hbm_bytes,
            parameter_bytes=held,
            encoded_bytes=encoded,
            programs=compiled,
            seconds_of=tuple(p.calls * max(p.flops / rate, p.bytes / chip.bandwidth) for p in compiled),
            smallest=(str(place), sizes),
        )
        if plan.peak_bytes > chip.hbm_bytes:
            largest = max(compiled, key=lambda p: p.working_bytes)
            raise TooLarge(
                f"it takes {plan.peak_bytes / GIB:.1f} GiB of a chip's {chip.hbm_bytes / GIB:.2f} GiB (parameters "
                f"{held / GIB:.1f}, {largest.name} {largest.working_bytes / GIB:.1f})"
            )
        return plan
