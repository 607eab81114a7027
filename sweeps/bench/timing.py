"""Timing of several methods in one run: interleaved rounds, medians, and the parity of what they computed."""

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one method over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def interleave(methods: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Runs every method once per round, so that a noisy machine disturbs all of them alike.

    Args:
      methods: each must block until its result exists.
    """
    for _ in range(warmup):
        for method in methods.values():
            method()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_index in range(rounds):
        names = list(methods)
        for name in names[round_index % len(names) :] + names[: round_index % len(names)]:
            start = time.perf_counter()
            methods[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(seconds=tuple(values)) for name, values in seconds.items()}


def hardware() -> str:
    """The device that jax computes on, and the machine."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else platform.processor() or platform.machine()
    return f"{device.platform} ({kind}), jax {jax.__version__}"
