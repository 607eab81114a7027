"""A worker process, as the benchmark sees it."""

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import avjax
from sweeps.bench.environments import WORKERS, Method, python_of

# OpenMP's threads spin at barriers for long by default. On two cores of which another process took one, that made
# torch's passes 2 to 12 times slower than threads that soon sleep (2.5 s against 0.26 s), and XLA's hardly.
SPIN_COUNT = "1000"


class Client:
    """A running worker that has loaded its model.

    Attributes:
      about: what it said when it was ready: versions, device, threads, seconds to load.
    """

    def __init__(self, name: str, method: Method, directory: Path, size: str, threads: int, reuse_current: bool):
        data = directory / size
        self.name, self.log = name, directory / f"{name}.log"
        python = python_of(method, directory, reuse_current)
        command = [str(python), str(WORKERS / method.script), "--checkpoint", str(data)]
        command += ["--workload", str(data / "workload.json"), "--threads", str(threads), *method.arguments]
        environment = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(threads), GOMP_SPINCOUNT=SPIN_COUNT)
        if method.environment is None:  # the avjax that runs the benchmark, wherever it is
            environment["PYTHONPATH"] = str(Path(str(avjax.__file__)).parents[1])
        else:
            environment.pop("PYTHONPATH", None)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        tail = self.log.read_text()[-1500:]
        raise RuntimeError(f"{self.name}: the worker ended with {self.process.wait()}; {self.log} ends:\n{tail}")

    def ask(self, workload: str, sample: int | None) -> dict[str, Any]:
        """One workload, once: what the worker answers, or an `error` when it has died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"workload": workload, "sample": sample}) + "\n")
            self.process.stdin.flush()
            return self._read()
        except (OSError, RuntimeError) as error:
            return {"error": str(error)}

    def close(self) -> None:
        """Ends the worker, if it has not ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
