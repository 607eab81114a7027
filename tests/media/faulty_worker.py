"""A decoder's process that dies, hangs or talks where a file's name says so, for the tests of `IsolatedReader`."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from avjax.media.worker import TASKS, serve


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(600)


def hang_alone() -> None:
    """Without letting other threads run, as a loop in C does."""
    ctypes.PyDLL(None).sleep(600)


def leave() -> None:
    os._exit(7)


def out_of_memory() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def talk() -> None:
    sys.stdout.write("a library's remark\n")
    sys.stdout.flush()
    os.write(1, b"and another one\n")


def fail() -> None:
    raise _LocalError("of a class that cannot be pickled", None)


class _LocalError(Exception):
    def __init__(self, text: str, other: Any):
        super().__init__(text)


FAULTS = {fault.__name__: fault for fault in (crash, hang, hang_alone, leave, out_of_memory, talk, fail)}


def faulty(task: str) -> Any:
    def decode(clip: Any, *arguments: Any) -> Any:
        name = Path(clip).stem
        if name in FAULTS:
            FAULTS[name]()
        if name == "process":
            return str(os.getpid()), str(clip)
        return TASKS[task](clip, *arguments)

    return decode


if __name__ == "__main__":
    serve({task: faulty(task) for task in TASKS})
