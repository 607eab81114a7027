"""Base comparison: a model that hears against one that does not, token by token along the first one's caption.

Source: arXiv 2604.02605: divergence and rank per generated token; unshifted, marginal and shifted tokens as in Lin et
al. 2023 (The Unlocking Spell on Base LLMs).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from avjax.analysis.by_sample import Prompts, with_prompts
from avjax.analysis.captions import Captioned, Captions, captioned
from avjax.engine.run import run
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import KINDS
from avjax.provenance import provenance

CAVEAT = (
    "Qwen2.5-Omni's language model starts from Qwen2.5 and its vision encoder from Qwen2.5-VL, so Qwen2.5-VL is a "
    "sibling of it rather than a strict parent; video-SALMONN 2+ is built exactly on Qwen2.5-VL."
)
SHIFTS = ("unshifted", "marginal", "shifted")
MARGINAL = 3  # the largest rank of a marginal token
OTHER = "other"


def compare_with_base(
    model: Model,
    base: Model,
    prompts: Prompts,
    base_prompts: Prompts,
    *,
    captions: Captions = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    max_new_tokens: int = 50,
    progress: bool = True,
) -> xr.Dataset:
    """What a base model would say in place of each token of a model's caption.

    Args:
      prompts: of the model, with sound.
      base_prompts: of the base, the same samples without sound: `base.prompt(text, video=...)`.
      captions: along which both are read; None is the model's own greedy caption.
      classes: words by class, such as `{"sound": ["barking", "siren"], "thing": ["dog"]}`; a token of such a word
        belongs to the class, all others to "other". How the paper tags its audio-event tokens is unknown.

    Returns:
      Over (sample, token), missing after a caption's end: `kl_model_base` and `kl_base_model` (nats), `rank` of the
      token under the base (1 is its own choice), `shift` (unshifted: rank 1, marginal: 2 or 3, shifted: beyond),
      `text` and `token_class`. The attribute `caveat` says what a base is.

    Raises:
      ValueError: vocabularies or samples differ, or prompts of one sample say different words; a caption is empty.
    """
    check_base(model, base)
    named, others = named_prompts(prompts), named_prompts(base_prompts)
    if list(named) != list(others):
        raise ValueError(
            f"compare: expected prompts of the same samples, got {[*named]} and, for the base, {[*others]}"
        )
    for name, prompt in named.items():
        _check_words(name, prompt, others[name])
        _check_media(name, prompt, others[name])
    words = _words_by_class(classes or {})
    along = captioned(model, named, captions, max_new_tokens)
    heard = captioned(base, others, {name: one.tokens for name, one in along.items()})
    longest = max(len(one.tokens) for one in along.values())
    names = ("kl_model_base", "kl_base_model", "rank")
    values = {name: np.full((len(named), longest), np.nan, np.float32) for name in names}
    texts, tags = (np.full((len(named), longest), "", object) for _ in range(2))
    with Progress("base comparison", len(named), "captions", enabled=progress) as bar:
        for row, name in enumerate(named):
            tokens = along[name].tokens
            read = _compared(_logits(model, along[name]), _logits(base, heard[name]), jnp.asarray(tokens))
            for key, column in zip(names, read, strict=True):
                values[key][row, : len(tokens)] = column
            texts[row, : len(tokens)], tags[row, : len(tokens)] = _tagged(model, tokens, words)
            bar.advance(1)
    dataset = _dataset(list(named), values, texts, tags, provenance(model, base=base.host.source, caveat=CAVEAT))
    return with_prompts(dataset, named)


def check_base(model: Model, base: Model) -> None:
    """Refuses a base whose tokens differ from the model's.

    Raises:
      ValueError: the first difference is named.
    """
    sizes = [m.config.decoder.vocab_size for m in (model, base)]
    mine, its = ((t.get_vocab(), t.get_added_vocab()) for t in (model.processor.tokenizer, base.processor.tokenizer))
    # Control tokens may have other names, as Qwen2.5-Omni's for media have; those of one name have one id.
    words = [{token: i for token, i in vocab.items() if token not in added} for vocab, added in (mine, its)]
    shared = mine[1].keys() & its[1].keys()
    differing = sorted({token for token, _ in words[0].items() ^ words[1].items()})
    differing += sorted(token for token in shared if mine[1][token] != its[1][token])
    if differing or sizes[0] != sizes[1]:
        raise ValueError(
            f"compare: expected models of one vocabulary, got {sizes[0]} and {sizes[1]} logits, and {len(differing)} "
            f"tokens that differ, such as {', '.join(map(repr, differing[:3])) or 'none'}; compare models of one family"
        )


def _check_words(name: Any, prompt: Prompt, other: Prompt) -> None:
    """The same words before and after the media."""
    words = [KINDS.index(kind) for kind in ("text", "generated")]
    words_of_each = [p.token_ids[np.isin(p.kinds, words) & ~p.special] for p in (prompt, other)]
    if not np.array_equal(words_of_each[0], words_of_each[1]):
        raise ValueError(
            f"compare: the prompts of sample {name!r} have different words for the model and the base; make both from "
            "the same text, system turn and opening"
        )


def _check_media(name: Any, prompt: Prompt, other: Prompt) -> None:
    """The same pictures, and no sound for the base."""
    counts = [{m: p.counts().get(m, 0) for m in ("video", "image", "audio")} for p in (prompt, other)]
    if counts[1] != counts[0] | {"audio": 0}:
        raise ValueError(
            f"compare: expected the base's prompt of sample {name!r} to have the model's pictures and no sound, got "
            f"{counts[0]} tokens for the model and {counts[1]} for the base; make it with base.prompt(text, video=...)"
        )
    patches = [[clip.patches for clip in (*p.videos, *p.images)] for p in (prompt, other)]
    for mine, its in zip(*patches, strict=True):
        if mine.shape == its.shape and not np.allclose(mine, its, atol=1e-3):
            raise ValueError(f"compare: the prompts of sample {name!r} show different pictures to model and base")


def _words_by_class(classes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    words: dict[str, str] = {}
    for name, members in classes.items():
        if isinstance(members, str) or name == OTHER:
            raise ValueError(
                f"classes: expected a list of words for a class that is not {OTHER!r}, got {name!r}: {members!r}"
            )
        for word in members:
            if not re.fullmatch(r"\w+", word):
                raise ValueError(f"classes: expected single words, got {word!r} for {name!r}; list its words")
            if words.setdefault(word.lower(), name) != name:
                raise ValueError(
                    f"classes: the word {word!r} is in two classes, {words[word.lower()]!r} and {name!r}; keep one"
                )
    return words


def _logits(model: Model, one: Captioned) -> jax.Array:
    """float32 [n, V], what the caption's tokens are predicted from."""
    return run(model, one.fed, at=one.predicting.tolist()).logits


@jax.jit
def _compared(model: jax.Array, base: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """KL(model || base), KL(base || model) and the tokens' ranks under the base, of logits [n, V]."""
    p, q = jax.nn.log_softmax(model), jax.nn.log_softmax(base)
    forward, reverse = (jnp.maximum(jnp.sum(jnp.exp(a) * (a - b), axis=-1), 0.0) for a, b in ((p, q), (q, p)))
    chosen = jnp.take_along_axis(base, tokens[:, None], axis=-1)
    return forward, reverse, 1.0 + jnp.sum(base > chosen, axis=-1)


def _tagged(model: Model, tokens: np.ndarray, words: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Each token's text, and the class of the word that it belongs to."""
    ends = [len(model.decode_text(tokens[: i + 1]) or "") for i in range(len(tokens))]
    whole = model.decode_text(tokens) or ""
    starts = [0, *ends[:-1]]
    tags = [OTHER] * len(tokens)
    for match in re.finditer(r"\w+", whole):
        tag = words.get(match[0].lower())
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if tag and start < match.end() and end > match.start():
                tags[i] = tag
    return [whole[a:b] for a, b in zip(starts, ends, strict=True)], tags


def _dataset(
    samples: list[Any], values: Mapping[str, np.ndarray], texts: np.ndarray, tags: np.ndarray, about: dict[str, Any]
) -> xr.Dataset:
    dims, rank = ("sample", "token"), values["rank"]
    there = ~np.isnan(rank)
    shift = np.select([~there, rank == 1, rank <= MARGINAL], ["", *SHIFTS[:2]], SHIFTS[2]).astype(object)
    units = {"kl_model_base": "nats", "kl_base_model": "nats", "rank": "rank"}
    names = {"kl_model_base": "KL(model || base)", "kl_base_model": "KL(base || model)", "rank": "rank under the base"}
    variables: dict[str, Any] = {
        name: (dims, array, {"units": units[name], "long_name": names[name]}) for name, array in values.items()
    }
    variables |= {"shift": (dims, shift, {"units": "text"}), "text": (dims, texts, {"units": "text"})}
    variables["token_class"] = (dims, tags, {"units": "text"})
    return xr.Dataset(variables, {"sample": samples, "token": np.arange(rank.shape[1])}, about)


def shift_shares(compared: xr.Dataset) -> xr.Dataset:
    """The share of each class's tokens that are unshifted, marginal or shifted, over (token_class, shift).

    Beside it `tokens`, how many there are, over (token_class).

    Args:
      compared: of `compare_with_base`.
    """
    tags, shifts = compared["token_class"].values, compared["shift"].values
    classes = sorted({str(tag) for tag in tags[shifts != ""].ravel()})
    counts = np.array([[np.sum((tags == tag) & (shifts == shift)) for shift in SHIFTS] for tag in classes])
    return xr.Dataset(
        {
            "share": (("token_class", "shift"), counts / counts.sum(1, keepdims=True), {"units": "1"}),
            "tokens": ("token_class", counts.sum(1), {"units": "count"}),
        },
        {"token_class": classes, "shift": list(SHIFTS)},
        dict(compared.attrs),
    )
