"""What the variables and dimensions of a sweep's dataset are called."""

from collections.abc import Mapping, Sequence

from avjax.edits.grids import Cells
from avjax.metrics import Metric
from avjax.prompts.prompt import TOKEN_COUNTS

CELL = "cell"  # the coordinate that says in words what a cell does
COUNTS = ("edges", "positions", "blocked_queries")


def refuse_collisions(cells: Cells, names: Mapping[str, Sequence[str]], shapes: Mapping[Metric, Sequence[int]]) -> None:
    """Each name of the dataset may mean one thing.

    Args:
      names: of each metric's variables.
      shapes: of one value of each metric.
    """
    taken: dict[str, str] = dict.fromkeys(("sample", CELL, *COUNTS, *TOKEN_COUNTS), "a reserved name")
    for metric, variables in names.items():
        suffixes = ("", "_clean", "_floor", *(f"_{count}" for count in COUNTS))
        for name in (v + suffix for v in variables for suffix in suffixes):
            if name in taken:
                raise ValueError(f"metric {metric!r}: its variable {name!r} is also {taken[name]}; pass another name=")
            taken[name] = f"a variable of the metric {metric!r}"
    for dim in sorted({dim for dims in dimensions(shapes).values() for dim in dims}):
        if dim in taken:
            raise ValueError(f"metrics: {dim!r} is {taken[dim]} and also a dimension of a metric; pass another name=")
        taken[dim] = "a dimension of a metric"
    for name in (*cells.dims, *cells.notes):
        if name in taken:
            raise ValueError(f"grid: the axis name {name!r} is also {taken[name]}; pass another name=")


def dimensions(shapes: Mapping[Metric, Sequence[int]]) -> dict[Metric, tuple[str, ...]]:
    """The dataset's names of each metric's dimensions: its own, behind the metric's name where lengths differ.

    Args:
      shapes: of one value of each metric.
    """
    lengths: dict[str, set[int]] = {}
    for metric, shape in shapes.items():
        for dim, length in zip(metric.dims, shape, strict=True):
            lengths.setdefault(dim, set()).add(length)
    return {m: tuple(d if len(lengths[d]) == 1 else f"{m.name}_{d}" for d in m.dims) for m in shapes}
