"""The logit lens: what the final norm and the unembedding read from activations before the last layer.

Source: nostalgebraist 2020 (the logit lens); Belrose et al. 2023 (the tuned lens, which `lens=` takes).

Axes: L layer, P position of the token group, V vocab, A answer, F surface form, k top.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.analysis.by_sample import with_prompts
from avjax.analysis.captions import Captions
from avjax.analysis.lens_positions import LensPositions, checked_site, places_of, refuse_unreadable
from avjax.analysis.lens_projection import CHUNK_BYTES, NO_FORM, Projected, chunk_rows, lens_pass, padded_rows
from avjax.analysis.tuned_lens import TunedLens
from avjax.engine.overflow import refuse_overflow
from avjax.engine.reference import pad_inputs
from avjax.metrics import Answer, answer_tokens
from avjax.model import Model
from avjax.models.buckets import bucket
from avjax.models.sites import Site
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import Selector, as_indices
from avjax.provenance import provenance

Answers = Answer | Sequence[Answer] | Mapping[str, Answer | Mapping[Any, Answer]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lens:
    """A lens whose parts fit the model."""

    model: Model
    site: Site
    layers: tuple[int, ...]
    norm: bool
    k: int
    tuned: TunedLens | None
    chunk_bytes: int

    def read(self, sample: Any, places: LensPositions, answers: np.ndarray) -> Projected:
        """One sample's projections as numpy arrays [chosen layers, P, ...].

        Args:
          answers: int32 [A, F].

        Raises:
          ActivationOverflow: an activation is not finite, or beyond what a norm can square.
        """
        cfg = self.model.config.decoder
        chunk = chunk_rows(cfg.vocab_size, len(places.rows), self.chunk_bytes)
        wanted = np.isin(np.arange(cfg.num_layers), self.layers)
        projected, fed = lens_pass(
            self.model.network.decoder,
            pad_inputs(self.model.encode(places.prompt), bucket(len(places.prompt))),
            jnp.asarray(padded_rows(places.rows, chunk)),
            jnp.asarray(wanted),
            jnp.asarray(answers, jnp.int32),
            None if self.tuned is None else self.tuned.translators,
            site=self.site,
            norm=self.norm,
            k=self.k,
            chunk=chunk,
        )
        projected = jax.tree.map(lambda leaf: np.asarray(leaf)[list(self.layers), : len(places.rows)], projected)
        refuse_unreadable(projected.largest, sample, self.site, self.layers, places.rows)
        # What later layers do is not read here.
        before, here = np.asarray(fed)[: self.layers[-1]], np.asarray(fed)[self.layers[-1]]
        after_mid = self.site in (Site.MLP_OUT, Site.RESID_POST)
        refuse_overflow([*before.ravel(), *(here if after_mid else here[:1])], f"sample {sample!r}")
        return projected

    def attributes(self, **settings: Any) -> dict[str, Any]:
        tuned = None if self.tuned is None else f"tuned on {self.tuned.trained_on}"
        attributes = {
            "site": str(self.site),
            "norm": int(self.norm),
            "k": self.k,
            "lens": tuned or "logit lens",
            **settings,
        }
        return provenance(self.model, **attributes)


def logit_lens(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    where: Selector = "audio",
    site: str = "resid_post",
    *,
    layers: Sequence[int] | int | None = None,
    norm: bool = True,
    k: int = 5,
    answers: Answers | None = None,
    captions: Captions = None,
    max_new_tokens: int = 50,
    lens: TunedLens | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    progress: bool = True,
) -> xr.Dataset:
    """What each layer's activations say at each position of a token group, in words of the vocabulary.

    In tiny-av under conflict, the first choice at audio tokens is the thing that is seen at a tenth or more of them
    from layer 4 on, and the sound that is heard at hardly any, although a probe reads it there. After "I hear", layers
    5 to 7 choose the sound that belongs to the picture.

    One pass per prompt projects each layer as it goes by, `chunk_bytes` of logits at a time: neither the residuals of
    all layers nor the logits of all positions are held.

    Args:
      where: the token group. If it names generated tokens ("generated", "answer", "all"), the caption is
        fed; those of an opened prompt come first.
      site: "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out", or a TransformerLens name of one. The
        output of a sublayer is read as if it were the residual: its own norm scales it.
      layers: which ones, 0-based; None is all.
      norm: with the final norm, as the model reads its last layer; without, the unembedding of the raw residual, which
        is what the published code does.
      k: how many of the likeliest tokens are kept.
      answers: one, several, or by label; under a label also one for each sample, by its name. An answer is a word,
        which is scored over its surface forms, or token ids.
      captions: see `avjax.analysis.captioned`; None is the model's own. Not looked at if `where` names no generated
        token.
      lens: a tuned lens (`train_tuned_lens`).
      chunk_bytes: of float32 logits that are computed together; about twice as much is in use at a time.

    Returns:
      Dimensions `sample`, `layer`, `position`, `top` and `answer`. `position` counts within the group, so that a clip's
      first audio token is 0 in every sample; `prompt_position`, `seconds`, `frame`, `modality` and `input_token` of
      each are coordinates [sample, position]. Groups of different size are filled at the end: NaN, token -1, word "".
      `top_token`, `top_prob` (probability), `top_word`, `entropy` (nats), and with answers `log_prob` (nats, over the
      surface forms) and `rank` (of the likeliest form; 1 is the lens's own choice).

    Raises:
      ValueError: something does not fit, before anything is compiled; or an activation is not finite.
    """
    named = named_prompts(prompts)
    how = checked_lens(model, site, layers, norm=norm, k=k, tuned=lens, chunk_bytes=chunk_bytes)
    labels, tokens = _answers(model, answers, list(named))
    looked = places_of(model, named, where, captions, max_new_tokens)
    projections: list[Projected] = []
    with Progress("logit lens", len(looked), "prompts", enabled=progress) as bar:
        for name, places in looked.items():
            projections.append(how.read(name, places, tokens[name]))
            bar.advance(1)
    dataset = _dataset(how, looked, labels, projections, how.attributes(where=str(where)))
    return with_prompts(dataset, named)


def checked_lens(
    model: Model,
    site: str,
    layers: Sequence[int] | int | None,
    *,
    norm: bool = True,
    k: int = 1,
    tuned: TunedLens | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Lens:
    """A lens of parts that fit together.

    Raises:
      ValueError: they do not.
    """
    cfg = model.config.decoder
    place, layer = checked_site(site)
    if layer is not None and layers is not None:
        raise ValueError(f"site {site!r} names a layer; leave layers out, or write {str(place)!r}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= cfg.vocab_size:
        raise ValueError(f"k: expected a whole number from 1 to the vocabulary size {cfg.vocab_size}, got {k!r}")
    if isinstance(chunk_bytes, bool) or not isinstance(chunk_bytes, int | np.integer) or chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: expected a whole number of at least 1, got {chunk_bytes!r}")
    if tuned is not None:
        tuned.check(model, place)
        if not norm:
            raise ValueError("lens: a tuned lens needs the final norm, which it was trained with; leave norm=False out")
    chosen = checked_layers(layer if layer is not None else layers, cfg.num_layers)
    return Lens(model=model, site=place, layers=chosen, norm=norm, k=int(k), tuned=tuned, chunk_bytes=chunk_bytes)


def checked_layers(layers: Sequence[int] | int | None, num_layers: int) -> tuple[int, ...]:
    chosen = range(num_layers) if layers is None else as_indices(layers, "layers")
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < num_layers for i in chosen):
        raise ValueError(f"layers: expected different layers within 0:{num_layers}, got {layers!r}")
    return tuple(sorted(chosen))


def forms(model: Model, answers: Sequence[Answer]) -> np.ndarray:
    """int32 [A, F], the token ids of each answer's surface forms, filled with `NO_FORM`."""
    ids = [answer_tokens(model, answer) for answer in answers]
    padded = np.full((len(ids), max(map(len, ids), default=1)), NO_FORM, np.int32)
    for row, tokens in zip(padded, ids, strict=True):
        row[: len(tokens)] = tokens
    return padded


def _answers(model: Model, answers: Answers | None, samples: Sequence[Any]) -> tuple[list[str], dict[Any, np.ndarray]]:
    """The labels, and each sample's token ids."""
    if answers is None:
        by_label: dict[str, Any] = {}
    elif isinstance(answers, Mapping):
        by_label = dict(answers)
    else:
        several = [answers] if isinstance(answers, str | int | np.integer) else list(answers)
        by_label = {str(answer): answer for answer in several}
        if len(by_label) < len(several):
            raise ValueError(f"answers: expected distinct answers, got {several!r}")
    if answers is not None and not by_label:
        raise ValueError("answers: expected at least one, got none; leave answers out for none")
    for label, given in by_label.items():
        if isinstance(given, Mapping) and (missing := [name for name in samples if name not in given]):
            raise ValueError(f"answers: {label!r} has no answer for samples {', '.join(map(repr, missing))}")
    tokens = {
        name: forms(model, [a[name] if isinstance(a, Mapping) else a for a in by_label.values()]) for name in samples
    }
    return [str(label) for label in by_label], tokens


def words_of(model: Model, tokens: np.ndarray) -> np.ndarray | None:
    """str, in the tokens' shape; "" for -1. None when the checkpoint has no tokenizer."""
    if not model.processor.has_tokenizer:
        return None
    unique, places = np.unique(tokens, return_inverse=True)
    words = ["" if token < 0 else model.processor.tokenizer.decode([int(token)]) for token in unique]
    return np.array(words, object)[places.reshape(tokens.shape)]


def stacked(arrays: Sequence[np.ndarray], axis: int, fill: Any) -> np.ndarray:
    """Arrays along a new first axis, filled at the end of `axis` to the length of the longest."""
    longest = max(a.shape[axis] for a in arrays)

    def full(a: np.ndarray) -> np.ndarray:
        widths = [(0, longest - a.shape[axis] if i == axis else 0) for i in range(a.ndim)]
        return np.pad(a, widths, constant_values=fill)

    return np.stack([full(a) for a in arrays])


def _dataset(
    how: Lens,
    looked: Mapping[Any, LensPositions],
    labels: list[str],
    found: Sequence[Projected],
    attributes: dict[str, Any],
) -> xr.Dataset:
    def gathered(values: Sequence[Any], fill: Any = np.nan) -> np.ndarray:
        return stacked([v.astype(np.float32) if fill is np.nan else v for v in values], 1, fill)

    dims = ("sample", "layer", "position")
    tokens = gathered([f.top_token for f in found], -1)
    token_about = {"units": "token id", "averages": 0, "long_name": "likeliest tokens; -1 where there is no position"}
    variables: dict[str, Any] = {
        "top_token": ((*dims, "top"), tokens, token_about),
        "top_prob": (
            (*dims, "top"),
            np.exp(gathered([f.top_log_prob for f in found])),
            {"units": "probability", "averages": 0, "long_name": "probability of the likeliest tokens"},
        ),
        "entropy": (
            dims,
            gathered([f.entropy for f in found]),
            {"units": "nats", "long_name": "entropy of the lens's distribution"},
        ),
    }
    if (words := words_of(how.model, tokens)) is not None:
        variables["top_word"] = (
            (*dims, "top"),
            words,
            {"units": "text", "averages": 0, "long_name": "likeliest tokens"},
        )
    if labels:
        variables["log_prob"] = (
            (*dims, "answer"),
            gathered([f.log_prob for f in found]),
            {"units": "nats", "long_name": "log-probability of the answer, over its surface forms"},
        )
        variables["rank"] = (
            (*dims, "answer"),
            gathered([f.rank for f in found]),
            {"units": "rank", "long_name": "rank of the answer's likeliest surface form; 1 is the lens's own choice"},
        )
    coordinates = {"layer": list(how.layers), "top": np.arange(1, how.k + 1), **_coordinates(looked)}
    if labels:
        coordinates["answer"] = labels
    return xr.Dataset(variables, coordinates, attributes)


def _coordinates(looked: Mapping[Any, LensPositions]) -> dict[str, Any]:
    each = list(looked.values())
    dims = ("sample", "position")

    def column(values: Sequence[np.ndarray], fill: Any, units: str, long_name: str) -> tuple[Any, ...]:
        return dims, stacked(values, 0, fill), {"units": units, "long_name": long_name}

    return {
        "sample": list(looked),
        "position": np.arange(max(len(p.rows) for p in each)),
        "prompt_position": column([p.rows for p in each], -1, "1", "position in what was run; -1 is none"),
        "seconds": column([p.prompt.seconds[p.rows] for p in each], np.nan, "s", "where the token begins in its clip"),
        "frame": column([p.prompt.frames[p.rows] for p in each], -1, "1", "step of the video's grid; -1 is none"),
        "modality": column([p.modality for p in each], "", "text", "what the token is; empty where there is none"),
        "input_token": column([p.prompt.token_ids[p.rows] for p in each], -1, "token id", "the token at the position"),
    }
