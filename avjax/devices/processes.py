"""What processes that work together exchange.

Every process runs the same program. Those that have devices of one slice run its computations in step: the first of
them decides what could differ between them, such as free memory or what a disk holds, and the others are sent it.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Result = TypeVar("Result")


class Team:
    """The processes that have devices of a mesh. One process is a team of its own.

    Every process of a team calls each of its methods, in the same order.
    """

    def __init__(self, mesh: Mesh | None):
        devices = [jax.local_devices()[0]] if mesh is None else [*mesh.devices.flat]
        here = jax.process_index()
        self.alone = jax.process_count() == 1 or all(device.process_index == here for device in devices)
        self.leads = devices[0].process_index == here
        self.mesh = Mesh(np.array(devices), ("device",), axis_types=(AxisType.Auto,))

    def broadcast(self, value: int) -> int:
        """The leader's value."""
        return self.all_gather(value)[0]

    def all_gather(self, value: int) -> list[int]:
        """The value of each process, the leader's first."""
        return [value] if self.alone else self._values(value)

    def minimum(self, value: int) -> int:
        """The smallest of the processes' values."""
        return min(self.all_gather(value))

    def run_together(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, when it has succeeded in every process.

        Raises:
          Exception: the first error of any process, in all of them.
        """
        here, result = jax.process_index(), None
        errors: dict[int, Exception] = {}
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised below
            errors[here] = error
        for error in self.merged(picklable_errors(errors)).values():
            raise errors.get(here, error)
        return result  # pyright: ignore[reportReturnType]

    def merged(self, by_slice: Mapping[int, Result]) -> dict[int, Result]:
        """The results of all processes, by slice; for a slice of several processes, its leader's.

        What is unpickled comes from processes of this same program.
        """
        if self.alone:
            return dict(by_slice)
        data = np.frombuffer(pickle.dumps(dict(by_slice)), np.uint8)
        sizes = self._values(len(data))
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = data
        everywhere: dict[int, Result] = {}
        for row, size in reversed([*zip(self._each(padded), sizes, strict=True)]):
            everywhere |= pickle.loads(row[:size].tobytes())  # the leader of a slice has the first of its devices
        return dict(sorted(everywhere.items()))

    def _values(self, value: int) -> list[int]:
        """The value of each device's process; sent as halves, since a device's integers have 32 bits."""
        return [high << 31 | low for high, low in self._each(np.array(divmod(value, 1 << 31), np.int32)).tolist()]

    def _each(self, array: np.ndarray) -> np.ndarray:
        """The array of each device's process, which all have one shape."""
        cut, everywhere = (NamedSharding(self.mesh, spec) for spec in (P("device"), P()))
        sent = jax.make_array_from_callback((self.mesh.size, *array.shape), cut, lambda _: array[None])
        return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(sent))


def everyone() -> Team:
    """All processes."""
    return Team(Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,)))


def picklable_errors(errors: Mapping[int, Exception]) -> dict[int, Exception]:
    """The errors, and in place of one that cannot be pickled its text."""

    def picklable(error: Exception) -> Exception:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - of any class, by anyone
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error

    return {index: picklable(error) for index, error in errors.items()}
