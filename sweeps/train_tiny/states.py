"""Training states on disk, by Orbax: the last one is kept, and a stopped run goes on from it."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from avjax.checkpoint.orbax import quiet_orbax

Tree = TypeVar("Tree")


class States:
    """The saved states of one stage."""

    def __init__(self, directory: Path):
        import orbax.checkpoint as ocp

        self.ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.manager.close()

    def latest(self, first: Tree) -> tuple[int, Tree]:
        """Steps done, and the state after them; `first` where nothing was saved."""
        step = self.manager.latest_step()
        if step is None:
            return 0, first
        with quiet_orbax():
            restored = self.manager.restore(step, args=self.ocp.args.StandardRestore(_leaves(first)))
        return step, jax.tree.unflatten(jax.tree.structure(first), restored["leaves"])

    def save(self, step: int, state: Any) -> None:
        with quiet_orbax():
            self.manager.save(step, args=self.ocp.args.StandardSave(_leaves(state)))


def _leaves(tree: Any) -> dict[str, Any]:
    return {"leaves": jax.tree.leaves(tree)}
