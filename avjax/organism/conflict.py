"""Clips of the tiny world whose sound contradicts their picture, at the place where a caption names the sound."""

import dataclasses
from collections.abc import Mapping

from avjax.metrics import LogitDiff
from avjax.model import Model
from avjax.organism import behaviour, world
from avjax.organism.world import KINDS, Clip, Split
from avjax.prompts.prompt import Prompt

Token = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """Clips under conflict, by name.

    Attributes:
      prompts: each with the opening of its caption, "I hear", so that the sound's word comes next.
      heard, suggested: the token of the sound that is heard, and of the one that belongs to the picture.
      metrics: the logit of the first minus that of the second.
    """

    clips: dict[str, Clip]
    prompts: dict[str, Prompt]
    heard: dict[str, Token]
    suggested: dict[str, Token]
    metrics: dict[str, LogitDiff]


def conflict(model: Model, count: int, split: Split = "test", first: int = 0) -> Conflict:
    """The split's clips of numbers `first` to `first + count` under conflict; any 16 in a row have every thing once."""
    clips = {str(i): world.clip(split, i, "counterfactual") for i in range(first, first + count)}
    heard = {name: sound_token(model, clip.heard) for name, clip in clips.items()}
    suggested = {name: sound_token(model, clip.seen) for name, clip in clips.items()}
    return Conflict(
        clips=clips,
        prompts=opened(model, clips),
        heard=heard,
        suggested=suggested,
        metrics={name: LogitDiff(heard[name], suggested[name]) for name in clips},
    )


def opened(model: Model, clips: Mapping[str, Clip]) -> dict[str, Prompt]:
    """Prompts of clips, each with the opening of its caption."""
    opening = model.encode_text(behaviour.OPENING)
    prompts = behaviour.prompts_of(model, clips.values())
    return {name: prompt.continued(opening) for name, (_, prompt) in zip(clips, prompts, strict=True)}


def sound_token(model: Model, kind: int | None) -> Token:
    """The one token of a sound's word, after a space as captions have it.

    Raises:
      ValueError: there is no sound.
    """
    if kind is None:
        raise ValueError("sound_token: expected a kind of the tiny world, got silence")
    return model.encode_text(f" {KINDS[kind].sound}")
