"""The named places of a decoder layer where activations are read and edited.

Axes: L layer, R rows (positions), M token group, N heads, K kv heads, H head dim, D embed, S dense sources, V vectors.
"""

import dataclasses
import re
from enum import StrEnum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from avjax.models.config import DecoderConfig
from avjax.models.layers import rounded
from avjax.nearest import did_you_mean


class Site(StrEnum):
    """Where a decoder can be read or edited; the comments give the shape of one position in one layer."""

    EMBED = "embed"  # D, what layer 0 is fed; has no layers
    RESID_PRE = "resid_pre"  # D
    RESID_MID = "resid_mid"  # D, after attention
    RESID_POST = "resid_post"  # D
    ATTN_IN = "attn_in"  # D, what attention reads: the residual after its norm, weight included
    ATTN_OUT = "attn_out"  # D
    MLP_IN = "mlp_in"  # D, what the MLP reads: the residual after its norm, weight included
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
    Site.ATTN_IN,
    Site.VALUE,
    Site.Z,
    Site.ATTN_OUT,
    Site.RESID_MID,
    Site.MLP_IN,
    Site.MLP_OUT,
    Site.RESID_POST,
)
BEFORE_ATTENTION = (Site.RESID_PRE, Site.ATTN_IN, Site.VALUE)  # of every row, also of those that only give keys
HEADED = (Site.Z, Site.VALUE)
READ_ONLY = (Site.PATTERN, Site.MASS, Site.VALUE_MASS, Site.RECEIVED, Site.PEAK)
_HOOK = re.compile(r"(?:blocks\.(?P<layer>\d+)\.)?(?P<hook>(?:(?:attn|mlp|ln1|ln2)\.)?hook_[a-z_]+)")
_HOOKS = {
    **{f"hook_{site}": site for site in FLOW if site not in (Site.ATTN_IN, Site.MLP_IN)},
    **{f"{module}hook_{name}": site for module in ("", "attn.") for name, site in (("v", Site.VALUE), ("z", Site.Z))},
    **{f"{module}hook_pattern": Site.PATTERN for module in ("", "attn.")},
    # Of its TransformerBridge, which wraps Hugging Face's modules.
    **{"ln1.hook_out": Site.ATTN_IN, "attn.hook_in": Site.ATTN_IN},
    **{"ln2.hook_out": Site.MLP_IN, "mlp.hook_in": Site.MLP_IN},
}
_BEFORE_WEIGHT = "TransformerLens reads it before the norm's weight"
_AMBIGUOUS = "TransformerLens reads it before the norm in HookedTransformer, but after it in TransformerBridge"
_UNLIKE = {  # names that look like a site and are another tensor
    "hook_attn_in": (_AMBIGUOUS, Site.ATTN_IN, "ln1.hook_out"),
    "hook_mlp_in": (_AMBIGUOUS, Site.MLP_IN, "ln2.hook_out"),
    "ln1.hook_normalized": (_BEFORE_WEIGHT, Site.ATTN_IN, "ln1.hook_out"),
    "ln2.hook_normalized": (_BEFORE_WEIGHT, Site.MLP_IN, "ln2.hook_out"),
}


def parse_site(name: str) -> tuple[Site, int | None]:
    """A site, and the layer where the name has one.

    Args:
      name: a `Site` such as "resid_post", or a TransformerLens name such as "blocks.12.hook_resid_post",
        "blocks.3.attn.hook_z" or "hook_embed". `attn_in` and `mlp_in` are its "blocks.3.ln1.hook_out" and
        "blocks.3.ln2.hook_out" (or "attn.hook_in", "mlp.hook_in"); "ln1.hook_normalized", which lacks the norm's
        weight, and "hook_attn_in", which one of its two classes has before the norm, are refused.

    Raises:
      ValueError: the name is neither.
    """
    if not isinstance(name, str):
        raise ValueError(f"site: expected a name such as 'resid_post', got {type(name).__name__}: {name!r}")
    if name in list(Site):
        return Site(name), None
    match = _HOOK.fullmatch(name)
    hook, layer = (match["hook"], match["layer"]) if match else ("", None)
    if hook in _UNLIKE:
        reason, site, other = _UNLIKE[hook]
        raise ValueError(
            f"site {name!r}: {reason}; expected {site.value!r}, after norm and weight, or 'blocks.{layer or 0}.{other}'"
        )
    if hook not in _HOOKS:
        hint = did_you_mean(name, _spellings(name))
    elif (layer is None) == (_HOOKS[hook] is Site.EMBED):
        return _HOOKS[hook], None if layer is None else int(layer)
    else:
        hint = "; did you mean 'hook_embed'?" if layer else f"; did you mean 'blocks.0.{hook}'?"
    raise ValueError(
        f"site: expected one of {', '.join(Site)}, or a name such as 'blocks.12.hook_resid_post' or "
        f"'blocks.3.attn.hook_z'; got {name!r}{hint}"
    )


def _spellings(name: str) -> list[str]:
    """What a name may have been meant to be: a hook of the same layer where it speaks of blocks, else a site."""
    if "hook" not in name and "blocks" not in name:
        return list(Site)
    layer = re.search(r"\d+", name)
    number = "0" if layer is None else layer[0]
    return [hook if site is Site.EMBED else f"blocks.{number}.{hook}" for hook, site in _HOOKS.items()]


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
