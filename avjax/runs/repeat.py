"""A run done again: the specification that it was made from, where the two can be compared."""

from collections.abc import Sequence
from pathlib import Path

from avjax.runs.reading import unusable
from avjax.runs.spec.spec import Spec
from avjax.runs.store import Store

ELSEWHERE = ("mesh=", "mesh.", "memory_bytes=", "decode_seconds=")  # what a run on another machine may change


def run_to_repeat(path: str, *, other_than: str | None = None) -> Store:
    """The store of a run.

    Args:
      path: of the run's directory, or of its run.json.
      other_than: the store that the repeated run is written to.

    Raises:
      ValueError: both are one store.
    """
    directory = path.removesuffix("run.json").rstrip("/") or "." if path.endswith("run.json") else path
    if other_than is not None and Path(other_than).resolve() == Path(directory).resolve():
        raise ValueError(
            f"--store {other_than}: expected a store other than the run's own, got the same; choose another"
        )
    return Store(directory)


def spec_of_run(run: Store, overrides: Sequence[str] = ()) -> Spec:
    """The specification that a run was made from.

    Args:
      overrides: of the mesh, memory_bytes and decode_seconds alone; anything else would be another run.

    Raises:
      ValueError: an override changes something else, the run was made without a specification, or the directory that
        its files are relative to is gone.
    """
    if refused := [text for text in overrides if not text.startswith(ELSEWHERE)]:
        raise ValueError(
            f"--repeat: expected overrides of only mesh, memory_bytes or decode_seconds, got {', '.join(refused)}; any "
            "other change makes it a different run"
        )
    content = run.read()
    if "spec" not in content:
        raise ValueError(
            f"{run.path}: expected a run of a specification, got one of avjax.sweep(store=...); call avjax.sweep again "
            "with another store, and compare the two with avjax.runs.compare"
        )
    directory = content["directory"]
    if not Path(directory).is_dir():
        raise ValueError(
            f"{run.path}: expected the directory that its files are relative to, but {directory} is missing; put it "
            'back, or write its new path into "directory" of run.json'
        )
    return Spec.of(content["spec"], directory, str(run.path), overrides)


def check_comparable(run: Store) -> None:
    """Raises ValueError where nothing could be compared: the run has no cells, or some of them are damaged."""
    if not run.parts():
        raise ValueError(f"{run.path}: expected cells to compare with, got none yet; finish that run first")
    if damaged := unusable(run):
        listed = "\n".join(map(str, damaged))
        raise ValueError(
            f"{run.path}: expected undamaged parts, got those below; `avjax run SPEC --store {run.path} "
            f"--repair` computes their cells again:\n{listed}"
        )
