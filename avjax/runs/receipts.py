"""Receipts of finished runs, in the user's cache: the same command again has nothing to do, and needs no model to know.

A receipt holds the state of every file that the run was made of. When one is another than then, one was added to the
checkpoint, or a part of the store is missing, damaged or of another run, the receipt counts for nothing and the run
looks for itself. Nothing here imports jax.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avjax.checkpoint.files import checkpoint_files
from avjax.devices.disk import prepare
from avjax.models import numerics
from avjax.runs.store import Store

DIRECTORY = "finished"

State = tuple[int, int, int, int]


def state(files: Iterable[Path]) -> dict[str, State]:
    """Size, times of the last changes and inode of each file, by its whole path; one that is not there is left out."""
    states = {}
    for path in files:
        with suppress(OSError):
            status = path.stat()
            states[str(path.absolute())] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return states


class Receipt:
    """The receipt of one command, from one directory.

    Args:
      cache: the user's cache directory.
      words: the command: the specification's file, overrides, the store, the share.
    """

    def __init__(self, cache: Path, words: Any):
        about = json.dumps([version("avjax"), numerics.VERSION, str(Path.cwd()), words], default=str)
        self.path = cache / DIRECTORY / f"{hashlib.blake2b(about.encode(), digest_size=16).hexdigest()}.json"

    def store(self) -> str | None:
        """The store whose cells are all there, undamaged and made of the files as they are; else None."""
        try:
            content = json.loads(self.path.read_text())
            files, store = content["files"], Store(content["store"])
            now = state([*map(Path, files), *checkpoint_files(Path(content["checkpoint"]))])
            if now != {name: tuple(values) for name, values in files.items()}:
                return None
            present = store.parts()
            if not present.keys() <= {*content["blocks"]}:  # the run itself says what is wrong with the others
                return None
            done = {*content["parts"]} <= {part.name for part in present.values()}
            return content["store"] if done and not store.damaged() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(
        self,
        store: Store,
        checkpoint: Path,
        files: Mapping[str, State],
        share: Iterable[str],
        blocks: Iterable[str],
    ) -> None:
        """Keeps that all blocks are in the store; where it cannot be written, the next run looks for itself.

        Args:
          checkpoint: its directory.
          files: their state before the run read them, those of the checkpoint included.
          share: names of the command's blocks.
          blocks: names of all of the run's.
        """
        parts, wanted = store.parts(), [*share]
        if not store.local or not parts.keys() >= {*wanted}:
            return
        content = {
            "store": os.fspath(store.path),
            "checkpoint": str(checkpoint.absolute()),
            "files": {**files, **state([Path(store.path / "run.json")])},
            "parts": [parts[block].name for block in wanted],
            "blocks": [*blocks],
        }
        partial = self.path.with_name(f".{uuid.uuid4().hex}")
        with suppress(OSError):
            prepare(self.path.parent)
            try:
                partial.write_text(json.dumps(content))
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
