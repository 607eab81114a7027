"""Edits as a user writes them.

Any field may be an axis (`avjax.axis`, `avjax.windows` ...); an edit with axes stands for a grid of edits.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np

from avjax.edits.indices import as_layers_or_heads
from avjax.models.config import DecoderConfig
from avjax.models.sites import HEADED, READ_ONLY, Site, num_site_heads, parse_site
from avjax.nearest import did_you_mean
from avjax.prompts.selectors import ALIASES, BySample, Selector, as_indices

Indices = Sequence[int] | None
MAX_NUMBER = 1e15  # norms square what it multiplies, and that must stay finite in float32
ATTENTION_FACTORS = (1e-6, 1e6)  # beyond, float32 loses what an edge's weight is compared with


class Axis:
    """A placeholder for several values of a field; `avjax.edits.grids` has them."""

    def check_field(self, field: str) -> None:
        """Raises ValueError when the axis cannot stand for layers, or for heads."""


class Edit:
    """What all edits share: where they apply, checked as far as no model is needed.

    A selector may be a `BySample`, or a mapping of samples to positions: a sweep takes each sample's own.
    """

    selectors: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ()
    layers: Indices
    heads: Indices

    def __post_init__(self):
        for name in self.selectors:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, BySample.of(value))
            elif not isinstance(value, str | Axis | BySample):
                if value is None or isinstance(value, float | type):
                    raise TypeError(
                        f"{type(self).__name__}: expected {name} to be tokens, such as 'audio' or 'video[2s:4s]', or "
                        f"positions, got {value!r}"
                    )
                object.__setattr__(self, name, as_indices(value, name))
        for name in ("layers", "heads"):
            value = getattr(self, name)
            if isinstance(value, Axis):
                value.check_field(name)
            elif value is not None:
                object.__setattr__(self, name, as_layers_or_heads(value, name))
        for name in self.numbers:
            value = getattr(self, name)
            if isinstance(value, Axis):
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float | np.number)
                or not abs(value) <= MAX_NUMBER
            ):
                raise ValueError(
                    f"{type(self).__name__}: expected a finite {name} within -1e15 to 1e15 (float32), got {value!r}"
                )
            object.__setattr__(self, name, float(value))

    def layer_indices(self, config: DecoderConfig) -> tuple[int, ...]:
        return self._checked("layer", self.layers, config.num_layers)

    def head_indices(self, config: DecoderConfig) -> tuple[int, ...]:
        return self._checked("head", self.heads, config.num_heads)

    def _checked(self, what: str, indices: Indices, count: int) -> tuple[int, ...]:
        if indices is None:
            return tuple(range(count))
        if not indices:
            raise ValueError(f"rule {self}: the {what} window is empty; give at least one {what}")
        wrong = [i for i in indices if not 0 <= i < count]
        if wrong:
            raise ValueError(
                f"rule {self}: expected {what}s within 0:{count} (0-based, end exclusive), got {_compact(wrong)}"
                + (f"; the last {what} is {count - 1}" if min(wrong) < 0 or wrong[0] == count else "")
            )
        return tuple(sorted(set(indices)))

    def _suffix(self) -> str:
        layers = "" if self.layers is None else f"@{_compact(self.layers)}"
        return layers + ("" if self.heads is None else "#" + _named_heads(self.heads))

    def replaced(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


class EdgeEdit(Edit):
    """Multiplies exp(score) of the edges from the tokens `query` to the tokens `key`."""

    selectors = ("query", "key")
    query: Selector | BySample
    key: Selector | BySample

    @property
    def multiplier(self) -> float:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knockout(EdgeEdit):
    """Forbids attention from the tokens `query` to the tokens `key`.

    Attributes:
      query, key: token selectors, see `avjax.prompts.selectors`. `generated` is the published behaviour, under which
        the first generated token is never edited, since the last prompt position predicts it; `answer` adds that
        position.
      layers, heads: 0-based; None means all of them.

    Source: Geva et al. 2023 (attention knockout). A query whose every visible key is blocked reads zero.
    """

    query: Selector | BySample
    key: Selector | BySample
    layers: Indices = None
    heads: Indices = None

    @property
    def multiplier(self) -> float:
        return 0.0

    def __str__(self) -> str:
        """The rule string that parses back to this edit: `generated->video@18:36#h0,h3`."""
        return f"{_shown(self.query)}->{_shown(self.key)}{self._suffix()}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleAttention(EdgeEdit):
    """Multiplies exp(score) on the edges from `query` to `key` by a factor, before the softmax normalises.

    Attributes:
      query, key, layers, heads: as in `Knockout`.
      factor: 0, a knockout, or 1e-6 to 1e6; 1 leaves the edges alone.
    """

    numbers = ("factor",)
    query: Selector | BySample
    key: Selector | BySample
    factor: float
    layers: Indices = None
    heads: Indices = None

    def __post_init__(self):
        super().__post_init__()
        low, high = ATTENTION_FACTORS
        if not isinstance(self.factor, Axis) and self.factor != 0 and not low <= self.factor <= high:
            raise ValueError(f"ScaleAttention: expected a factor of 0 or within 1e-6 to 1e6, got {self.factor:g}")

    @property
    def multiplier(self) -> float:
        return self.factor

    def __str__(self) -> str:
        """The rule string that parses back to this edit: `answer->audio*2@0:12`."""
        return f"{_shown(self.query)}->{_shown(self.key)}*{_number(self.factor)}{self._suffix()}"


class PositionEdit(Edit):
    """Changes activations of the tokens `where` at one site."""

    selectors = ("where",)
    where: Selector | BySample
    site: str

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.site, Axis):
            return
        site, layer = parse_site(self.site)
        if site in READ_ONLY:
            raise ValueError(f"{type(self).__name__}: the site {site} can be captured, not edited")
        if layer is not None:
            if self.layers not in (None, (layer,)):
                raise ValueError(
                    f"{type(self).__name__}: {self.site} names layer {layer}, layers= is {self.layers}; leave one out"
                )
            object.__setattr__(self, "layers", (layer,))
        object.__setattr__(self, "site", site.value)
        if site is Site.EMBED and self.layers is not None:
            raise ValueError(f"{type(self).__name__}: the site embed has no layers; leave layers out, or use resid_pre")
        if site not in HEADED and self.heads is not None:
            raise ValueError(f"{type(self).__name__}: the site {site} has no heads; leave heads out, or use z or value")

    def layer_indices(self, config: DecoderConfig) -> tuple[int, ...]:
        return (0,) if self.site == Site.EMBED else super().layer_indices(config)

    def head_indices(self, config: DecoderConfig) -> tuple[int, ...]:
        """Query heads at `z`, key-value heads at `value`."""
        return self._checked("head", self.heads, num_site_heads(Site(self.site), config) or 1)

    def _place(self) -> str:
        return f"{self.site}{self._suffix()}"


@dataclasses.dataclass(frozen=True)
class Scale(PositionEdit):
    """Multiplies activations.

    Attributes:
      where: token selector.
      factor: any finite number.
      site: `embed` (by default), a residual site, `attn_in` or `mlp_in` (after the norms), `attn_out`, `mlp_out`, `z`
        or `value`, or a TransformerLens name.
      layers: 0-based; None means all, each of which multiplies.
      heads: query heads at `z`, key-value heads at `value`.
    """

    numbers = ("factor",)
    where: Selector | BySample
    factor: float
    site: str = "embed"
    layers: Indices = None
    heads: Indices = None

    def __str__(self) -> str:
        return f"{_shown(self.where)}*{_number(self.factor)} at {self._place()}"


@dataclasses.dataclass(frozen=True, eq=False)
class Patch(PositionEdit):
    """Replaces activations by those of another pass.

    Attributes:
      where: token selector; a source of another prompt is aligned by it: its n-th token there replaces the n-th here.
      source: an `avjax.run` result that captured the site; a `Prompt`, which is run clean; an array [L, T, ...],
        [T, ...] (one layer), or with the number of selected tokens in place of T; or "mean", the mean over the selected
        tokens in this prompt's own clean pass. In a sweep over several prompts, a mapping gives each sample its own.
      site, layers, heads: as in `Scale`.

    Source: Vig et al. 2020 (causal mediation), Meng et al. 2022 (causal tracing).
    """

    where: Selector | BySample
    source: Any
    site: str = "resid_post"
    layers: Indices = None
    heads: Indices = None

    def __str__(self) -> str:
        return f"{_shown(self.where)}<-{_source_name(self.source)} at {self._place()}"


Mode = Literal["zero", "mean", "resample", "noise"]
MODES = ("zero", "mean", "resample", "noise")


@dataclasses.dataclass(frozen=True)
class Ablate(PositionEdit):
    """Removes information from activations: zero, a mean, or noise in their place.

    Attributes:
      where: token selector.
      mode: "zero"; "mean" over the selected tokens of the clean pass; "resample": each token takes the activation of
        another selected token of the clean pass, at random; "noise": adds Gaussian noise.
      site, layers, heads: as in `Scale`.
      seed: of "resample" and "noise"; what is drawn also differs by prompt and tokens, and for noise by site.
      noise: standard deviations of the noise, in units of the clean activations' own at the site and layer; the
        default is that of causal tracing.

    Source: Wang et al. 2022 (mean and resample ablation), Meng et al. 2022 (noise of 3 standard deviations).
    """

    numbers = ("noise",)
    where: Selector | BySample
    mode: str
    site: str = "z"
    layers: Indices = None
    heads: Indices = None
    seed: int = 0
    noise: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.seed, Axis):
            if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
                raise ValueError(f"Ablate: expected a seed of at least 0, got {self.seed!r}")
            object.__setattr__(self, "seed", int(self.seed))
        if not isinstance(self.mode, Axis) and self.mode not in MODES:
            hint = did_you_mean(self.mode, MODES)
            raise ValueError(f"Ablate: expected a mode among {', '.join(MODES)}, got {self.mode!r}{hint}")

    def __str__(self) -> str:
        seed = f", seed {self.seed}" if self.mode in ("resample", "noise") and self.seed else ""
        return f"{_shown(self.where)}={self.mode}{seed} at {self._place()}"


@dataclasses.dataclass(frozen=True, eq=False)
class Steer(PositionEdit):
    """Adds a vector, times `scale`.

    Attributes:
      where: token selector.
      vector: the shape of one position of the site: [D], [N, H] at `z`, [K, H] at `value`, where heads one after the
        other do too, as a probe's direction has them; or [L, ...].
      scale: any finite number.
      site, layers, heads: as in `Scale`.

    Source: Turner et al. 2023 (activation addition).
    """

    numbers = ("scale",)
    where: Selector | BySample
    vector: Any
    scale: float = 1.0
    site: str = "resid_post"
    layers: Indices = None
    heads: Indices = None

    def __str__(self) -> str:
        return f"{_shown(self.where)}+{_number(self.scale)} vector at {self._place()}"


def for_sample(edits: Sequence[Edit], sample: Hashable = None, allow_noop: bool = False) -> tuple[Edit, ...]:
    """The edits with the source and the positions of one sample, where they have some for each.

    Args:
      allow_noop: let a sample have no positions.

    Raises:
      ValueError: a source or selector is by sample and has none for this one.
    """
    return tuple(_for_sample(edit, sample, allow_noop) for edit in edits)


def _for_sample(edit: Edit, sample: Hashable, allow_noop: bool) -> Edit:
    changes: dict[str, Any] = {}
    for name in (*edit.selectors, *(("source",) if isinstance(edit, Patch) else ())):
        value = getattr(edit, name)
        if not isinstance(value, BySample | Mapping):
            continue
        samples = value.samples if isinstance(value, BySample) else tuple(value)
        if sample not in samples:
            known = ", ".join(map(repr, samples)) or "nothing"
            raise ValueError(
                f"rule {edit}: expected its {name} to include sample {sample!r}, got {known}; sweep those samples, or "
                "give it for this one too"
            )
        changes[name] = value.at(sample) if isinstance(value, BySample) else value[sample]
        if isinstance(value, BySample) and not changes[name] and not allow_noop:
            raise ValueError(
                f"rule {edit}: sample {sample!r} has no {value} ({name}); leave the sample out or pass allow_noop=True"
            )
    return edit.replaced(**changes) if changes else edit


def name_of(edits: Sequence[Edit]) -> str:
    """What the edits do together, in one line; `clean` when there is none."""
    return "; ".join(map(str, edits)) or "clean"


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number after those that occur more than once."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if names.count(name) == 1 else f"{name} ({counts[name]})")
    return result


def _shown(selector: Selector | Axis | BySample) -> str:
    if isinstance(selector, Axis | BySample):
        return str(selector)
    if isinstance(selector, str):
        return ALIASES.get(selector, selector)
    return f"[{', '.join(map(str, selector))}]"


def _number(value: float | Axis) -> str:
    """The shortest text that reads back as the same number."""
    if isinstance(value, Axis):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _named_heads(heads: Sequence[int] | Axis) -> str:
    return str(heads) if isinstance(heads, Axis) else ",".join(f"h{i}" for i in heads)


def _source_name(source: Any) -> str:
    if isinstance(source, str | Axis):
        return str(source)
    shape = getattr(source, "shape", None)
    return type(source).__name__.lower() if shape is None else f"array[{', '.join(map(str, shape))}]"


def _compact(indices: Sequence[int] | Axis) -> str:
    """`18:36` for a run of indices, else a list."""
    if isinstance(indices, Axis):
        return str(indices)
    if len(indices) > 1 and list(indices) == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]}:{indices[-1] + 1}"
    return ",".join(map(str, indices))
