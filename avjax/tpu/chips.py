"""TPU chips and topologies: what they hold and how fast they are, and their devices to compile for.

Peak rates and bandwidth are those that Google's documentation states for each generation; of the 16, 32 and 95 GB of
memory there, what a program may use, as libtpu's own refusals say.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

GIB = 2**30
PASSES = {"bfloat16": 1, "float32": 6}  # of bfloat16 products that one at `Precision.HIGHEST` takes, as XLA has it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of chip: what it holds and how fast it is.

    Attributes:
      hbm_bytes: that a program may use.
      flops: of bfloat16 products, per second; see `rate`.
      bandwidth: bytes of that memory per second.
      host: chips of one host, by axis.
      shapes: topologies from the smallest on, by axis.
    """

    name: str
    hbm_bytes: int
    flops: float
    bandwidth: float
    host: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    def rate(self, dtype: str) -> float:
        """Operations per second of products in a dtype, at the precision that the models ask for."""
        return self.flops / PASSES[dtype]


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
_DEEP = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(name="v5e", hbm_bytes=int(15.75 * GIB), flops=197e12, bandwidth=819e9, host=(2, 2), shapes=_FLAT),
        Chip(name="v5p", hbm_bytes=int(95.74 * GIB), flops=459e12, bandwidth=2765e9, host=(2, 2, 1), shapes=_DEEP),
        Chip(name="v6e", hbm_bytes=int(31.25 * GIB), flops=918e12, bandwidth=1640e9, host=(2, 2), shapes=_FLAT),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in a grid, such as `v5e:2x4`."""

    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "Topology":
        """The topology of a name.

        Raises:
          ValueError: the chip is unknown, or its grid has another number of axes.
        """
        name, _, sizes = text.partition(":")
        if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
            known = ", ".join(CHIPS)
            raise ValueError(f"topology: expected CHIP:SIZES such as v5e:2x4, a chip of {known}, got {text!r}")
        chip, shape = CHIPS[name], tuple(map(int, sizes.split("x")))
        if len(shape) != len(chip.host):
            raise ValueError(f"topology: expected {len(chip.host)} sizes for {name}, got {text!r}")
        return cls(chip, shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def of_this_chip(self) -> Iterator["Topology"]:
        """All topologies of this chip, from the smallest on."""
        return (Topology(self.chip, shape) for shape in self.chip.shapes)

    def devices(self) -> list[Any]:
        """Devices to compile for, which need not be at hand.

        Raises:
          ImportError: libtpu is not installed.
          ValueError: libtpu knows no such topology.
        """
        from jax.experimental import topologies

        if importlib.util.find_spec("libtpu") is None:
            raise ImportError(
                'planning for TPUs compiles with libtpu, which is not installed; pip install "avjax[tpu]"'
            )
        # Nothing is run: neither the chip's lock nor the cloud's metadata matter.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        bounds = [min(host, size) for host, size in zip(self.chip.host, self.shape, strict=True)]
        bounds += [1] * (3 - len(bounds))
        try:
            return list(topologies.get_topology_desc(str(self), "tpu", chips_per_host_bounds=bounds).devices)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"topology {self}: libtpu does not know it ({error})") from error
