"""A progress bar with rate, device memory and time left, for work that takes a while."""

import time
from types import TracebackType
from typing import Self

PATIENCE_SECONDS = 2.0  # work that is done sooner shows no bar


class Progress:
    """Counts steps; on a terminal, draws a bar on standard error once the work has taken a moment."""

    def __init__(self, task: str, total: int, unit: str, *, enabled: bool = True):
        self.task, self.total, self.unit, self.done = task, total, unit, 0
        self.started = time.monotonic()
        self.bar = None
        self.enabled = enabled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, steps: int) -> None:
        self.done += steps
        if not self.enabled:
            return
        if self.bar is None and time.monotonic() - self.started > PATIENCE_SECONDS and self.done < self.total:
            self._show()
        if self.bar is not None:
            seconds = time.monotonic() - self.started
            rate = f"{self.done / max(seconds, 1e-9):,.0f} {self.unit}/s"
            self.bar.update(self.row, completed=self.done, rate=rate, memory=_memory())

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        console = Console(stderr=True)
        if not console.is_terminal:
            self.enabled = False
            return
        self.bar = Rich(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[memory]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.bar.start()
        self.row = self.bar.add_task(self.task, total=self.total, completed=self.done, rate="", memory="")


def _memory() -> str:
    """What the device has in use, where it tells; a CPU does not."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    used, limit = stats.get("bytes_in_use"), stats.get("bytes_limit")
    return "" if used is None else f"{used / 1e9:.1f}" + (f" of {limit / 1e9:.1f} GB" if limit else " GB")
