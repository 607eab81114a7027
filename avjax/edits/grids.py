"""Grids of edits: axes in place of an edit's fields, and the cells that they span.

grid = avjax.grid(avjax.Knockout(query="answer", key=avjax.axis("key", ["audio", "video"]), layers=avjax.windows(8)))
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from avjax.edits.edits import Axis, Edit, name_of, numbered
from avjax.edits.rules import as_edits
from avjax.models.config import DecoderConfig
from avjax.models.sites import Site, num_site_heads
from avjax.nearest import did_you_mean
from avjax.prompts.selectors import Selector

Placement = Literal["trailing", "leading", "centred"]
CLEAN = -1  # in place of a cell's index: the unedited run


@dataclasses.dataclass(frozen=True)
class Points:
    """An axis of one model: the values that a field takes, how they are called, and what else is known of each."""

    values: tuple[Any, ...]
    coordinates: tuple[Any, ...]
    notes: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Values(Axis):
    """An axis of given values."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[Any, ...]

    def points(self, edit: Edit, config: DecoderConfig) -> Points:
        return Points(self.values, self.labels)

    def __str__(self) -> str:
        return f"<{self.name}>"


@dataclasses.dataclass(frozen=True)
class Windows(Axis):
    """An axis of windows of layers."""

    width: int
    stride: int
    placement: Placement
    name: str
    narrow: bool = False  # no window may be wider than the model

    def check_field(self, field: str) -> None:
        if field != "layers":
            raise ValueError(f"windows: expected as the value of layers=, got it for {field}=")

    def points(self, edit: Edit, config: DecoderConfig) -> Points:
        count, before = config.num_layers, _before(self.width, self.placement)
        anchors = range(0, count, self.stride)
        spans = [range(max(0, a - before), min(count, a - before + self.width)) for a in anchors]
        wide = self.width > count and (self.narrow or len(set(spans)) == 1)  # else some window is less than all layers
        for what, size, wrong in (("width", self.width, wide), ("stride", self.stride, self.stride > count)):
            if wrong:
                raise ValueError(
                    f"windows {self.name!r}: expected a {what} within 1 to {count}, the layers of this model, got "
                    f"{size}; take {count}, or leave layers out to edit all of them"
                )
        shown = tuple(f"{s.start}:{s.stop}" for s in spans)
        return Points(tuple(tuple(s) for s in spans), tuple(anchors), {f"{self.name}_window": shown})

    def __str__(self) -> str:
        return f"<{self.name}>"


@dataclasses.dataclass(frozen=True)
class Each(Axis):
    """Every layer or head of the model, one at a time."""

    what: Literal["layers", "heads"]
    name: str

    def check_field(self, field: str) -> None:
        if field != self.what:
            raise ValueError(f"each_{self.what[:-1]}: expected as the value of {self.what}=, got it for {field}=")

    def points(self, edit: Edit, config: DecoderConfig) -> Points:
        count = config.num_layers
        if self.what == "heads":
            site = getattr(edit, "site", None)
            if isinstance(site, Axis):
                raise ValueError(
                    "each_head: several sites may differ in their number of heads; give one site, or list the heads"
                )
            count = config.num_heads if site is None else num_site_heads(Site(site), config) or 0
        return Points(tuple((i,) for i in range(count)), tuple(range(count)))

    def __str__(self) -> str:
        return f"<{self.name}>"


def axis(name: str, values: Sequence[Any], labels: Sequence[Any] | None = None) -> Any:
    """An axis over given values of a field.

    Args:
      name: of the dataset's dimension.
      values: what the field takes in turn.
      labels: the dimension's coordinates; by default the values, or their text when they are no plain values.

    Raises:
      ValueError: there are no values, or not as many labels.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"axis: expected a name and then its values, got {name!r} for the name; pass axis('key', [...])"
        )
    if isinstance(values, str):
        raise ValueError(f"axis {name!r}: expected a list of values, got the text {values!r}; put it in a list")
    if not hasattr(values, "__iter__") or isinstance(values, type):
        raise ValueError(f"axis {name!r}: expected a list of values, got {values!r}; put it in a list")
    values = tuple(values)
    if not values:
        raise ValueError(f"axis {name!r}: expected at least one value, got none")
    if labels is None:
        plain = all(isinstance(v, str | int | float | np.number) for v in values)
        labels = values if plain else [_label(v) for v in values]
    if len(labels) != len(values) or len(set(labels)) != len(labels):
        raise ValueError(f"axis {name!r}: expected {len(values)} different labels, got {list(labels)}")
    return Values(name, values, tuple(labels))


def windows(width: int, *, stride: int = 1, placement: Placement = "centred", name: str = "layers") -> Any:
    """An axis over windows of layers, one per `stride` layers, cut where the model begins and ends.

    Args:
      width: layers in a window.
      placement: where the window of layer l lies: "centred", `l - width // 2` to `l - width // 2 + width`; "leading",
        `l` to `l + width`; "trailing", `l - width + 1` to `l + 1`. Ends are exclusive.

    Returns:
      An axis whose coordinate is the layer, and whose windows stand beside it as `NAME_window`.
    """
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in (width, stride)):
        raise ValueError(f"windows: expected a width and stride of at least 1, got {width!r} and {stride!r}")
    if placement not in ("trailing", "leading", "centred"):
        hint = did_you_mean(placement, ("trailing", "leading", "centred"))
        raise ValueError(f"windows: expected a placement of trailing, leading or centred, got {placement!r}{hint}")
    return Windows(width, stride, placement, name)


def each_layer(name: str = "layers") -> Any:
    """An axis over the model's layers, one at a time."""
    return Each("layers", name)


def each_head(name: str = "heads") -> Any:
    """An axis over heads, one at a time: key-value heads for an edit at `value`, else query heads."""
    return Each("heads", name)


def each_group(selectors: Sequence[Selector], name: str = "group") -> Any:
    """An axis over token groups."""
    return axis(name, selectors, [s if isinstance(s, str) else str(list(s)) for s in selectors])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a grid: where it lies, and the edits that apply there together."""

    index: tuple[int, ...]
    edits: tuple[Edit, ...]

    @property
    def name(self) -> str:
        return name_of(self.edits)


@dataclasses.dataclass(frozen=True)
class Cells:
    """A grid on one model.

    Attributes:
      dims: the axes' names, in the order in which they were written.
      coordinates: of each axis.
      notes: what else is known of an axis's points, by coordinate name: the axis and the values.
    """

    dims: tuple[str, ...]
    coordinates: dict[str, tuple[Any, ...]]
    notes: dict[str, tuple[str, tuple[Any, ...]]]
    cells: tuple[Cell, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self.coordinates[d]) for d in self.dims)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Edits that apply together, with axes for some of their fields; every combination is a cell."""

    edits: tuple[Edit, ...]

    def axes(self) -> list[tuple[int, str, Any]]:
        """Which edit's field each axis stands for."""
        return [
            (i, field.name, value)
            for i, edit in enumerate(self.edits)
            for field in dataclasses.fields(edit)  # pyright: ignore[reportArgumentType]
            if isinstance(value := getattr(edit, field.name), Axis)
        ]

    def cells(self, config: DecoderConfig) -> Cells:
        """Every combination, in row-major order of the axes.

        Raises:
          ValueError: an axis has no points on this model, or a combination is no edit.
        """
        axes = self.axes()
        points = {axis.name: axis.points(self.edits[i], config) for i, _, axis in axes}
        empty = [name for name, p in points.items() if not p.values]
        if empty:
            raise ValueError(f"grid: the axis {empty[0]!r} has no values on this model; check the edit's site")
        cells = []
        for index in itertools.product(*(range(len(p.values)) for p in points.values())):
            changes: list[dict[str, Any]] = [{} for _ in self.edits]
            for (i, field, axis), at in zip(axes, index, strict=True):
                changes[i][field] = points[axis.name].values[at]
            edits = tuple(e.replaced(**c) if c else e for e, c in zip(self.edits, changes, strict=True))
            cells.append(Cell(index, edits))
        notes = {note: (name, values) for name, p in points.items() for note, values in p.notes.items()}
        taken = sorted(set(notes) & set(points))
        if taken:
            raise ValueError(f"grid: another axis's windows already use the name {taken[0]!r}; pass another name=")
        return Cells(tuple(points), {name: p.coordinates for name, p in points.items()}, notes, tuple(cells))


def grid(*edits: Edit | str) -> Grid:
    """A grid of edits: each cell applies all of them, with one value of every axis.

    Raises:
      ValueError: there is no edit, or two axes have one name.
    """
    flat = as_edits(edits)
    if not flat:
        raise ValueError("grid: expected at least one edit, got none")
    made = Grid(flat)
    names = [axis.name for *_, axis in made.axes()]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"grid: the axis {twice[0]!r} is used twice; give one of them another name=")
    reserved = sorted({"sample", "layer", "head", "top"} & set(names))
    if reserved:
        raise ValueError(
            f"grid: the name {reserved[0]!r} is reserved for another dimension; give the axis another name="
        )
    return made


def as_cells(given: Any, config: DecoderConfig) -> Cells:
    """A grid, an edit, a rule string, or a list of variants (whose dimension is `variant`), on one model.

    Raises:
      ValueError: there is no cell.
    """
    if isinstance(given, Edit | str):
        given = grid(given)
    if isinstance(given, Grid):
        return given.cells(config)
    _refuse_no_grid(given)
    variants = [as_edits(v if _are_several(v) else [v]) for v in given]
    if not variants:
        raise ValueError("grid: expected at least one variant, got none; [[]] is the unedited model alone")
    for edits in variants:
        if Grid(edits).axes():
            raise ValueError("grid: expected variants without axes, got an axis in a list of variants; use avjax.grid")
    cells = tuple(Cell((i,), edits) for i, edits in enumerate(variants))
    names = numbered([cell.name for cell in cells])
    return Cells(("variant",), {"variant": tuple(names)}, {}, cells)


def _are_several(variant: Any) -> bool:
    return hasattr(variant, "__iter__") and not isinstance(variant, str | Mapping | type)


def _refuse_no_grid(given: Any) -> None:
    """Raises TypeError when what was given is neither a grid nor a list of variants."""
    expected = "grid: expected avjax.grid(...), an edit, a rule string or a list of variants, got"
    if isinstance(given, type):
        raise TypeError(f"{expected} the class {given.__name__}; call it: {given.__name__}(...)")
    if callable(given):
        name = getattr(given, "__name__", repr(given))
        raise TypeError(f"{expected} the function {name}; call it: avjax.{name}(...)")
    if isinstance(given, Axis):
        raise TypeError(f"{expected} the axis {given}; pass it as a field of an edit: Knockout(layers={given})")
    if isinstance(given, Mapping):
        raise TypeError(
            f"{expected} a dict; in Python an edit is an object, as avjax.Knockout(query='answer', key='video')"
        )
    if not hasattr(given, "__iter__"):
        raise TypeError(f"{expected} {type(given).__name__}: {given!r}")


def _before(width: int, placement: Placement) -> int:
    """Layers of a window before its own layer."""
    match placement:
        case "leading":
            return 0
        case "trailing":
            return width - 1
        case _:
            return width // 2


def _label(value: Any) -> str:
    if isinstance(value, range):
        return f"{value.start}:{value.stop}" + (f":{value.step}" if value.step != 1 else "")
    shape = getattr(value, "shape", None)
    return str(value) if shape is None else f"array[{', '.join(map(str, shape))}]"
