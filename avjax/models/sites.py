"""The named places of a decoder layer where activations are read and edited.

Axes: L layer, R rows (positions), M token group, N heads, K kv heads, H head dim, D embed, S dense sources, V vectors.
"""

import dataclasses
import re
from enum import StrEnum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.config import DecoderConfig
from avjax.models.layers import rounded


class Site(StrEnum):
    """Where a decoder can be read or edited; the comments give the shape of one position in one layer."""

    EMBED = "embed"  # D, what layer 0 is fed; has no layers
    RESID_PRE = "resid_pre"  # D
    RESID_MID = "resid_mid"  # D, after attention
    RESID_POST = "resid_post"  # D
    ATTN_OUT = "attn_out"  # D
    MLP_OUT = "mlp_out"  # D
    Z = "z"  # N H, per-head output before the output projection
    VALUE = "value"  # K H
    PATTERN = "pattern"  # N T, attention weights over the prompt; read only
    MASS = "mass"  # N M, attention weights summed over each token group; read only
    VALUE_MASS = "value_mass"  # N M, the same sum of weights times the norm of the head's value; read only
    RECEIVED = "received"  # N M, attention weights summed over the later queries of each token group; read only
    PEAK = "peak"  # 3, largest size of what the norms before attention, before the MLP and after it are fed; read only


# The order in which a layer passes its sites; edits of one layer apply in this order.
FLOW = (
    Site.EMBED,
    Site.RESID_PRE,
    Site.VALUE,
    Site.Z,
    Site.ATTN_OUT,
    Site.RESID_MID,
    Site.MLP_OUT,
    Site.RESID_POST,
)
HEADED = (Site.Z, Site.VALUE)
READ_ONLY = (Site.PATTERN, Site.MASS, Site.VALUE_MASS, Site.RECEIVED, Site.PEAK)
_HOOK = re.compile(r"(?:blocks\.(?P<layer>\d+)\.)?(?:attn\.)?hook_(?P<name>[a-z_]+)")
_HOOKS = {"v": Site.VALUE, **{site.value: site for site in Site if site not in READ_ONLY[1:]}}


def parse_site(name: str) -> tuple[Site, int | None]:
    """A site, and the layer where the name has one.

    Args:
      name: a `Site` such as "resid_post", or a TransformerLens name such as "blocks.12.hook_resid_post",
        "blocks.3.attn.hook_z" or "hook_embed".

    Raises:
      ValueError: the name is neither.
    """
    if name in list(Site):
        return Site(name), None
    match = _HOOK.fullmatch(name)
    site = _HOOKS.get(match["name"]) if match else None
    if match is None or site is None or (match["layer"] is None) != (site is Site.EMBED):
        raise ValueError(
            f"site: expected one of {', '.join(Site)}, or a name such as 'blocks.12.hook_resid_post' or "
            f"'blocks.3.attn.hook_z'; got {name!r}"
        )
    return site, None if match["layer"] is None else int(match["layer"])


def site_shape(site: Site, config: DecoderConfig) -> tuple[int, ...]:
    """The shape of one position of an editable site."""
    match site:
        case Site.Z:
            return (config.num_heads, config.head_dim)
        case Site.VALUE:
            return (config.num_kv_heads, config.head_dim)
        case _:
            return (config.embed_dim,)


def num_site_heads(site: Site, config: DecoderConfig) -> int | None:
    """Heads that an edit at the site can choose among; None where the site has none."""
    return site_shape(site, config)[0] if site in HEADED else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteEdit:
    """An affine map of the activations at one site: scaled, then mixed with sources.

    Leaves lead with L; the heads axis is there for `z` (N) and `value` (K) alone.
    """

    scale: jax.Array  # float32 L M [N]; 1 leaves alone
    dense_weight: jax.Array  # float32 L M [N] S
    vector_weight: jax.Array  # float32 L M [N] V


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteSources:
    """What edits at one site mix in; many edits share one set."""

    dense: jax.Array  # L S T ...: activations of another pass, one per position
    vectors: jax.Array  # L V ...: the same at every position


def apply_edit(
    x: Float[Array, "R ..."], edit: SiteEdit, sources: SiteSources, groups: Int[Array, "R"], first_row: Array | int
) -> Float[Array, "R ..."]:
    """The activations of R consecutive rows after one layer's edit.

    Args:
      edit, sources: one layer's, without L.
      first_row: where the rows begin among the positions of the dense sources.
    """
    y = x.astype(jnp.float32) * edit.scale[groups][..., None]
    if edit.dense_weight.shape[-1] and sources.dense.shape[0]:
        weight = jnp.moveaxis(edit.dense_weight[groups], -1, 0)[..., None]  # S R [N] 1
        rows = jax.lax.dynamic_slice_in_dim(sources.dense, first_row, x.shape[0], axis=1)
        y = y + jnp.sum(weight * rows.astype(jnp.float32), axis=0)
    return rounded(_add_vectors(y, edit, sources, groups), x.dtype)


def apply_to_token(x: Float[Array, "..."], edit: SiteEdit, sources: SiteSources, group: Array) -> Float[Array, "..."]:
    """The activations of one decoded token after one layer's edit; dense sources have no row for it."""
    y = (x.astype(jnp.float32) * edit.scale[group][..., None])[None]
    return rounded(_add_vectors(y, edit, sources, group[None])[0], x.dtype)


def _add_vectors(y: Array, edit: SiteEdit, sources: SiteSources, groups: Array) -> Array:
    if not edit.vector_weight.shape[-1]:
        return y
    weight = jnp.moveaxis(edit.vector_weight[groups], -1, 0)[..., None]
    return y + jnp.sum(weight * sources.vectors[:, None].astype(jnp.float32), axis=0)
