"""Where lenses look: sites as wide as the residual, at the positions of a token group."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avjax.analysis.captions import Captions, captioned
from avjax.engine.overflow import MAX_ACTIVATION, ActivationOverflow
from avjax.model import Model
from avjax.models.sites import Site, parse_site
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import KINDS, Selector, select

RESIDUAL = (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST, Site.ATTN_OUT, Site.MLP_OUT)
_REASONS = {
    Site.EMBED: "it has no layers; take resid_pre of layer 0",
    Site.ATTN_IN: "it is the output of a norm other than the final one; use resid_pre, the input of that norm",
    Site.MLP_IN: "it is the output of a norm other than the final one; use resid_mid, the input of that norm",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LensPositions:
    """Where a lens looks in one sample.

    Attributes:
      prompt: what is run; the caption's tokens included, where the group has any of them.
      rows: int [P], positions of `prompt`.
    """

    prompt: Prompt
    rows: np.ndarray

    @property
    def modality(self) -> np.ndarray:
        """str [P]"""
        return np.array(KINDS, object)[self.prompt.kinds[self.rows]]


def checked_site(site: str) -> tuple[Site, int | None]:
    """A site as wide as the residual, and the layer where its name has one."""
    place, layer = parse_site(site)
    if place not in RESIDUAL:
        why = _REASONS.get(place, "it does not have the residual stream's width")
        raise ValueError(
            f"site: expected one of {', '.join(RESIDUAL)}, which the unembedding reads; got {site!r}: {why}"
        )
    return place, layer


def places_of(
    model: Model, prompts: Mapping[Any, Prompt], where: Selector, captions: Captions = None, max_new_tokens: int = 50
) -> dict[Any, LensPositions]:
    """The positions of a token group in each sample; captions are fed if it names generated tokens.

    Raises:
      ValueError: a sample has no such position.
    """
    masks = {}
    for name, prompt in prompts.items():
        model.check(prompt)
        masks[name] = select(prompt, where)
        if not masks[name].any():
            has = ", ".join(f"{n} {kind}" for kind, n in prompt.counts().items())
            raise ValueError(f"where={where!r}: the prompt of sample {name!r} has no such token; it has {has}")
    if not any(mask[-1] for mask in masks.values()):
        return {n: LensPositions(prompt=p, rows=np.flatnonzero(masks[n][:-1])) for n, p in prompts.items()}
    looked = {}
    for name, one in captioned(model, prompts, captions, max_new_tokens).items():
        rows = np.flatnonzero(one.select(where))
        if not len(rows):
            raise ValueError(
                f"where={where!r}: the caption of sample {name!r} has one token, which is never fed back, so there "
                "is no generated position to read; give a longer caption, or use 'answer'"
            )
        looked[name] = LensPositions(prompt=one.fed, rows=rows)
    return looked


def refuse_unreadable(
    largest: np.ndarray, sample: Any, site: Site, layers: Sequence[int], rows: Sequence[int] | np.ndarray
) -> None:
    """Refuses activations [L, P] that are NaN, infinite, or beyond what a norm can square.

    Args:
      largest: the size of each (`avjax.engine.overflow.row_sizes`).

    Raises:
      ActivationOverflow: the first such place is named.
    """
    bad = np.argwhere(~(largest <= MAX_ACTIVATION))
    if len(bad):
        layer, row = bad[0]
        value = largest[layer, row]
        raise ActivationOverflow(
            f"sample {sample!r}: expected finite activations below {MAX_ACTIVATION:g}, got {value:g} at {site} of "
            f"layer {layers[layer]}, position {rows[row]} ({len(bad)} of {largest.size} places); look for an "
            "overflow in the checkpoint or in the prompt's embeddings"
        )
