"""Latent audio understanding: which sound events the lens names at audio tokens, beside those of another clip.

The paper (arXiv 2604.02605) reports a number of this name without its procedure. This definition is ours.

Axes: L layer of the band, P audio position, A event.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.analysis.lens import checked_lens, forms
from avjax.analysis.lens_positions import places_of
from avjax.analysis.tuned_lens import TunedLens
from avjax.model import Model
from avjax.progress import Progress
from avjax.prompts.prompt import Prompt, named_prompts, token_counts
from avjax.prompts.selectors import Selector
from avjax.statistics import bootstrap

DEFINITION = (
    "avjax's own: the share of a clip's scorable reference events that have a surface form in the lens's top k at any "
    "position of the group and any layer of the band, minus the same share for a swapped clip's events"
)
SCORED = (
    "each word is scored by the one whole token that spells it, with or without a leading space; a word without such "
    "a token cannot be read from one position's list and is not scored"
)
Events = str | Sequence[str]
EventsBySample = Events | Mapping[Any, Events]


def latent_audio_understanding(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    references: EventsBySample,
    swapped: EventsBySample | None = None,
    *,
    where: Selector = "audio",
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    k: int = 5,
    norm: bool = True,
    lens: TunedLens | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Recall of a clip's sound events among the lens's tokens at audio positions, minus that of a swapped clip's.

    The recall alone grows with k, with the number of positions and with the band, whatever the clip: read the
    difference. In tiny-av it is about 0 under conflict (a probe of the same activations is right for nearly all clips).

    A lens lists single tokens, so that a word is heard only where one token is the whole of it ("dog" or " dog"). A
    word of several tokens has no such form: its first token is a fragment that many words begin with ("x" of
    "xylophone"), and tokens listed at neighbouring positions are no word of the lens either. Such words are not
    scored; they are named beside the values, and a sample with no other word is missing.

    Args:
      references: each sample's sound events, one word or several, by the sample's name; for one prompt the words
        themselves.
      swapped: another clip's events, in the same way; None takes those of the next sample that shares no event.
      where, site, norm, lens: as in `logit_lens`.
      layers: the band; None is the middle half of the layers.
      k: how many of the likeliest tokens count.
      level, seed: of the bootstrap intervals over samples.

    Returns:
      By `sample`: `recall`, `recall_swapped` and their difference `understanding`; by `layer` too as `NAME_by_layer`,
      where each layer alone is the band. `NAME_mean`, `NAME_low` and `NAME_high` are over samples; with fewer than
      5 the bounds are NaN, which is missing. All are shares between 0 and 1, differences between -1 and 1. `scorable`
      and `scorable_swapped` count the events that shares are of, the attribute `not_scorable` lists the other words
      and `event_tokens` the tokens of those that are scored.

    Raises:
      ValueError: a sample has no events, a clip and its swapped one share an event, or no event can be scored in any
        sample; before anything is compiled.
    """
    named = named_prompts(prompts)
    num_layers = model.config.decoder.num_layers
    band = range(num_layers // 4, num_layers - num_layers // 4) if layers is None else layers
    how = checked_lens(model, site, band, norm=norm, k=k, tuned=lens)
    events = _events(named, references, "references")
    others = _next_sample(events) if swapped is None else _events(named, swapped, "swapped")
    _refuse_shared(events, others)
    tokens = {w: whole_word_tokens(model, w) for of in (events, others) for words in of.values() for w in words}
    _refuse_unscorable(tokens, events, others)
    scored, controls = ({n: [w for w in of[n] if tokens[w]] for n in named} for of in (events, others))
    looked = places_of(model, named, where)
    hits: dict[Any, np.ndarray] = {}
    with Progress("latent audio", len(looked), "prompts", enabled=progress) as bar:
        for name, places in looked.items():
            projected = how.read(name, places, forms(model, [tokens[w] for w in (*scored[name], *controls[name])]))
            hits[name] = np.any(projected.rank <= k, axis=1)  # L A
            bar.advance(1)
    names = list(named)
    columns: dict[str, np.ndarray] = {}
    for suffix, over in {"": lambda h: h.any(0, keepdims=True), "_by_layer": lambda h: h}.items():
        of = [_share(over(hits[n])[:, : len(scored[n])]) for n in names]
        control = [_share(over(hits[n])[:, len(scored[n]) :]) for n in names]
        for key, values in {"recall": np.stack(of), "recall_swapped": np.stack(control)}.items():
            columns[key + suffix] = values if suffix else values[:, 0]
        columns[f"understanding{suffix}"] = columns[f"recall{suffix}"] - columns[f"recall_swapped{suffix}"]
    attributes = how.attributes(
        where=str(where),
        layers=list(how.layers),
        definition=DEFINITION,
        scored=SCORED,
        not_scorable=", ".join(sorted(w for w, ids in tokens.items() if not ids)) or "none",
        event_tokens="; ".join(f"{w}: {', '.join(map(str, ids))}" for w, ids in sorted(tokens.items()) if ids),
    )
    coordinates = {
        "sample": names,
        **token_counts(named),
        "layer": list(how.layers),
        "events": ("sample", [", ".join(events[n]) for n in names]),
        "swapped_events": ("sample", [", ".join(others[n]) for n in names]),
    }
    dataset = _with_intervals(xr.Dataset(_variables(columns), coordinates, attributes), level, seed)
    count = {"units": "count", "averages": 0}
    return dataset.assign(
        scorable=("sample", [len(scored[n]) for n in names], {**count, "long_name": "events that are one token"}),
        scorable_swapped=(
            "sample",
            [len(controls[n]) for n in names],
            {**count, "long_name": "swapped events that are one token"},
        ),
    )


def _share(hits_LA: np.ndarray) -> np.ndarray:
    """The share of events [L] that are listed; missing where there is no event that can be."""
    return hits_LA.mean(1) if hits_LA.shape[1] else np.full(len(hits_LA), np.nan)


def whole_word_tokens(model: Model, word: str) -> tuple[int, ...]:
    """The tokens that are the whole of a word or of the word after a space; none where it takes several."""
    forms = [model.encode_text(form) for form in (word, f" {word}")]
    whole = (ids[0] for ids in forms if len(ids) == 1)
    # An unknown word may be one token too: that of all unknown words.
    return tuple(dict.fromkeys(i for i in whole if (model.decode_text([i]) or "").strip() == word))


def _variables(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    what = {
        "recall": "share of the clip's events that the lens names",
        "recall_swapped": "share of the swapped clip's events that the lens names",
        "understanding": "recall minus recall of swapped events (avjax's definition)",
    }
    variables = {}
    for key, values in columns.items():
        name, by_layer = key.removesuffix("_by_layer"), key.endswith("_by_layer")
        dims = ("sample", "layer") if by_layer else ("sample",)
        variables[key] = (
            dims,
            values,
            {"units": "share", "long_name": what[name] + (", one layer" if by_layer else "")},
        )
    return variables


def _with_intervals(data: xr.Dataset, level: float, seed: int) -> xr.Dataset:
    if data.sizes["sample"] > 1:
        summary = bootstrap(data, level=level, seed=seed)
        attributes = {"interval": summary.attrs["interval"]}
    else:
        summary, attributes = data.isel(sample=0, drop=True), {"interval": "none: there is one sample"}
        for name in list(data.data_vars):
            for bound in ("low", "high"):
                summary[f"{name}_{bound}"] = summary[name] * np.nan
                summary[f"{name}_{bound}"].attrs = data[name].attrs
    added = {}
    for name, variable in data.data_vars.items():
        for suffix, source in {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}.items():
            long_name = f"{variable.attrs['long_name']}, {suffix} over samples"
            added[f"{name}_{suffix}"] = (
                summary[source].drop_vars("sample", errors="ignore").assign_attrs(long_name=long_name)
            )
    return data.assign(added).assign_attrs(attributes)


def _events(named: Mapping[Any, Prompt], given: EventsBySample, what: str) -> dict[Any, tuple[str, ...]]:
    if not isinstance(given, Mapping):
        if len(named) > 1:
            raise ValueError(f"{what}: expected the events of each of {len(named)} samples by name, got {given!r}")
        given = dict.fromkeys(named, given)
    events = {}
    for name in named:
        if name not in given:
            raise ValueError(
                f"{what}: expected events for sample {name!r}, got none; give them, or leave the sample out"
            )
        value = given[name]
        words = (value,) if isinstance(value, str) else tuple(value)
        if not words or any(not isinstance(w, str) or len(w.split()) != 1 for w in words):
            raise ValueError(f"{what}: expected events of one word each for sample {name!r}, got {value!r}")
        events[name] = tuple(dict.fromkeys(word.strip() for word in words))
    return events


def _next_sample(events: Mapping[Any, tuple[str, ...]]) -> dict[Any, tuple[str, ...]]:
    names = list(events)
    following_events = {}
    for i, name in enumerate(names):
        following = (other for other in names[i + 1 :] + names[:i] if not set(events[name]) & set(events[other]))
        if (other := next(following, None)) is None:
            raise ValueError(f"swapped: every other sample shares an event with {name!r}; give swapped events")
        following_events[name] = events[other]
    return following_events


def _refuse_shared(events: Mapping[Any, Sequence[str]], others: Mapping[Any, Sequence[str]]) -> None:
    for name, words in events.items():
        if both := sorted(set(words) & set(others[name])):
            raise ValueError(
                f"swapped: {both[0]!r} of sample {name!r} is an event of both the clip and the swapped clip, so the "
                "two cannot be told apart; choose other events"
            )


def _refuse_unscorable(
    tokens: Mapping[str, tuple[int, ...]], events: Mapping[Any, Sequence[str]], others: Mapping[Any, Sequence[str]]
) -> None:
    for what, of in (("references", events), ("swapped", others)):
        words = list(dict.fromkeys(word for several in of.values() for word in several))
        if not any(tokens[word] for word in words):
            raise ValueError(
                f"{what}: expected words that are one token, which a lens can list, got {', '.join(words[:5])} of "
                "several tokens each; choose shorter or commoner words for the sounds"
            )
