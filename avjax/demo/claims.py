"""The paper's claims (arXiv 2604.02605), each with the demo's numbers and whether they bear it out."""

import dataclasses

import numpy as np
import xarray as xr

from avjax.demo.findings import Findings
from avjax.organism.world import KINDS
from avjax.statistics import bootstrap

CLEAR = 0.25  # a change that a sentence may speak of; shares of clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
      statement: the paper's.
      numbers: what was found, in words.
      holds: the change lies above `CLEAR`, and its interval above 0.
    """

    statement: str
    numbers: str
    holds: bool


def deep_and_early(findings: Findings) -> tuple[str, str]:
    """The rule that cuts answer->video in the last layers, and the equal window of the first ones."""
    windows = [v for v in findings.variants if v.startswith("answer->video@")]
    return windows[-1], windows[0]


def claims_of(findings: Findings) -> list[Claim]:
    """The claims that can be judged: all four where the clips' truth is known, else the last."""
    found = [_inherited(findings)]
    if findings.probes is None:
        return found
    return [_collapses(findings), _readable(findings), _restored(findings), *found]


def _collapses(findings: Findings) -> Claim:
    factual, conflict = (findings.share(c, "clean", "sound") for c in ("factual", "counterfactual"))
    suggested = findings.share("counterfactual", "clean", "suggested")
    low, high = _change(conflict, factual)
    return Claim(
        statement="Audio understanding collapses when the sound contradicts the picture.",
        numbers=f"sound named: {factual.mean():.2f} of factual clips, {conflict.mean():.2f} under conflict (change "
        f"{conflict.mean() - factual.mean():+.2f}, {low:+.2f} to {high:+.2f}); the sound that the picture suggests: "
        f"{suggested.mean():.2f}",
        holds=factual.mean() - conflict.mean() > CLEAR and high < 0,
    )


def _readable(findings: Findings) -> Claim:
    probes = findings.probes
    assert probes is not None
    middle = range(2, len(probes.accuracy) - 1)
    layer = max(middle, key=lambda i: probes.accuracy[i])
    named = findings.share("counterfactual", "clean", "sound").mean()
    return Claim(
        statement="What was heard is still readable in the middle layers.",
        numbers=f"linear probe at audio tokens under conflict, layer {layer}: {probes.accuracy[layer]:.2f} (chance "
        f"{1 / len(KINDS):.2f}, selectivity {probes.selectivity[layer]:.2f}); named in captions: {named:.2f}",
        holds=bool(probes.accuracy[layer] - named > CLEAR and probes.selectivity[layer] > CLEAR),
    )


def _restored(findings: Findings) -> Claim:
    deep, early = deep_and_early(findings)
    clean, cut, first, deaf = (
        findings.share("counterfactual", variant, "sound") for variant in ("clean", deep, early, "answer->audio")
    )
    low, high = _change(cut, clean)
    return Claim(
        statement="Deep layers favour vision: cutting answer->video there brings the sound back.",
        numbers=f"true sound under conflict: {clean.mean():.2f}; with the cut in {_layers(deep)}: {cut.mean():.2f} "
        f"(change {cut.mean() - clean.mean():+.2f}, {low:+.2f} to {high:+.2f}), in {_layers(early)}: "
        f"{first.mean():.2f}; with answer->audio cut: {deaf.mean():.2f}",
        holds=cut.mean() - clean.mean() > CLEAR and low > 0 and cut.mean() - first.mean() > CLEAR,
    )


def _inherited(findings: Findings) -> Claim:
    ranks = [rank for rank in findings.ranks if rank is not None]
    unshifted = np.mean([rank == 1 for rank in ranks]) if ranks else float("nan")
    top = np.mean([rank <= 3 for rank in ranks]) if ranks else float("nan")
    return Claim(
        statement="The bias is inherited: the sound's word is what the vision-language base would say, without sound.",
        numbers=f"of {len(ranks)} sound words {unshifted:.2f} keep the base's first choice, {top:.2f} are among its "
        f"first three" + (f"; {len(findings.ranks) - len(ranks)} cannot be compared" if None in findings.ranks else ""),
        holds=bool(unshifted > 0.5),
    )


def _layers(rule: str) -> str:
    return f"layers {rule.split('@')[1]}"


def _change(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of a - b; clips of one number show the same picture, so they are pairs."""
    found = bootstrap(xr.Dataset({"change": ("sample", a - b)}))
    return float(found.change_low), float(found.change_high)
