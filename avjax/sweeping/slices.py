"""A model's slices on the `data` axis of its mesh, each at work on samples of its own."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from avjax.devices.mesh import DATA, is_here, on_slice, slices
from avjax.devices.processes import Team, picklable_errors
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
    local = []
    for index, part in enumerate(slices(mesh)):
        if is_here(part):
            network = jax.tree.map(lambda leaf, part=part: on_slice(leaf, part), model.network)
            if (host := model.host.parts.get(index)) is None:  # clips are encoded on the slice, and kept there
                host = dataclasses.replace(model.host, encoded=collections.OrderedDict(), parts={})
                model.host.parts[index] = host
            local.append(
                Slice(index=index, count=mesh.shape[DATA], model=dataclasses.replace(model, network=network, host=host))
            )
    return local


def run_slices(
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
    for index, error in team.merged(picklable_errors(errors)).items():
        raise errors.get(index, error)
    return dict(sorted(results.items()))
