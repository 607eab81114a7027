"""Features for probes: activations of all layers, pooled over a token group, from one pass per prompt.

Axes: T position, D embed, L layer, S site, P pooling.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.analysis.clip_groups import MEDIA, media_of
from avjax.edits.edits import READ_ONLY
from avjax.engine.overflow import NORMED, refuse_overflow, row_sizes
from avjax.engine.reference import pad_inputs
from avjax.model import Model
from avjax.models.attention import attend_prompt
from avjax.models.buckets import bucket
from avjax.models.decoder import Decoder
from avjax.models.sites import Site, parse_site, site_shape
from avjax.progress import Progress
from avjax.prompts.prompt import Inputs, Prompt, named_prompts, token_counts
from avjax.prompts.selectors import Selector, select
from avjax.provenance import provenance

Pooling = Literal["mean", "last", "max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def probe_features(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
    sites: str | Sequence[str] = ("resid_post",),
    where: Selector = "audio",
    pooling: str | Sequence[str] = POOLINGS,
    *,
    progress: bool = True,
) -> xr.Dataset:
    """Activations at some sites of every layer, pooled over the positions of a token group.

    One forward pass per prompt; activations are pooled as the layers pass, and none are kept by position.

    Args:
      sites: of one size; those of `z` and `value` are the heads' outputs one after the other.
      where: token selector, of prompt positions; for tokens of an answer, `prompt.continued(tokens)` makes them such.
      pooling: "mean", "last" (of the group's positions) or "max" (by feature).

    Returns:
      `features`, float32 over sample, site, pooling, layer and feature, and `positions`, the size of the group. The
      coordinate `media` says what each sample is made of, by digests: samples that share one are of one clip.

    Raises:
      ValueError: a site, pooling or selector does not fit, or a prompt has no such positions.
      OverflowError: activations grew beyond float32; the sample is named.
    """
    named = named_prompts(prompts)
    sites_by_kind, size = _sites(model, sites)
    ways = _poolings(pooling)
    masks = {}
    for name, prompt in named.items():
        model.check(prompt)
        masks[name] = select(prompt, where)[:-1]
        if not masks[name].any():
            raise ValueError(
                f"probe_features: the prompt of sample {name!r} has no {where!r} tokens; leave the sample out, or "
                "change where="
            )
    cfg = model.config.decoder
    values = np.empty((len(named), len(sites_by_kind), len(ways), cfg.num_layers, size), np.float32)
    with Progress("features", len(named), "prompts", enabled=progress) as bar:
        for i, (name, prompt) in enumerate(named.items()):
            padded = bucket(len(prompt))
            mask = np.zeros(padded, bool)
            mask[: len(prompt)] = masks[name]
            inputs = pad_inputs(model.encode(prompt), padded)
            values[i], fed = _pooled(model.network.decoder, inputs, jnp.asarray(mask), sites=sites_by_kind, ways=ways)
            sizes = [*np.ravel(fed), *np.ravel(row_sizes(jnp.asarray(values[i])))]
            refuse_overflow(sizes, f"probe_features: sample {name!r}")
            bar.advance(1)
    dims = ("sample", "site", "pooling", "layer", "feature")
    coords = {
        "sample": list(named),
        "site": [str(site) for site in sites_by_kind],
        "pooling": list(ways),
        "layer": np.arange(cfg.num_layers),
        "feature": np.arange(size),
        MEDIA: ("sample", [" ".join(items) for items in media_of(named.values())]),
        **token_counts(named),
    }
    attributes = {"units": "activation", "long_name": f"activation pooled over {where}"}
    counts = {"units": "count", "long_name": f"positions of {where}"}
    return xr.Dataset(
        {
            "features": (dims, values, attributes),
            "positions": ("sample", np.array([int(mask.sum()) for mask in masks.values()]), counts),
        },
        coords,
        attrs=provenance(model, where=str(where)),
    )


@functools.partial(jax.jit, static_argnames=("sites", "ways"))
def _pooled(
    decoder: Decoder, inputs: Inputs, mask: jax.Array, *, sites: tuple[Site, ...], ways: tuple[Pooling, ...]
) -> tuple[jax.Array, jax.Array]:
    """float32 [S, P, L, D] of a clean pass, and the largest size [L, 2] of what each layer's norms were fed.

    `mask` [T] marks the positions.
    """
    exists = jnp.arange(mask.shape[0]) < inputs.length
    rotary = decoder.rotary(inputs.positions, inputs.embeddings.dtype)
    last = mask.shape[0] - 1 - jnp.argmax(mask[::-1])

    def pool(x: jax.Array, way: Pooling) -> jax.Array:
        x_TD = x.reshape(mask.shape[0], -1).astype(jnp.float32)
        match way:
            case "mean":
                return jnp.mean(x_TD, 0, where=mask[:, None])
            case "last":
                return x_TD[last]
            case "max":
                return jnp.max(x_TD, 0, where=mask[:, None], initial=-jnp.inf)

    def layer(x: jax.Array, block: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        activations: dict[Site, jax.Array] = {}
        fed: dict[Site, jax.Array] = {}

        def at(site: Site, x: jax.Array) -> jax.Array:
            if site in NORMED:
                fed[site] = jnp.max(jnp.where(exists, row_sizes(x), 0.0))
            if site in sites:
                activations[site] = jnp.stack([pool(x, way) for way in ways])
            return x

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            z, _ = attend_prompt(
                q,
                k,
                v,
                length=inputs.length,
                groups=inputs.groups,
                factor=None,
                num_groups=inputs.num_groups,
            )
            return z, None

        x, _ = block(x, rotary, attend, at)
        return x, (jnp.stack([activations[site] for site in sites]), jnp.stack([fed[site] for site in NORMED]))

    _, (pooled, fed) = jax.lax.scan(layer, inputs.embeddings, decoder.layers)
    return jnp.moveaxis(pooled, 0, 2), fed


def _sites(model: Model, sites: str | Sequence[str]) -> tuple[tuple[Site, ...], int]:
    names = [sites] if isinstance(sites, str) else list(sites)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"probe_features: expected one or more sites, each once, got {names}")
    parsed = []
    for name in names:
        site, layer = parse_site(name)
        if layer is not None or site in READ_ONLY or site is Site.EMBED:
            raise ValueError(
                f"probe_features: expected a site that each layer has, such as resid_post, without a layer number, got "
                f"{name!r}; all layers are returned, and embed is resid_pre of layer 0"
            )
        parsed.append(site)
    sizes = {str(site): int(np.prod(site_shape(site, model.config.decoder))) for site in parsed}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"probe_features: expected sites of one size, got {sizes}; call once for each size")
    return tuple(parsed), next(iter(sizes.values()))


def _poolings(pooling: str | Sequence[str]) -> tuple[Pooling, ...]:
    names = [pooling] if isinstance(pooling, str) else list(pooling)
    if not names or len(set(names)) < len(names) or not set(names) <= set(POOLINGS):
        raise ValueError(f"probe_features: expected pooling among {', '.join(POOLINGS)}, each once, got {names}")
    return tuple(names)  # pyright: ignore[reportReturnType]
