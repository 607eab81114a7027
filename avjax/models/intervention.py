"""Edits as arrays that a compiled forward pass takes.

Axes: L layer, N heads, M token group, I intervention (variant), S dense sources, V vectors.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.models.config import DecoderConfig
from avjax.models.sites import Site, SiteEdit, SiteSources, apply_edit, apply_to_token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """Edits that apply together. Leaves lead with L, so they scan with the layers; stacked variants, with I.

    Attributes:
      attention_factor: float32 [L, N, M, M] (query group, key group): multiplies exp(score); 0 removes the edge, 1
        leaves it alone. None edits no edge.
      sites: the affine edit of each edited site.
      sources: what the edits mix in; variants share them, so they are not stacked (`VARIANTS`).
    """

    attention_factor: jax.Array | None
    sites: dict[Site, SiteEdit] = dataclasses.field(default_factory=dict)
    sources: dict[Site, SiteSources] = dataclasses.field(default_factory=dict)

    @classmethod
    def none(cls, config: DecoderConfig, num_groups: int = 1) -> "Intervention":
        """Leaves the checkpoint as it is."""
        shape = (config.num_layers, config.num_heads, num_groups, num_groups)
        return cls(attention_factor=jnp.ones(shape, jnp.float32))

    @property
    def num_groups(self) -> int | None:
        """M, or None where no leaf shows it."""
        if self.attention_factor is not None:
            return self.attention_factor.shape[-1]
        for site, edit in self.sites.items():
            return edit.scale.shape[-2 if site in (Site.Z, Site.VALUE) else -1]
        return None


def _axes(**axes: int | None) -> Intervention:
    """Axes of a vmap in the place of arrays, which the constructor would refuse."""
    mapped = object.__new__(Intervention)
    for name, value in axes.items():
        object.__setattr__(mapped, name, value)
    return mapped


# `in_axes` of a vmap over stacked variants that share their sources.
VARIANTS = _axes(attention_factor=0, sites=0, sources=None)


def edited(
    site: Site, x: Float[Array, "R ..."], edit: Intervention | None, groups: Int[Array, "R"], first_row: Array | int = 0
) -> Float[Array, "R ..."]:
    """The rows after one layer's edits at the site."""
    if edit is None or site not in edit.sites:
        return x
    return apply_edit(x, edit.sites[site], edit.sources[site], groups, first_row)


def edited_token(site: Site, x: Float[Array, "..."], edit: Intervention | None, group: Array) -> Float[Array, "..."]:
    """One decoded token after one layer's edits at the site."""
    if edit is None or site not in edit.sites:
        return x
    return apply_to_token(x, edit.sites[site], edit.sources[site], group)


def layer_of(variants: Intervention, index: Array | int) -> Intervention:
    """One layer of stacked variants: leaves lead with I, then L; sources with L alone."""
    return Intervention(
        attention_factor=None if variants.attention_factor is None else variants.attention_factor[:, index],
        sites=jax.tree.map(lambda leaf: leaf[:, index], variants.sites),
        sources=jax.tree.map(lambda leaf: leaf[index], variants.sources),
    )


def split_last(variants: Intervention) -> tuple[Intervention, Intervention | None]:
    """Stacked variants without edits at `resid_post` that hold the last layer alone (L = 1), and those edits."""
    last = [s for s, edit in variants.sites.items() if s is Site.RESID_POST and edit.scale.shape[1] == 1]
    rest = dataclasses.replace(
        variants,
        sites={site: edit for site, edit in variants.sites.items() if site not in last},
        sources={site: edit for site, edit in variants.sources.items() if site not in last},
    )
    if not last:
        return rest, None
    final = Intervention(
        attention_factor=None,
        sites={site: variants.sites[site] for site in last},
        sources={site: variants.sources[site] for site in last},
    )
    return rest, final
