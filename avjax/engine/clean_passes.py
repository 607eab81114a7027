"""The clean passes of the prompt that is worked on, kept on the device for what comes next over it.

Blocks of a stored run, metrics in passes of their own and one sweep after another are all over one prompt; on a large
model the clean pass is most of what each of them costs.
"""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import jax

from avjax.engine.clean_pass import CleanPass
from avjax.models.encoder_cache import same_buffers

SHARE = 4  # of a sweep's memory, this part for passes beside its own

_by_host: "weakref.WeakKeyDictionary[Any, CleanPasses]" = weakref.WeakKeyDictionary()


def clean_passes(host: Any) -> "CleanPasses":
    """Those of a model, or of a model's slice, by its host."""
    return _by_host.setdefault(host, CleanPasses())


@dataclasses.dataclass(frozen=True)
class _Kept:
    key: Any
    num_rows: int
    parameters: list[jax.Array]
    clean: CleanPass

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.clean))


class CleanPasses:
    """Of one prompt at a time: another one takes its place."""

    def __init__(self):
        self._prompt: bytes = b""
        self._kept: list[_Kept] = []

    def take(
        self,
        prompt: bytes,
        key: Any,
        num_rows: int,
        parameters: list[jax.Array],
        compute: Callable[[], CleanPass],
        memory_bytes: int,
    ) -> CleanPass:
        """A clean pass that keeps at least `num_rows` rows: one that is there, else that of `compute`.

        Args:
          prompt: its fingerprint.
          key: all else that decides the pass, but the parameters.
          memory_bytes: of the sweep that asks; passes beside its own take a share of it.
        """
        if prompt != self._prompt:
            self._prompt, self._kept = prompt, []
        for kept in self._kept:
            if kept.key == key and kept.num_rows >= num_rows and all(map(same_buffers, kept.parameters, parameters)):
                return kept.clean
        # One of fewer rows is of no more use; the oldest go first.
        others = [kept for kept in self._kept if kept.key != key]
        while sum(kept.nbytes for kept in others) > memory_bytes // SHARE:
            others.pop(0)
        self._kept = others  # before the next one takes its memory
        clean = compute()
        self._kept = [*others, _Kept(key, num_rows, parameters, clean)]
        return clean
