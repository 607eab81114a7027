"""A prompt: tokens, positions and media features, with what each token is; and what the decoder sees of it."""

import dataclasses
import functools
import hashlib
import html
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from avjax.families.registry import family_of
from avjax.models.clip_features import AudioFeatures as AudioFeatures
from avjax.models.clip_features import VisionFeatures as VisionFeatures
from avjax.models.config import ModelConfig
from avjax.prompts.selectors import KINDS, MODALITIES, as_indices


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Prompt:
    """Everything that decides what the decoder sees, before any network runs.

    Attributes:
      token_ids: int32 [T].
      positions: int32 [3, T]; rotary positions t, h, w.
      kinds: int8 [T]; an index into `avjax.prompts.selectors.KINDS`.
      roles: str [T]; the speaker of the turn a token stands in.
      special: bool [T]; tokens that nobody said: control tokens, and the line that opens a turn.
      seconds: float32 [T]; where in its clip an audio or video token begins, NaN elsewhere.
      frames: int32 [T]; the temporal grid step of a video token, -1 elsewhere.
      audio, images, videos: media features, in order of appearance.
      embeddings: float [T, D] when the prompt was built from them, without rows for an opening; else None.
      order: whether the words stand after the clips or before them; None where the prompt was not made of both.
      made_for: the architecture that the token ids, features and positions are of.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    kinds: np.ndarray
    roles: np.ndarray
    special: np.ndarray
    seconds: np.ndarray
    frames: np.ndarray
    audio: tuple[AudioFeatures, ...] = ()
    images: tuple[VisionFeatures, ...] = ()
    videos: tuple[VisionFeatures, ...] = ()
    embeddings: np.ndarray | None = None
    order: str | None = None
    made_for: ModelConfig

    def __len__(self) -> int:
        return len(self.kinds)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        sources = self._sources()
        return f"Prompt({len(self)} tokens: {counts}" + (f"; {', '.join(sources)})" if sources else ")")

    def _repr_html_(self) -> str:
        rows = {kind: str(count) for kind, count in self.counts().items()} | {"of": ", ".join(self._sources())}
        cells = "".join(f"<tr><th>{kind}</th><td>{html.escape(value)}</td></tr>" for kind, value in rows.items())
        return f"<table><caption>Prompt of {len(self)} tokens</caption>{cells}</table>"

    def _sources(self) -> list[str]:
        """The files or arrays that its clips are from."""
        return list(dict.fromkeys(clip.source for clip in (*self.images, *self.videos, *self.audio)))

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """The same for prompts that a model cannot tell apart."""
        return self.digest()

    def digest(self) -> bytes:
        """The fingerprint of the arrays as they are now, which the caller may have changed."""
        state = hashlib.blake2b(digest_size=16)
        clips = [c.mel for c in self.audio] + [c.patches for c in (*self.images, *self.videos)]
        for array in (self.token_ids, self.positions, *clips, *([] if self.embeddings is None else [self.embeddings])):
            state.update(repr((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes())
        return state.digest()

    def counts(self) -> dict[str, int]:
        """Tokens of each kind that the prompt has: of a modality, or generated."""
        return {name: n for i, name in enumerate(KINDS) if (n := int(np.sum(self.kinds == i)))}

    def next_position(self) -> int:
        """The rotary position of the first generated token, on all three axes.

        One past the largest position; in some families a prompt of tokens goes on from its last one.
        """
        if self.embeddings is None and family_of(self.made_for).continues_from_last:
            return int(self.positions[:, -1].max()) + 1
        return int(self.positions.max()) + 1

    def continued(self, tokens: Sequence[int] | np.ndarray) -> "Prompt":
        """The prompt with the opening of its answer, so that captures and metrics reach what the model says after it.

        The opening's tokens are generated ones to a selector: `generated` and `answer` name them, `text` does not, and
        `last` is the last of them, from which the next token is predicted.

        Args:
          tokens: ids that the assistant says; their embeddings are the model's own.

        Raises:
          TypeError: tokens are no integers.
          ValueError: one of them stands for media.
        """
        if isinstance(tokens, str):
            raise TypeError(f"continued: expected token ids, got {tokens!r}; model.encode_text({tokens!r}) gives them")
        tokens = as_indices(tokens, "continued")
        if not tokens:
            return self
        ids = self.made_for.tokens
        if media := sorted({ids.audio, ids.image, ids.video} & set(tokens)):
            raise ValueError(f"continued: expected tokens of text, got {media}, which stand for audio or pictures")
        count = len(tokens)
        after = self.next_position() + np.arange(count, dtype=self.positions.dtype)
        added = {
            "token_ids": np.asarray(tokens, self.token_ids.dtype),
            "kinds": np.full(count, KINDS.index("generated"), self.kinds.dtype),
            "roles": np.full(count, "assistant"),
            "special": np.zeros(count, bool),
            "seconds": np.full(count, np.nan, self.seconds.dtype),
            "frames": np.full(count, -1, self.frames.dtype),
        }
        joined = {name: np.concatenate([getattr(self, name), more]) for name, more in added.items()}
        positions = np.concatenate([self.positions, np.broadcast_to(after, (3, count))], axis=1)
        return dataclasses.replace(self, positions=positions, **joined)

    def spans(self) -> list["Span"]:
        """Runs of tokens of one kind and turn, in order."""
        keys = [*zip(self.kinds.tolist(), self.roles.tolist(), strict=True)]
        starts = [0, *(i for i in range(1, len(keys)) if keys[i] != keys[i - 1]), len(keys)]
        return [Span(self, start, stop) for start, stop in itertools.pairwise(starts) if stop > start]


def named_prompts(prompts: Any) -> dict[Any, Prompt]:
    """Prompts by sample: of one prompt, several, or a mapping.

    Raises:
      ValueError, TypeError: there is none, or one is no prompt.
    """
    if isinstance(prompts, Prompt):
        prompts = [prompts]
    if isinstance(prompts, str | Path) or not hasattr(prompts, "__iter__"):
        refuse_no_prompt(prompts, "prompts")
    named = dict(prompts) if isinstance(prompts, Mapping) else dict(enumerate(prompts))
    if not named:
        raise ValueError("prompts: expected at least one, got none")
    for name, prompt in named.items():
        if isinstance(name, tuple | list | set | dict):
            raise ValueError(f"prompts: expected a sample's name to be text or a number, got {name!r}")
        if not isinstance(prompt, Prompt):
            refuse_no_prompt(prompt, "prompts", f" for {name!r}")
    return named


SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")
FILMS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")


def prompt_of_file(path: str | Path) -> str:
    """Advice: the call that makes a prompt of a file."""
    ending = Path(path).suffix.lower()
    kind = "audio" if ending in SOUNDS else "image" if ending in PICTURES else "video"
    return f"pass model.prompt('Describe this.', {kind}={str(path)!r})"


def refuse_no_words(text: Any) -> None:
    """Raises ValueError where the user's words are the name of a media file, which the model would only read."""
    word = text.strip() if isinstance(text, str) else ""
    if re.fullmatch(r"\S+", word) and Path(word).suffix.lower() in (*SOUNDS, *FILMS, *PICTURES):
        raise ValueError(f"text: expected the user's words, got the name of a file, {text!r}; {prompt_of_file(word)}")


def refuse_no_prompt(given: Any, what: str = "prompt", where: str = "") -> NoReturn:
    """Raises TypeError that says how to make a prompt of what was given instead.

    Raises:
      TypeError: always.
    """
    expected = f"{what}: expected prompts (model.prompt(...)), got"
    if isinstance(given, Path) or (isinstance(given, str) and re.search(r"\.\w{2,5}$", given)):
        raise TypeError(f"{expected} the path {str(given)!r}{where}; {prompt_of_file(given)}")
    if isinstance(given, str):
        raise TypeError(f"{expected} the text {given!r}{where}; pass model.prompt({given!r}), with video= for a clip")
    raise TypeError(f"{expected} {type(given).__name__}{where}")


TOKEN_COUNTS = tuple(f"{modality}_tokens" for modality in MODALITIES)  # coordinates of a dataset, over its samples


def token_counts(prompts: Mapping[Any, Prompt]) -> dict[str, tuple[str, list[int]]]:
    """Coordinates of a dataset: how many tokens of each modality its samples have, so that silence shows."""
    counts = [prompt.counts() for prompt in prompts.values()]
    return {
        name: ("sample", [count.get(modality, 0) for count in counts])
        for name, modality in zip(TOKEN_COUNTS, MODALITIES, strict=True)
    }


def common_order(prompts: Iterable[Prompt]) -> str | None:
    """An attribute of a dataset: the order of words and clips in its prompts, or "mixed"; None where none says."""
    orders = {prompt.order for prompt in prompts} - {None}
    return "mixed" if len(orders) > 1 else next(iter(orders), None)


def per_sample(samples: Iterable[Any], given: Any, what: str) -> dict[Any, Any]:
    """What is given for each sample: by sample where it is a mapping, else the same for all.

    Raises:
      ValueError: a sample has none.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(samples, given)
    names = list(samples)
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"{what}: expected one for each sample, got none for {', '.join(map(repr, missing))}")
    return {name: given[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of tokens `start:stop` of one kind and turn."""

    prompt: Prompt
    start: int
    stop: int

    @property
    def modality(self) -> str:
        return KINDS[int(self.prompt.kinds[self.start])]

    @property
    def role(self) -> str:
        return str(self.prompt.roles[self.start])

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Where the first and the last token begin in their clip."""
        seconds = self.prompt.seconds[self.start : self.stop]
        return None if np.isnan(seconds).any() else (float(seconds.min()), float(seconds.max()))

    @property
    def position_ranges(self) -> Sequence[tuple[int, int]]:
        """First and last rotary position on t, h and w."""
        part = self.prompt.positions[:, self.start : self.stop]
        return [(int(axis.min()), int(axis.max())) for axis in part]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the decoder sees: one prompt after its encoders, exact or padded on the right to a bucket.

    Attributes:
      embeddings: compute dtype [T, D].
      positions: int32 [3, T].
      groups: int32 [T]; the token group of each position.
      generated_group: int32 []; the token group of everything generated.
      length: int32 []; real positions, at most T.
      num_groups: M, static; an intervention over another number of groups is refused.
      branches: int32 [T]; 0 for the prompt, and the number of the continuation that a later token belongs to: it sees
        the prompt and its own continuation. None where at most one continuation follows.
    """

    embeddings: jax.Array
    positions: jax.Array
    groups: jax.Array
    generated_group: jax.Array
    length: jax.Array
    num_groups: int = dataclasses.field(metadata={"static": True})
    branches: jax.Array | None = None
