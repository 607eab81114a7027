"""Samples that may not lie on both sides of a split: those made of one clip.

A clip is known by what the model is given of it. Two prompts are of one clip when they share a sound, a picture or a
video, to the bit, or were read from one file; and so is whatever shares one with either: a prompt of a clip's sound and
one of its picture belong together once a third has both. Silence and pictures of one colour are of no clip.
"""

import hashlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import KINDS, MODALITIES

MEDIA = "media"  # the coordinate of a dataset that says what each sample is made of
SHOWN = 5  # names in a message
BySample = Sequence[Hashable] | np.ndarray | Mapping[Any, Hashable] | xr.DataArray  # in the samples' order, or by name
REPLACED = (", sound of ", ", frames of ")  # before the file that a corruption took its clip from


def clip_groups(
    samples: Sequence[Any],
    media: Sequence[Collection[str]],
    groups: BySample | None = None,
    *,
    analysis: str = "groups",
) -> np.ndarray:
    """The group of each sample, int [C], numbered from 0 in the samples' order; a split keeps a group on one side.

    Args:
      media: what each sample is made of (`media_of`). Samples that share any of it, directly or by way of others, are
        one group.
      groups: the groups themselves instead, one per sample in order, or by sample; equal values are one group.
      analysis: what messages begin with.

    Raises:
      ValueError: a sample has no group.
    """
    if groups is not None:
        return _numbered(by_sample(samples, groups, "groups", analysis=analysis))
    parent = list(range(len(media)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first_with: dict[str, int] = {}
    for i, items in enumerate(media):
        for item in items:
            parent[root(i)] = root(first_with.setdefault(item, i))
    return _numbered([root(i) for i in range(len(media))])


def media_of(prompts: Iterable[Prompt]) -> list[tuple[str, ...]]:
    """What each prompt is made of: a digest of each clip that the model is given, and of the clip's file's name.

    Prompts of embeddings are known by those of their tokens of each modality; prompts without media by all of
    themselves, so that the same words twice are one group.
    """
    return [tuple(dict.fromkeys(_media(prompt))) for prompt in prompts]


def refuse_shared_clips(
    train: Mapping[Any, Prompt], held_out: Mapping[Any, Prompt], groups: BySample | None, *, analysis: str
) -> np.ndarray:
    """The groups of both sides' samples, int [C], none of which is on both sides.

    Args:
      groups: as in `clip_groups`, of the samples of `train` and then those of `held_out`; or by sample.
      analysis: what messages begin with.

    Raises:
      ValueError: a group is on both sides; or a sample has none.
    """
    names = [*train, *held_out]
    numbers = clip_groups(names, media_of([*train.values(), *held_out.values()]), groups, analysis=analysis)
    first_of = dict(reversed([*zip(numbers[: len(train)].tolist(), train, strict=True)]))
    for name, number in zip(held_out, numbers[len(train) :].tolist(), strict=True):
        if number in first_of:
            shared = "a clip" if groups is None else "a value of groups="
            raise ValueError(
                f"{analysis}: expected held_out to share no clip with the training samples, got sample {name!r}, which "
                f"shares {shared} with {first_of[number]!r}; leave one of them out, or pass groups= to say which "
                "samples belong together"
            )
    return numbers


def described(numbers: np.ndarray, given: BySample | None) -> str:
    """An attribute of a dataset: how many groups there are, and of what."""
    return f"{len(np.unique(numbers))} {'by their media' if given is None else 'by groups='}"


def by_sample(samples: Sequence[Any], values: Any, what: str, *, analysis: str) -> list[Any]:
    """A value for each sample, from one per sample in order, a mapping or a DataArray.

    Raises:
      ValueError: some are missing; the samples are named.
    """
    if isinstance(values, xr.DataArray):
        if values.dims != ("sample",):
            raise ValueError(f"{analysis}: expected {what} over the dimension sample, got {values.dims}")
        values = dict(zip(values.sample.values.tolist(), values.values.tolist(), strict=True))
    if isinstance(values, Mapping):
        items: list[Any] = [values.get(name) for name in samples]
    else:
        items = np.asarray(values).tolist() if isinstance(values, np.ndarray) else list(values)
        if len(items) != len(samples):
            raise ValueError(f"{analysis}: expected {what} for each of {len(samples)} samples, got {len(items)}")
        items = [item.item() if isinstance(item, np.generic) else item for item in items]
    missing = [name for name, item in zip(samples, items, strict=True) if item is None or item != item]
    if missing:
        shown = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise ValueError(
            f"{analysis}: {what} are missing for {len(missing)} of {len(samples)} samples: {shown}; leave those "
            "samples out"
        )
    return items


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], int)


def _media(prompt: Prompt) -> Iterator[str]:
    clips = [(clip.mel, clip.source) for clip in prompt.audio]
    clips += [(clip.patches, clip.source) for clip in (*prompt.images, *prompt.videos)]
    seen = False
    for array, source in clips:
        if not (array == array[0]).all():
            seen = True
            yield _digest(array)
        for file in _files(source):
            seen = True
            yield file
    if prompt.embeddings is not None:
        kinds = prompt.kinds[: len(prompt.embeddings)]
        for modality in MODALITIES[1:]:
            rows = prompt.embeddings[kinds == KINDS.index(modality)]
            if len(rows):
                seen = True
                yield _digest(np.asarray(rows, np.float32))
    if not seen:
        yield prompt.fingerprint.hex()


def _digest(array: np.ndarray) -> str:
    state = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(array, np.float32).data)
    return state.hexdigest()


def _files(source: str) -> Iterator[str]:
    """Digests of the files that a clip was read from, as far as they are there: its own, and one that replaces it."""
    for text in (source, *(after for words in REPLACED for after in source.split(words)[1:])):
        pieces = text.split(", ")  # "clip.mp4, muted"; names may hold commas too
        for count in range(len(pieces), 0, -1):
            path = Path(", ".join(pieces[:count]))
            if _is_file(path):
                yield hashlib.blake2b(str(path.resolve()).encode(), person=b"file", digest_size=16).hexdigest()
                break


def _is_file(path: Path) -> bool:
    """False for what no file can be called, too."""
    try:
        return path.is_file()
    except OSError:
        return False
