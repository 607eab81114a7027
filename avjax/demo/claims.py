"""The paper's claims (arXiv 2604.02605), each with the demo's numbers and whether they bear it out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr

from avjax.demo.findings import Findings
from avjax.organism.world import KINDS
from avjax.statistics import bootstrap

CLEAR = 0.25  # a change that a sentence may speak of; shares of clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, with what the demo measured of it.

    Attributes:
      statement: the paper's.
      numbers: what was found, in words.
      holds: each change that the claim speaks of is above `CLEAR`, and its 95% interval above 0; of the last claim,
        the interval of the unshifted share is above a half. None of a clip of the user's.
    """

    statement: str
    numbers: str
    holds: bool | None


def deep_and_early(findings: Findings) -> tuple[str, str]:
    """The rule that cuts answer->video in the last layers, and the equal window of the first ones."""
    windows = [v for v in findings.variants if v.startswith("answer->video@")]
    return windows[-1], windows[0]


def claims_of(findings: Findings) -> list[Claim]:
    """All four claims where it is known what clips show and sound like, else the last, without a verdict."""
    inherited = [_inherited(findings)]
    if findings.probes is None:
        return inherited
    return [_collapses(findings), _readable(findings), _restored(findings), *inherited]


def _collapses(findings: Findings) -> Claim:
    factual, conflict = (findings.share(c, "clean", "sound") for c in ("factual", "counterfactual"))
    suggested = findings.share("counterfactual", "clean", "suggested")
    lost = _Mean.of(factual - conflict)  # clips of one number show the same picture, so they are pairs
    return Claim(
        statement="Audio understanding collapses when the sound contradicts the picture.",
        numbers=f"sound named: {factual.mean():.2f} of factual clips, {conflict.mean():.2f} under conflict "
        f"(lost: {lost}); the sound that the picture suggests: {suggested.mean():.2f}",
        holds=lost.clear,
    )


def _readable(findings: Findings) -> Claim:
    probes = findings.probes
    assert probes is not None
    layer = probes.hits.shape[1] // 2
    read, selective = (
        _Mean.of(probes.hits[:, layer]),
        _Mean.of(probes.hits[:, layer] * 1.0 - probes.control_hits[:, layer]),
    )
    named = findings.share("counterfactual", "clean", "sound").mean()
    return Claim(
        statement="What was heard is still readable in the middle layers.",
        numbers=f"linear probe at audio tokens under conflict, layer {layer}: {read} (chance {1 / len(KINDS):.2f}), "
        f"{selective} above its control task; named in captions: {named:.2f}",
        holds=bool(read.value - named > CLEAR and read.low > named and selective.clear),
    )


def _restored(findings: Findings) -> Claim:
    deep, early = deep_and_early(findings)
    clean, cut, first, deaf = (
        findings.share("counterfactual", variant, "sound") for variant in ("clean", deep, early, "answer->audio")
    )
    gained, deeper = _Mean.of(cut - clean), _Mean.of(cut - first)
    return Claim(
        statement="Deep layers favour vision: cutting answer->video there brings the sound back.",
        numbers=f"true sound under conflict: {clean.mean():.2f}; with the cut in {_layers(deep)}: {cut.mean():.2f} "
        f"(gained: {gained}), in {_layers(early)}: {first.mean():.2f} (less by {deeper}); with answer->audio cut: "
        f"{deaf.mean():.2f}",
        holds=gained.clear and deeper.clear,
    )


def _inherited(findings: Findings) -> Claim:
    """A word is unshifted where the base ranks it first, marginal at 2 and 3; another opening counts as shifted."""
    unshifted, top = (_Mean.of([r is not None and r <= most for r in findings.ranks]) for most in (1, 3))
    return Claim(
        statement="The bias is inherited: the sound's word is what the vision-language base says, without sound.",
        numbers=f"of {len(findings.ranks)} sound words {unshifted} are unshifted, the base's first choice; "
        f"{top.value:.2f} are among its first three",
        holds=None if findings.probes is None else unshifted.low > 0.5,
    )


def _layers(rule: str) -> str:
    return f"layers {rule.split('@')[1]}"


@dataclasses.dataclass(frozen=True)
class _Mean:
    """A mean of shares over clips with its 95% interval, which no share leaves and fewer than five clips have not."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "_Mean":
        interval = bootstrap(xr.Dataset({"value": ("sample", np.asarray(values, float))}))
        low, high = (float(np.clip(interval[f"value_{bound}"], -1, 1)) for bound in ("low", "high"))
        return cls(float(interval.value), low, high)

    @property
    def clear(self) -> bool:
        return self.value > CLEAR and self.low > 0

    def __str__(self) -> str:
        return f"{self.value:.2f}" if np.isnan(self.low) else f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
