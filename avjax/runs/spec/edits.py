"""The grid of a run's specification: edits as plain values, with axes in place of their fields."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, WrapValidator

from avjax.edits import edits, grids
from avjax.edits.edits import Edit
from avjax.edits.indices import parse_indices
from avjax.edits.rules import as_edits
from avjax.prompts.selectors import check_syntax

Text = Annotated[str, Field(min_length=1)]


def expecting(expected: str) -> WrapValidator:
    """Reports a mistake in a union in one line, not in a line for each branch."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"expected {expected}") from None

    return WrapValidator(check)


def checked_syntax(selector: Any) -> Any:
    """The selector, after its syntax was checked, without a prompt."""
    if isinstance(selector, str):
        check_syntax(selector)
    return selector


class Strict(BaseModel):
    """A section that refuses unknown keys, and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Values(Strict):
    """Several values of a field, one for each point of a dimension."""

    axis: Annotated[list[Any], Field(min_length=1)]
    labels: list[str | int | float] | None = Field(None, description="Names of the values.")
    name: str | None = Field(None, description="Name of the dimension; by default the field's.")

    def build(self, field: str) -> Any:
        values = [_indices(v, field) for v in self.axis] if field in ("layers", "heads") else self.axis
        return grids.axis(self.name or field, values, self.labels or (self.axis if _plain(self.axis) else None))


class Windows(Strict):
    """Windows of layers, one per `stride` layers."""

    width: int = Field(ge=1)
    stride: int = Field(1, ge=1)
    placement: grids.Placement = "centred"
    name: str = "layers"

    def build(self, field: str) -> Any:
        windows = grids.windows(self.width, stride=self.stride, placement=self.placement, name=self.name)
        return dataclasses.replace(windows, narrow=True)


def _kind(value: Any) -> str:
    if isinstance(value, Values) or (isinstance(value, dict) and "axis" in value):
        return "<axis>"
    return "<windows>" if isinstance(value, Windows | dict) else "<value>"


def _axis_or_value(value: Any) -> str:
    return "<axis>" if isinstance(value, Values | dict) else "<value>"


_AXIS = Discriminator(_axis_or_value)
Indices = Annotated[
    int | list[int] | str, expecting("12, [0, 3], '18:36' (0-based, end exclusive) or 'each', one at a time")
]
Tokens = Annotated[
    Text | list[int],
    expecting("tokens, such as 'audio' or 'video[2s:4s]', or a list of positions"),
    AfterValidator(checked_syntax),
]
Layers = Annotated[
    Annotated[Indices, Tag("<value>")] | Annotated[Values, Tag("<axis>")] | Annotated[Windows, Tag("<windows>")],
    Discriminator(_kind),
]
Heads = Annotated[Annotated[Indices, Tag("<value>")] | Annotated[Values, Tag("<axis>")], _AXIS]
Selector = Annotated[Annotated[Tokens, Tag("<value>")] | Annotated[Values, Tag("<axis>")], _AXIS]
Number = Annotated[
    Annotated[int | float, expecting("a number"), Tag("<value>")] | Annotated[Values, Tag("<axis>")], _AXIS
]
Site = Annotated[Annotated[Text, Tag("<value>")] | Annotated[Values, Tag("<axis>")], _AXIS]
Mode = Annotated[
    Annotated[Literal["zero", "mean", "resample", "noise"], Tag("<value>")] | Annotated[Values, Tag("<axis>")], _AXIS
]
Seed = Annotated[Annotated[int, Tag("<value>")] | Annotated[Values, Tag("<axis>")], _AXIS]


class _Edit(Strict):
    layers: Layers | None = Field(None, description="0-based; by default all.")
    heads: Heads | None = Field(None, description="0-based; by default all.")

    def build(self, directory: Path, seed: int) -> Edit:
        """The edit, with axes.

        Args:
          directory: that files are relative to.
          seed: of edits that draw and name none.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "edit"}
        return self._made(**{name: _built(name, value) for name, value in fields.items()})

    def _made(self, **fields: Any) -> Edit:
        return getattr(edits, type(self).__name__)(**fields)


class Knockout(_Edit):
    """Attention from some tokens to others, forbidden."""

    edit: Literal["knockout"]
    query: Selector
    key: Selector


class ScaleAttention(_Edit):
    """Attention from some tokens to others, times a factor before the softmax normalises."""

    edit: Literal["scale_attention"]
    query: Selector
    key: Selector
    factor: Number


class Scale(_Edit):
    """Activations, times a factor."""

    edit: Literal["scale"]
    where: Selector
    factor: Number
    site: Site = "embed"


class Ablate(_Edit):
    """Activations without their information."""

    edit: Literal["ablate"]
    where: Selector
    mode: Mode
    site: Site = "z"
    noise: Number = 3.0
    seed: Seed | None = Field(None, description="By default the run's seed.")

    def build(self, directory: Path, seed: int) -> Edit:
        own = self if self.seed is not None else self.model_copy(update={"seed": seed})
        return super(Ablate, own).build(directory, seed)


class Patch(_Edit):
    """Activations, replaced by their mean over the tokens. Patches from other runs need Python."""

    edit: Literal["patch"]
    where: Selector
    source: Literal["mean"] = "mean"
    site: Site = "resid_post"


class Steer(_Edit):
    """A vector, added to activations."""

    edit: Literal["steer"]
    where: Selector
    vector: Text = Field(description="A .npy file of one position of the site.")
    scale: Number = 1.0
    site: Site = "resid_post"

    def build(self, directory: Path, seed: int) -> Edit:
        fields = {name: getattr(self, name) for name in type(self).model_fields if name not in ("edit", "vector")}
        built = {name: _built(name, value) for name, value in fields.items()}
        try:
            vector = np.load(directory / self.vector, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"vector: expected a .npy file of numbers, got {self.vector} ({error})") from error
        if not isinstance(vector, np.ndarray):
            raise ValueError(f"vector: expected one array in a .npy file, got {self.vector}")
        return self._made(vector=vector, **built)


EDITS: tuple[type[Strict], ...] = (Knockout, ScaleAttention, Scale, Ablate, Patch, Steer)
AnyEdit = Annotated[Knockout | ScaleAttention | Scale | Ablate | Patch | Steer, Field(discriminator="edit")]


def _edits(value: Any) -> str:
    return "<edits>" if isinstance(value, list) else _rule_or_edit(value)


def _rule_or_edit(value: Any) -> str:
    return "<rule>" if isinstance(value, str) else "<edit>"


Rule = Annotated[str, Field(description="A rule, such as 'answer->video@18:36#h0,h3' or 'answer->audio*2'.")]
RuleOrEdit = Annotated[Annotated[Rule, Tag("<rule>")] | Annotated[AnyEdit, Tag("<edit>")], Discriminator(_rule_or_edit)]
GridOrEdits = Annotated[
    Annotated[Rule, Tag("<rule>")]
    | Annotated[AnyEdit, Tag("<edit>")]
    | Annotated[list[RuleOrEdit], Field(min_length=1), Tag("<edits>")],
    Discriminator(_edits),
]


def build_grid(given: list[Any], directory: Path, seed: int) -> grids.Grid:
    """The grid of edits that apply together.

    Raises:
      ValueError: an edit cannot be as it is given; the message names it by its place.
    """
    together: list[Edit] = []
    for i, item in enumerate(given):
        try:
            built = as_edits([item]) if isinstance(item, str) else [item.build(directory, seed)]
            for edit in built:
                _check_selectors(edit)
            together += built
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"grid.{i}: {error}") from error
    return grids.grid(*together)


def _check_selectors(edit: Edit) -> None:
    """Before any clip is looked at; those of an axis and of rules too."""
    for field in edit.selectors:
        value = getattr(edit, field)
        for selector in value.values if isinstance(value, grids.Values) else [value]:
            checked_syntax(selector)


def _built(field: str, value: Any) -> Any:
    if isinstance(value, Values | Windows):
        return value.build(field)
    if field in ("layers", "heads"):
        each: dict[str, Callable[[], Any]] = {"layers": grids.each_layer, "heads": grids.each_head}
        return each[field]() if value == "each" else _indices(value, field)
    return value


def _indices(value: Any, field: str) -> Any:
    """Layers or heads from 12, [0, 3], or text as rules have it, such as "18:36"."""
    return parse_indices(value, field) if isinstance(value, str) else value


def _plain(values: list[Any]) -> bool:
    return all(isinstance(v, str | int | float) for v in values)
