"""What the demo finds, as plain data.

Axes: C clip, L layer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avjax.organism.behaviour import ProbeScores, Score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioned:
    """One clip's caption under one variant.

    Attributes:
      clip: its name.
      condition: "factual", "counterfactual", or "yours".
      variant: "clean", or the rule.
      score: against the clip's truth; None where nobody knows it.
      edges: that the variant cut.
    """

    clip: str
    condition: str
    seen: str | None
    heard: str | None
    variant: str
    text: str
    score: Score | None
    edges: int

    def row(self) -> dict[str, Any]:
        scores = {} if self.score is None else dataclasses.asdict(self.score)
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "score"}
        return {**plain, **{f"names_{what}": named for what, named in scores.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the summary, the figures and the page are made of.

    Attributes:
      captions: every clip under every variant.
      attention: share of attention of each modality, mean over clips and heads, [L] each; from the token whose
        successor is the sound's word, or from the last prompt token where a caption names no sound.
      per_key: the same over the modality's share of visible tokens; 1 is uniform.
      ranks: of the sound's word under the base, a clip each; None where the captions differ before it or name no sound.
      probes: of the sound under conflict; None without known truth.
      settings: what was run.
    """

    captions: Sequence[Captioned]
    attention: Mapping[str, np.ndarray]
    per_key: Mapping[str, np.ndarray]
    ranks: Sequence[int | None]
    probes: ProbeScores | None
    settings: Mapping[str, Any]

    def share(self, condition: str, variant: str, what: str) -> np.ndarray:
        """float [C]: 1 where the captions of a condition name `what`, a field of `Score`."""
        chosen = [c for c in self.captions if (c.condition, c.variant) == (condition, variant)]
        return np.array([float(getattr(c.score, what)) for c in chosen if c.score is not None])

    @property
    def conditions(self) -> list[str]:
        return list(dict.fromkeys(c.condition for c in self.captions))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(c.variant for c in self.captions))

    def plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        probes = self.probes
        return {
            "settings": dict(self.settings),
            "captions": [c.row() for c in self.captions],
            "attention": {name: values.tolist() for name, values in self.attention.items()},
            "attention_per_key": {name: values.tolist() for name, values in self.per_key.items()},
            "ranks_under_base": list(self.ranks),
            "probe_accuracy": None if probes is None else probes.accuracy.tolist(),
            "probe_control": None if probes is None else probes.control.tolist(),
        }
