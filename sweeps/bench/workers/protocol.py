"""How a worker talks: one JSON object a line, requests on stdin, answers on stdout. Standard library and numpy only.

Request:  {"workload": "a", "sample": 8}  (sample: how many variants a method that loops may run; null for all)
Answer:   {"seconds", "fixed_seconds", "cpu_seconds", "variants", "results": {variant: values}, "peak_bytes"}
          or {"unsupported": reason} or {"error": text}.
`seconds` covers the whole workload on a loaded model, prefill included. `fixed_seconds` of it do not grow with the
number of variants, so that a sample of n among N stands for fixed + (seconds - fixed) * N / n.
Lines that are no JSON object are what libraries print while they are imported.
`results` are the logits of the two answer tokens; in b the generated ids; in e the likeliest ids of every layer.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WAKE_SECONDS = 0.2


class Unsupported(Exception):
    """A workload that a library cannot express; the message says why."""


@dataclasses.dataclass
class Task:
    """One workload: the variants to run, by number, and the document they belong to."""

    name: str
    document: Mapping[str, Any]
    variants: dict[int, Mapping[str, Any]]
    fixed_seconds: float = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.document["ids"])

    def positions(self, name: str) -> np.ndarray:
        """Prompt positions of a token group; generated tokens have none."""
        if name in ("last", "answer"):
            return np.array([self.num_tokens - 1])
        return np.flatnonzero(np.array(self.document["kinds"]) == name)


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a method provides.

    Attributes:
      run: one workload; results by variant number.
      versions: of what it is made of.
      device: "cpu" or the accelerator's name.
      peak_bytes: bytes in use at most since the model was loaded or the last call, by the device's own count; None
        takes the process's memory.
      loops: runs variants one by one, so that a sample may stand for all.
    """

    run: Callable[[Task], Mapping[int, Sequence[Any]]]
    versions: Mapping[str, str]
    device: str
    loops: bool
    peak_bytes: Callable[[], int] | None = None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A worker of sweeps.bench; the benchmark starts it.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    return parser.parse_args()


def serve(load: Callable[[argparse.Namespace], Worker]) -> None:
    """Loads the model, says so, and answers requests until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    options = arguments()
    # XLA has no thread count of its own; it starts as many threads as the process has cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    def answer(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    start = time.perf_counter()
    document = json.loads(options.workload.read_text())
    worker = load(options)
    loaded = resident_bytes()
    description = {"versions": dict(worker.versions), "device": worker.device, "threads": options.threads}
    answer({"ready": time.perf_counter() - start, "loops": worker.loops, **description})
    for line in sys.stdin:
        try:
            answer(_answer(worker, document, json.loads(line), loaded))
        except Unsupported as reason:
            answer({"unsupported": str(reason)})
        except Exception:  # noqa: BLE001 - the benchmark prints it and goes on with the other methods
            answer({"error": traceback.format_exc(limit=-6)})


def _answer(worker: Worker, document: Mapping[str, Any], request: Mapping[str, Any], loaded: int) -> dict[str, Any]:
    name = request["workload"]
    every = document["workloads"][name]
    sample = request.get("sample") if worker.loops else None
    task = Task(name, document, {i: every[i] for i in sampled(len(every), sample)})
    reset_peak()
    if worker.peak_bytes is not None:
        worker.peak_bytes()
    cpu = time.process_time()
    wake()
    start = time.perf_counter()
    results = worker.run(task)
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu
    peak = worker.peak_bytes() if worker.peak_bytes is not None else max(0, peak_resident_bytes() - loaded)
    return {
        "seconds": seconds,
        "fixed_seconds": task.fixed_seconds,
        "cpu_seconds": cpu,
        "variants": len(results),
        "results": {i: np.asarray(values).tolist() for i, values in results.items()},
        "peak_bytes": peak,
    }


def wake() -> None:
    """Keeps every core busy for a moment: after the turns of other methods the first 0.1 s of work runs slower."""
    end = time.perf_counter() + WAKE_SECONDS

    def work(_: int) -> None:
        numbers = np.ones(1 << 16)
        while time.perf_counter() < end:
            np.sin(numbers, out=numbers)

    cores = len(os.sched_getaffinity(0))
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, range(cores)))


def sampled(total: int, count: int | None) -> list[int]:
    """A seeded sample of variants, the same for every method."""
    if count is None or count >= total:
        return list(range(total))
    return sorted(np.random.default_rng(0).choice(total, count, replace=False).tolist())


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def resident_bytes() -> int:
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    return _status_bytes("VmHWM")


def reset_peak() -> None:
    """Makes the kernel count the peak anew; where it does not allow that, peaks are those since the process began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
