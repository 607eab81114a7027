"""Attention along captions: from a group of query tokens to groups of keys, per layer and head.

Axes: T position, L layer, N heads, M token group, Q query, C key selector (the last one is every key).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from avjax.analysis.by_sample import with_prompts
from avjax.analysis.captions import Captioned, Captions, captioned
from avjax.devices.memory import agreed_memory_bytes
from avjax.edits.edits import Edit, for_sample
from avjax.edits.identities import refuse_identities
from avjax.edits.rules import as_edits
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.reads import AttentionRead, Reads
from avjax.engine.reference import largest_read, prefill
from avjax.engine.session import Session
from avjax.model import Model
from avjax.models.decoder import Decoder
from avjax.models.intervention import Intervention
from avjax.models.layers import dot
from avjax.models.sites import Site
from avjax.progress import Progress
from avjax.prompts.prompt import Inputs, Prompt, named_prompts
from avjax.prompts.selectors import Selector, select
from avjax.provenance import provenance

ABOUT = {
    "mass": ("share of attention", "attention on the keys"),
    "per_key": ("ratio to uniform attention", "attention on the keys over their share of the visible keys"),
    "value_weighted": ("norm of value", "attention times value norm, summed over the keys"),
    "value_share": ("share of value-weighted attention", "value-weighted attention on the keys"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionQueries:
    """The queries of one sample's caption: where they are and what is read of them.

    Attributes:
      rows: int [Q], positions of the queries among the prompt and the caption's tokens that are fed.
      visible: int [Q, C], how many keys of each selector each query sees.
    """

    caption: Captioned
    rows: np.ndarray
    visible: np.ndarray


def attention_mass(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
    keys: Sequence[Selector] = ("audio", "video", "text"),
    query: Selector = "generated",
    captions: Captions = None,
    max_new_tokens: int = 50,
    edits: Edit | str | Sequence[Edit | str] = (),
    per_token: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Attention that the tokens `query` pay each of the groups `keys`, along a caption; one pass per prompt.

    On tiny-av, whose sight overrules its hearing, the token that the sound's word is predicted from ("hear") pays a
    video key over 3 times what it pays an audio key in the deep half of the layers, and under twice in the other half.

    Args:
      query: "generated", by default, are the caption's tokens but its last, which nothing is predicted from, after
        those of an opened prompt; "answer" adds the position that predicts the first of them.
      captions: see `captioned`; None is what the unedited model says, up to `max_new_tokens`.
      edits: edits or rules under which the attention is read; a selector or source may be by sample.
      per_token: keep the queries apart, along the dimension `token`, instead of their mean.

    Returns:
      Over (sample, key, layer, head), or (sample, token, key, layer, head):
        `mass`: attention weights summed over the group's keys, mean over queries; a query whose every visible key is
          blocked counts as 0.
        `per_key`: `mass` over the group's share of the causally visible keys, each a mean over queries; 1 is uniform
          attention. Missing for a token that sees no such key.
        `value_weighted`: weights times the norm of the head's value at the key (after edits, before the output
          projection), summed over the group's keys. `value_share` is the same over its sum over all visible keys.
      `caption` is each sample's text, `queries` how many tokens were read. With `per_token`, `query_text` and
      `position` say which each token is; samples with fewer tokens end in missing values.

    Raises:
      ValueError: a selector names no token, no query sees a key, or an edit does not fit; before anything but the
        model's own captions is computed.

    Source: Selvakumar et al. 2026 (attention by modality), Kobayashi et al. 2020 (norms; there of the value after the
    output projection).
    """
    named, changes = named_prompts(prompts), as_edits([edits] if isinstance(edits, Edit | str) else edits)
    refuse_identities([changes], allow_noop=False)
    if isinstance(keys, str) or not len(keys):
        raise ValueError(f"keys: expected a list of selectors, got {keys!r}")
    labels = [k if isinstance(k, str) else str(list(k)) for k in keys]
    if len(set(labels)) < len(labels):
        raise ValueError(f"keys: expected different selectors, got {', '.join(labels)}")
    for name, prompt in named.items():
        model.check(prompt)
        _refuse_absent(name, prompt, keys, query)
        lower(prompt, model.config.decoder, [for_sample(changes, name)], num_decoded=1, clean=CleanRuns(model))
    along = captioned(model, named, captions, max_new_tokens)
    asked = {name: _asked(name, along[name], keys, query) for name in named}
    clean = CleanRuns(model)
    edited = {name: for_sample(changes, name) for name in named}
    sessions = {name: _session(model, one.caption, keys, edited[name], clean) for name, one in asked.items()}
    datasets = []
    with Progress("attention", len(asked), "prompts", enabled=progress) as bar:
        for name, one in asked.items():
            datasets.append(_reduced(one, *_read(sessions.pop(name), keys, one.rows), per_token))
            bar.advance(1)
    attributes = {"query": str(query), "edits": "; ".join(map(str, changes)) or None}
    return with_prompts(_dataset(model, asked, datasets, labels, per_token, attributes), named)


def _refuse_absent(name: Any, prompt: Prompt, keys: Sequence[Selector], query: Selector) -> None:
    for what, selector in [("query", query), *(("key", k) for k in keys)]:
        if not select(prompt, selector).any():
            raise ValueError(f"sample {name!r}: the prompt has no {selector} tokens ({what}); leave them out")


def _asked(name: Any, caption: Captioned, keys: Sequence[Selector], query: Selector) -> CaptionQueries:
    rows = np.flatnonzero(caption.select(query))
    if not len(rows):
        raise ValueError(
            f"sample {name!r}: a caption's last token, here of {len(caption.tokens)}, is never fed back, so no "
            f"{query} token attends to anything; use query='answer', which adds the last prompt position"
        )
    visible = np.stack([np.cumsum(caption.select(selector))[rows] for selector in (*keys, "all")], axis=-1)
    for index, selector in enumerate(keys):
        if not visible[:, index].any():
            raise ValueError(f"sample {name!r}: no {query} token comes at or after a {selector} token")
    return CaptionQueries(caption=caption, rows=rows, visible=visible)


def _session(
    model: Model, caption: Captioned, keys: Sequence[Selector], edits: Sequence[Edit], clean: CleanRuns
) -> Session:
    last = select(caption.prompt, "last")
    reads = [AttentionRead(query=last, key=mask) for mask in _masks(caption.prompt, keys)]
    return Session(
        model,
        caption.prompt,
        [edits],
        reads=Reads(continuations=(tuple(caption.tokens.tolist()),), attention=tuple(reads)),
        memory_bytes=agreed_memory_bytes(model.mesh, None),
        clean_runs=clean,
    )


def _masks(prompt: Prompt, keys: Sequence[Selector]) -> list[np.ndarray]:
    return [select(prompt, selector) for selector in (*keys, "all")]


def _read(session: Session, keys: Sequence[Selector], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention [Q, C, L, N], and the same weighted by values."""
    members = [session.lowered.members[mask.tobytes()] for mask in _masks(session.prompt, keys)]
    edit = session.lowered.intervention(0, session.size) if session.variants[0] else None
    padded = np.resize(rows, 1 << (len(rows) - 1).bit_length())  # few lengths, so that few programs are compiled
    classes = np.stack(members, axis=-1).astype(np.float32)
    sums, largest = _masses(session.model.network.decoder, session.inputs, edit, padded, classes)
    session.refuse_overflow([0], np.asarray(largest)[None])
    mass, weighted = (np.asarray(x)[: len(rows)] for x in sums)
    return mass, weighted


@jax.jit
def _masses(
    decoder: Decoder, inputs: Inputs, edit: Intervention | None, rows: jax.Array, members: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """[Q, C, L, N] of both sites; and the largest size of what a norm was fed, see `avjax.engine.overflow`."""
    _, _, captures = prefill(decoder, inputs, edit, capture=(Site.MASS, Site.VALUE_MASS, Site.PEAK))
    sums = [dot("lnqm,mc->qcln", captures[site][:, :, rows], members) for site in (Site.MASS, Site.VALUE_MASS)]
    return sums, largest_read(captures[Site.PEAK], inputs)


def _reduced(asked: CaptionQueries, mass: np.ndarray, weighted: np.ndarray, per_token: bool) -> dict[str, np.ndarray]:
    """Each variable [C - 1, L, N], or [Q, C - 1, L, N] per token."""
    total = weighted[:, -1:]
    value_share = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
    share = asked.visible / asked.visible[:, -1:]
    if not per_token:
        mass, weighted, value_share, share = (x.mean(0, keepdims=True) for x in (mass, weighted, value_share, share))
    share = np.where(share > 0, share, np.nan)[..., None, None]
    readings = {"mass": mass, "per_key": mass / share, "value_weighted": weighted, "value_share": value_share}
    return {name: x[:, :-1] if per_token else x[0, :-1] for name, x in readings.items()}


def _dataset(
    model: Model,
    asked: Mapping[Any, CaptionQueries],
    found: Sequence[Mapping[str, np.ndarray]],
    labels: Sequence[str],
    per_token: bool,
    about: Mapping[str, Any],
) -> xr.Dataset:
    cfg = model.config.decoder
    dims = ("sample", *(("token",) if per_token else ()), "key", "layer", "head")
    counts = [len(one.rows) for one in asked.values()]
    coordinates: dict[str, Any] = {"sample": list(asked), "key": list(labels)}
    coordinates |= {"layer": np.arange(cfg.num_layers), "head": np.arange(cfg.num_heads)}
    texts = [_text(model, one.caption.tokens) for one in asked.values()]
    variables: dict[str, Any] = {
        "caption": ("sample", texts, {"units": "text", "long_name": "caption along which attention is read"}),
        "queries": ("sample", counts, {"units": "count", "averages": 0, "long_name": "query tokens"}),
    }
    for name, (units, long_name) in ABOUT.items():
        parts = [one[name].astype(np.float32) for one in found]
        values = _joined(parts, np.nan) if per_token else np.stack(parts)
        variables[name] = (dims, values, {"units": units, "long_name": long_name})
    if per_token:
        coordinates["token"] = np.arange(max(counts))
        which = ("sample", "token")
        words = [
            np.array([_text(model, [token]) for token in one.caption.fed.token_ids[one.rows]]) for one in asked.values()
        ]
        where = {"units": "position", "averages": 0, "long_name": "position of the query token, -1 for none"}
        variables["query_text"] = (which, _joined(words, ""), {"units": "text", "long_name": "query token"})
        variables["position"] = (which, _joined([one.rows for one in asked.values()], -1), where)
    return xr.Dataset(variables, coordinates, provenance(model, analysis="attention mass", **about))


def _text(model: Model, tokens: Sequence[int] | np.ndarray) -> str:
    return model.decode_text(tokens) or " ".join(map(str, tokens))


def _joined(parts: Sequence[np.ndarray], fill: Any) -> np.ndarray:
    """Stacked, the shorter ones filled up."""
    longest = max(len(part) for part in parts)
    return np.stack([np.concatenate([x, np.full((longest - len(x), *x.shape[1:]), fill, x.dtype)]) for x in parts])
