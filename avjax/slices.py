"""A model's slices on the `data` axis of its mesh, each at work on samples of its own, and what processes tell others.

Every process runs the same program. Those that have devices of one slice run its computations in step: what could
differ between them, such as free memory or what a disk holds, is told by the first of them.
"""

import collections
import dataclasses
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from avjax.engine.planning import checked_memory_bytes
from avjax.mesh import DATA, is_here, on_slice, slices
from avjax.model import Model

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A model on one place of the `data` axis; it computes every `count`-th sample, from `index` on."""

    index: int
    count: int
    model: Model

    def deal(self, samples: Mapping[Any, Result]) -> dict[Any, Result]:
        """This slice's share."""
        return {name: samples[name] for name in [*samples][self.index :: self.count]}


def slices_here(model: Model) -> list[Slice]:
    """The slices that this process has devices of; the model itself where there is but one."""
    mesh = model.mesh
    if mesh is None or mesh.shape[DATA] == 1:
        return [Slice(index=0, count=1, model=model)]
    found = []
    for index, part in enumerate(slices(mesh)):
        if is_here(part):
            network = jax.tree.map(lambda leaf, part=part: on_slice(leaf, part), model.network)
            if (host := model.host.parts.get(index)) is None:  # clips are encoded on the slice, and kept there
                host = dataclasses.replace(model.host, encoded=collections.OrderedDict(), parts={})
                model.host.parts[index] = host
            found.append(
                Slice(index=index, count=mesh.shape[DATA], model=dataclasses.replace(model, network=network, host=host))
            )
    return found


class Team:
    """The processes that have devices of a mesh. One process is a team of its own, and tells itself."""

    def __init__(self, mesh: Mesh | None):
        devices = [jax.local_devices()[0]] if mesh is None else [*mesh.devices.flat]
        here = jax.process_index()
        self.alone = jax.process_count() == 1 or all(device.process_index == here for device in devices)
        self.leads = devices[0].process_index == here
        self.mesh = Mesh(np.array(devices), ("device",), axis_types=(AxisType.Auto,))

    def told(self, value: int) -> int:
        """The leader's value. Every process of the team calls it."""
        return self.said(value)[0]

    def said(self, value: int) -> list[int]:
        """What each process says, the leader first. Every process of the team calls it."""
        return [value] if self.alone else self._values(value)

    def least(self, value: int) -> int:
        """The least of the processes' values. Every process of the team calls it."""
        return min(self.said(value))

    def agreed(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, when it has succeeded in every process of the team. Every process calls it.

        Raises:
          Exception: the first error of any process, in all of them.
        """
        here, found = jax.process_index(), None
        errors: dict[int, Exception] = {}
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - raised below
            errors[here] = error
        for error in self.gathered(_told(errors)).values():
            raise errors.get(here, error)
        return found  # pyright: ignore[reportReturnType]

    def gathered(self, found: Mapping[int, Result]) -> dict[int, Result]:
        """What all processes found, by slice; of a slice of several, what its leader did. Every process calls it.

        What is unpickled comes from processes of this same program.
        """
        if self.alone:
            return dict(found)
        data = np.frombuffer(pickle.dumps(dict(found)), np.uint8)
        sizes = self._values(len(data))
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = data
        merged: dict[int, Result] = {}
        for row, size in reversed([*zip(self._each(padded), sizes, strict=True)]):
            merged |= pickle.loads(row[:size].tobytes())  # the leader of a slice has the first of its devices
        return dict(sorted(merged.items()))

    def _values(self, value: int) -> list[int]:
        """What each device's process says; as halves, since a device's integers have 32 bits."""
        return [high << 31 | low for high, low in self._each(np.array(divmod(value, 1 << 31), np.int32)).tolist()]

    def _each(self, own: np.ndarray) -> np.ndarray:
        """The array of each device's process, which all have one shape."""
        cut, everywhere = (NamedSharding(self.mesh, spec) for spec in (P("device"), P()))
        told = jax.make_array_from_callback((self.mesh.size, *own.shape), cut, lambda _: own[None])
        return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(told))


def everyone() -> Team:
    """All processes."""
    return Team(Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,)))


def _told(errors: Mapping[int, Exception]) -> dict[int, Exception]:
    """Errors as other processes can read them."""

    def one(error: Exception) -> Exception:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - of any class, by anyone
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error

    return {index: one(error) for index, error in errors.items()}


def at_once(
    work: Callable[[Slice], Result],
    parts: Sequence[Slice],
    team: Team,
    *,
    in_turn: bool = False,
    halt: Callable[[], None] = lambda: None,
) -> dict[int, Result]:
    """`work` of every slice here, by its index: of one in this thread, of several each in a thread of its own.

    Args:
      team: of all slices.
      in_turn: one after the other.
      halt: is called when a slice has failed or this thread is interrupted, so that the others end soon.

    Raises:
      Exception: the first error of any slice, on every process of the team, when all are done.
    """
    results: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    def one(part: Slice) -> None:
        try:
            results[part.index] = work(part)
        except Exception as error:  # noqa: BLE001 - raised below, also where it did not happen
            errors[part.index] = error
            halt()

    if in_turn or len(parts) <= 1:
        for part in parts:
            one(part)
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            try:
                for done in [pool.submit(one, part) for part in parts]:
                    done.result()
            except BaseException:
                halt()
                raise
    for index, error in team.gathered(_told(errors)).items():
        raise errors.get(index, error)
    return dict(sorted(results.items()))


def memory_of(model: Model, asked: int | None) -> int:
    """What a sweep may use beside the parameters, on the device of its mesh that has least; the same on all processes.

    Raises:
      ValueError: `asked` is no number of bytes.
    """
    return Team(model.mesh).least(checked_memory_bytes(asked))
