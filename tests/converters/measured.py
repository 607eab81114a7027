"""Run as a program: one converter call, with this process's peak memory before and during it as JSON."""

import json
import sys
import threading
import time
from pathlib import Path

MESH_AXES = ("data", "variant", "model")


def status() -> dict[str, int]:
    """Bytes of each memory count that Linux keeps for this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


class Peaks:
    """Peak resident memory: the kernel's own high-water mark, and its anonymous and file-mapped parts sampled."""

    def __init__(self):
        # Writing 5 sets the high-water mark back to what is resident now, so that imports do not hide the call.
        Path("/proc/self/clear_refs").write_text("5")
        self.baseline = status()
        self.peaks = {"RssAnon": 0, "RssFile": 0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.is_set():
            now = status()
            self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}
            time.sleep(0.005)

    def finish(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return {
            "baseline": self.baseline["VmRSS"],
            "peak": status()["VmHWM"] - self.baseline["VmRSS"],
            "anonymous": self.peaks["RssAnon"] - self.baseline["RssAnon"],
            "file_mapped": self.peaks["RssFile"] - self.baseline["RssFile"],
        }


def main(action: str, *paths: str) -> None:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_num_cpu_devices", 4)  # what one device holds is not measured differently

    # What the calls below import when they need it belongs to the baseline.
    import transformers.models.qwen2_5_omni.configuration_qwen2_5_omni  # noqa: F401

    import avjax
    import converters.streaming  # noqa: F401
    from converters.convert import convert
    from converters.export import export

    jnp.zeros(1).block_until_ready()
    calls = {"convert": convert, "export": export, "load": lambda path: avjax.load(path, dtype="bfloat16")}
    calls["load_mesh"] = lambda path: avjax.load(path, dtype="bfloat16", mesh=jax.make_mesh((1, 1, 4), MESH_AXES))
    peaks = Peaks()
    kept = calls[action](*paths)
    print(json.dumps(peaks.finish()))
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
