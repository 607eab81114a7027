"""What happens in a run, as lines of JSON for other programs.

Events: `started` (cells, missing), `block` (sample, cells, seconds, cells_per_second), `failed` (sample, reason),
`stopped` and `finished` (computed). Each line has `time` (ISO 8601, UTC) and `event` too.
"""

import datetime
import json
import threading
from collections.abc import Callable
from typing import Any, TextIO

Tell = Callable[..., None]


def silent(event: str, **values: Any) -> None:
    """Tells nobody."""


def to_lines(file: TextIO) -> Callable[..., None]:
    """Writes each event as a line, at once; slices of a mesh tell from threads of their own."""
    lock = threading.Lock()

    def tell(event: str, **values: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with lock:
            file.write(json.dumps({"time": now, "event": event, **values}) + "\n")
            file.flush()

    return tell
