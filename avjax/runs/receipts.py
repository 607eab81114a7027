"""Receipts of finished runs, in the user's cache: the same command again has nothing to do, and needs no model to know.

A receipt holds the state of every file that the run was made of. When one is another than then, or a part of the store
is missing or damaged, the receipt counts for nothing and the run looks for itself. Nothing here imports jax.
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

from avjax.models import numerics
from avjax.runs.store import Store

DIRECTORY, MOST = "finished", 1000  # receipts that are kept

State = tuple[int, int, int]


def state(files: Iterable[Path]) -> dict[str, State]:
    """Size, time of the last change and inode of each file, by its whole path; a file that is not there is left out."""
    states = {}
    for path in files:
        with suppress(OSError):
            status = path.stat()
            states[str(path.absolute())] = (status.st_size, status.st_mtime_ns, status.st_ino)
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
            kept = json.loads(self.path.read_text())
            files, parts, store = kept["files"], set(kept["parts"]), Store(kept["store"])
            if state(map(Path, files)) != {name: tuple(values) for name, values in files.items()}:
                return None
            present = {part.name for part in store.parts().values()}
            return kept["store"] if parts <= present and not store.damaged() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, store: Store, files: Mapping[str, State], blocks: Iterable[str]) -> None:
        """Keeps that all blocks are in the store; where it cannot be written, the next run looks for itself.

        Args:
          files: their state before the run read them.
        """
        parts, wanted = store.parts(), [*blocks]
        if not store.local or not parts.keys() >= set(wanted):
            return
        kept = {
            "store": os.fspath(store.path),
            "files": {**files, **state([Path(store.path / "run.json")])},
            "parts": [parts[block].name for block in wanted],
        }
        partial = self.path.with_name(f".{uuid.uuid4().hex}")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps(kept))
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
            for old in sorted(self.path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-MOST]:
                old.unlink(missing_ok=True)
