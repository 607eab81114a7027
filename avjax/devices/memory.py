"""How much memory a sweep may use when the caller does not say."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from avjax.devices.processes import Team

MEMORY_SHARE = 0.5  # of what is free, when no budget is given
_limit: int | None = None


@contextlib.contextmanager
def memory_limit(memory_bytes: int | None) -> Iterator[None]:
    """Sets what `memory_bytes=None` means inside the block, in all threads; None restores the default."""
    global _limit
    before, _limit = _limit, memory_bytes
    try:
        yield
    finally:
        _limit = before


def checked_memory_bytes(memory_bytes: int | None) -> int:
    """The budget that was asked for, or the default.

    Raises:
      ValueError: it is no number of bytes.
    """
    if memory_bytes is None:
        memory_bytes = _limit
    if memory_bytes is None:
        return default_memory_bytes()
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int | np.integer):
        raise ValueError(f"memory_bytes: expected a whole number of bytes, got {memory_bytes!r}")
    return int(memory_bytes)


def default_memory_bytes() -> int:
    """Half of what the device has free; devices that are one CPU share what it has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(MEMORY_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts what the page cache would give back
        available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        if available is not None:
            return int(MEMORY_SHARE * 1024 * int(available[1])) // jax.local_device_count()
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")) // jax.local_device_count()


def agreed_memory_bytes(mesh: Mesh | None, asked: int | None) -> int:
    """What a sweep may use beside the parameters, on the device of a mesh that has least; the same on all processes.

    Raises:
      ValueError: `asked` is no number of bytes.
    """
    return Team(mesh).minimum(checked_memory_bytes(asked))
