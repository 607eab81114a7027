"""What happens in a run, as lines of JSON for other programs.

Events: `started` (cells, missing), `block` (sample, cells, seconds, cells_per_second), `failed` (sample, reason),
`stopped` and `finished` (computed). Each line has `time` (ISO 8601, UTC) and `event` too.
"""

import contextlib
import datetime
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from avjax.runs.store import StoreError, write_whole

Tell = Callable[..., None]


def silent(event: str, **values: Any) -> None:
    """Discards events."""


@contextlib.contextmanager
def to_lines(target: str) -> Iterator[Tell]:
    """Writes each event as a line, at once, from any thread: each slice of a mesh has one.

    Args:
      target: a file, which goes on after what it holds, or "-" for standard error.

    Raises:
      OSError: the file cannot be opened.
      StoreError: a line cannot be written. It ends the run, which can be gone on with; a gap would not be seen.
    """
    lock = threading.Lock()

    def telling(write: Callable[[str], Any]) -> Tell:
        def tell(event: str, **values: Any) -> None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            with lock:
                try:
                    write(json.dumps({"time": now, "event": event, **values}) + "\n")
                except OSError as error:
                    raise StoreError(
                        f"--log-json {target}: it cannot be written ({error.strerror or error}); finished parts "
                        "are kept. Make room, or name another file, and run it again to continue"
                    ) from error

        return tell

    if target == "-":
        yield telling(sys.stderr.write)
        return
    with Path(target).open("ab", buffering=0) as file:  # closing it writes nothing that failed before
        yield telling(lambda line: write_whole(file, line.encode()))
