"""Directories of a cache: whether one can be used, and that it does not grow without bound."""

import contextlib
import errno
import os
import shutil
import stat
import uuid
from pathlib import Path

PROGRAM_BYTES, ENCODING_BYTES, RECEIPT_BYTES = 4 * 10**9, 20 * 10**9, 10**8  # at most, unless others are asked for
LEAST_FREE = 200 * 10**6  # bytes; a cache never takes a disk's last ones


def prepare(directory: Path) -> None:
    """Makes a directory that only its user can enter, where there is none.

    Raises:
      OSError: it cannot be written to, its disk is full, or somebody else could put files there: a compiled program is
        code that is run.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        _refuse_shared(directory)
    if shutil.disk_usage(directory).free < LEAST_FREE:
        raise OSError(errno.ENOSPC, "the disk is full", str(directory))
    probe = directory / f".{uuid.uuid4().hex}"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


def _refuse_shared(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        expected = "expected a directory of your own that nobody else can write to; chmod go-w, or choose another"
        raise OSError(errno.EPERM, expected, str(directory))
    for parent in directory.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # anybody could put another directory in its place
            raise OSError(errno.EPERM, f"expected no directory above it that all can write to, got {parent}")


def size(directory: Path, pattern: str) -> tuple[int, int]:
    """How many files match, and their bytes."""
    sizes = [status.st_size for _, status in _files(directory, pattern)]
    return len(sizes), sum(sizes)


def trim(directory: Path, pattern: str, max_bytes: int) -> None:
    """Removes the files that were not used for longest, until the others take at most `max_bytes`.

    Where a file system keeps no access times, those that were written first go first.
    """
    files = _files(directory, pattern)
    total = sum(status.st_size for _, status in files)
    for path, status in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime)):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size


def _files(directory: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    """Other processes may remove files meanwhile."""
    files = []
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                files.append((path, status))
    return files
