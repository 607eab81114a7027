"""The clean passes of the prompt that is worked on, kept on the device for what comes next over it.

Blocks of a stored run, metrics in passes of their own and one sweep after another are all over one prompt; on a large
model the clean pass is most of what each of them costs.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer

from avjax.engine.clean_pass import CleanPass
from avjax.models.encoder_cache import same_buffers

_by_host: "weakref.WeakKeyDictionary[Any, CleanPasses]" = weakref.WeakKeyDictionary()


def clean_passes(host: Any) -> "CleanPasses":
    """Those of a model, or of a model's slice, by its host."""
    return _by_host.setdefault(host, CleanPasses())


@dataclasses.dataclass(frozen=True)
class _Kept:
    prompt: bytes
    key: Any
    num_rows: int
    parameters: tuple[weakref.ref[jax.Array], ...]  # a pass keeps no model alive
    clean: CleanPass

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.clean))

    def is_of(self, parameters: Sequence[jax.Array]) -> bool:
        ours = [parameter() for parameter in self.parameters]
        return all(a is not None and same_buffers(a, b) for a, b in zip(ours, parameters, strict=True))

    def bytes_beyond(self, num_rows: int) -> int:
        """Of the rows that a sweep has no use for."""
        return self.clean.residual.nbytes * (self.num_rows - num_rows) // self.num_rows


class CleanPasses:
    """Of one prompt and one set of parameters at a time: others take their place."""

    def __init__(self):
        self._kept: list[_Kept] = []

    def take(
        self,
        prompt: bytes,
        key: Any,
        num_rows: int,
        parameters: Sequence[jax.Array],
        compute: Callable[[], CleanPass],
        spare_bytes: int,
    ) -> CleanPass:
        """A clean pass that keeps at least `num_rows` rows: one that is there, else that of `compute`.

        Args:
          prompt: its digest, as it is now.
          key: all else that decides the pass, but the parameters.
          spare_bytes: what the sweep that asks leaves of its memory, for passes and rows that it has no use for.
        """
        if any(isinstance(leaf, Tracer) for leaf in parameters):
            return compute()
        ours = [kept for kept in self._kept if kept.prompt == prompt and kept.is_of(parameters)]
        others = [kept for kept in ours if kept.key != key]
        fitting = [kept for kept in ours if kept.key == key and kept.num_rows >= num_rows]
        fitting = [kept for kept in fitting if kept.bytes_beyond(num_rows) <= spare_bytes][:1]
        spare_bytes -= sum(kept.bytes_beyond(num_rows) for kept in fitting)
        while sum(kept.nbytes for kept in others) > spare_bytes:
            others.pop(0)  # the oldest go first
        self._kept = [*others, *fitting]  # before the next one takes its memory
        if fitting:
            return fitting[0].clean
        clean = compute()
        # Another thread may have replaced the list meanwhile: nothing that is read here depends on it.
        self._kept = [*others, _Kept(prompt, key, num_rows, tuple(map(weakref.ref, parameters)), clean)]
        return clean
