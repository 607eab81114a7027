"""How much of the machine other processes took while something was measured."""

import time
from pathlib import Path

TICK_SECONDS = 0.01  # the unit of /proc/stat
DISTURBED = 0.1  # cores


def busy_seconds() -> float | None:
    """Processor time that the machine has spent on anything, all cores together; None where it cannot be read."""
    try:
        fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) * TICK_SECONDS


class Others:
    """Cores that other processes kept busy between construction and `cores`."""

    def __init__(self):
        self.start, self.busy = time.perf_counter(), busy_seconds()

    def cores(self, own_seconds: float) -> float | None:
        """Args: own_seconds, processor time of what was measured."""
        busy = busy_seconds()
        if busy is None or self.busy is None:
            return None
        return max(0.0, (busy - self.busy - own_seconds) / (time.perf_counter() - self.start))
