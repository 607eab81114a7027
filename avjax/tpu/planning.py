"""`plan_topology`: whether a sweep fits TPU chips, and what it costs there, found by compiling it for them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from avjax.config import ModelConfig
from avjax.engine.planning import MEMORY_SHARE
from avjax.grids import Grid
from avjax.interventions import Edit
from avjax.mesh import AXES, slices
from avjax.metrics import Metric
from avjax.model import CACHED_CLIPS
from avjax.models.attention import Compat
from avjax.parameters import abstract_network
from avjax.sweeping.plan import prepare
from avjax.tokens import KINDS
from avjax.tpu.chips import GIB, Chip, Topology
from avjax.tpu.programs import Program, TooLarge, held_bytes, programs
from avjax.tpu.synthetic import Layout, NoRuns, abstract_model, named_config

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
    quick: bool = False,
) -> TopologyPlan:
    """Compiles a sweep for TPU chips that need not be there.

    Args:
      config: a published model, such as "qwen2.5-omni-7b"; a config.json, or a checkpoint's directory.
      topology: such as "v5e:2x4".
      prompt_tokens: of the prompt, most of them a clip's.
      mesh: sizes of data, variant and model; by default the smallest `model` that fits, the rest for `data`.
      compat: see `avjax.run`.
      quick: let the compiler try less hard: a fraction of the time, and a tenth more temporary memory or so.

    Raises:
      DoesNotFit: the chips have too little memory; the smallest topology that has enough is named.
      ValueError: a name is unknown, or an edit does not fit.
      ImportError: libtpu is not installed (the extra `tpu`).
    """
    place = Topology.of(topology)
    if mesh is not None and math.prod(mesh) != place.size:
        raise ValueError(f"mesh: expected sizes whose product is {place.size}, the chips of {place}, got {list(mesh)}")
    case = _Case(config, named_config(config), grid, metrics, prompt_tokens, dtype, compat, quick)
    wanted = [(place.size // model, 1, model) for model in _divisors(place.size)] if mesh is None else [mesh]
    reason = ""
    for sizes in wanted:
        try:
            found = case.attempt(place, sizes)
        except TooLarge as error:
            reason = str(error)
        else:
            return dataclasses.replace(found, smallest=case.smallest(place.chip))
    where, sizes = case.smallest(place.chip)
    raise DoesNotFit(
        f"{config} in {dtype} with {prompt_tokens:,} tokens does not fit {place}: {reason}; the smallest of its kind "
        f"that has room is {where}, with the mesh data {sizes[0]}, variant {sizes[1]}, model {sizes[2]}"
    )


def _divisors(count: int) -> list[int]:
    """Those among powers of two."""
    return [1 << i for i in range(count.bit_length()) if count % (1 << i) == 0]


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is planned, wherever it runs."""

    config: str
    architecture: ModelConfig
    grid: Any
    metrics: Any
    prompt_tokens: int
    dtype: str
    compat: Compat | None
    quick: bool
    tried: dict[Any, TopologyPlan | TooLarge] = dataclasses.field(default_factory=dict)

    def smallest(self, chip: Chip) -> tuple[str, Sizes]:
        """The smallest topology of a chip that has room, and the mesh there.

        Raises:
          DoesNotFit: there is none.
        """
        for place in Topology(chip, chip.shapes[0]).of_this_chip():
            for model in _divisors(place.size):
                try:
                    found = self.attempt(place, (place.size // model, 1, model))
                except TooLarge:
                    continue
                return found.topology, found.mesh
        raise DoesNotFit(f"{self.config} in {self.dtype} with {self.prompt_tokens:,} tokens fits no {chip.name} here")

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
        if isinstance(found := self.tried[key], TooLarge):
            raise found
        return dataclasses.replace(found, topology=str(place), mesh=mesh)

    def _compiled(self, place: Topology, sizes: Sizes) -> TopologyPlan:
        chip, cuts = place.chip, sizes[1] * sizes[2]
        made = abstract_network(self.architecture, self.dtype)
        least = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made)) // cuts
        if least > chip.hbm_bytes:
            raise TooLarge(
                f"its parameters alone take {least / GIB:.1f} GiB of a chip's {chip.hbm_bytes / GIB:.2f} GiB"
            )
        part = slices(jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=place.devices()))[0]
        model = abstract_model(self.architecture, self.dtype, part, self.config)
        held = held_bytes(model.network)
        layout = Layout.of(self.prompt_tokens, self.architecture)
        prompt = layout.prompt(self.architecture)
        media = int(np.sum(prompt.kinds != KINDS.index("text")))
        encoded = CACHED_CLIPS * media * self.architecture.decoder.embed_dim * model.dtype.itemsize
        free = chip.hbm_bytes - held - encoded
        if free <= 0:
            raise TooLarge(f"its parameters and encoded clips take {(held + encoded) / GIB:.1f} GiB of a chip")
        planned = prepare(
            model,
            {"prompt": prompt},
            self.grid,
            self.metrics,
            memory_bytes=int(MEMORY_SHARE * free),
            compat=self.compat,
            allow_noop=True,
            clean_runs=NoRuns(model),
        )
        found = tuple(programs(planned, layout, quick=self.quick))
        plan = TopologyPlan(
            config=self.config,
            dtype=self.dtype,
            topology=str(place),
            mesh=sizes,
            prompt_tokens=self.prompt_tokens,
            cells=len(planned.cells.cells),
            hbm_bytes=chip.hbm_bytes,
            parameter_bytes=held,
            encoded_bytes=encoded,
            programs=found,
            seconds_of=tuple(p.calls * max(p.flops / chip.flops, p.bytes / chip.bandwidth) for p in found),
            smallest=(str(place), sizes),
        )
        if plan.peak_bytes > chip.hbm_bytes:
            largest = max(found, key=lambda p: p.working_bytes)
            raise TooLarge(
                f"it takes {plan.peak_bytes / GIB:.1f} GiB of a chip's {chip.hbm_bytes / GIB:.2f} GiB (parameters "
                f"{held / GIB:.1f}, {largest.name} {largest.working_bytes / GIB:.1f})"
            )
        return plan
