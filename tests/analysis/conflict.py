"""Clips of the tiny world under conflict, at the place where tiny-av chooses the sound's word."""

import dataclasses
from collections.abc import Mapping

import avjax
from avjax.metrics import LogitDiff, tokenized
from avjax.organism import evidence, world
from avjax.organism.world import KINDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflict:
    """Test clips whose sound contradicts their picture.

    Attributes:
      prompts: up to "I hear", by clip.
      heard, suggested: the token of the sound that is heard, and of the one that the picture suggests.
      metrics: the logit of the first against that of the second.
    """

    model: avjax.Model
    clips: dict[str, world.Clip]
    prompts: dict[str, avjax.Prompt]
    heard: dict[str, tuple[int, ...]]
    suggested: dict[str, tuple[int, ...]]
    metrics: dict[str, LogitDiff]


def prompts_at_the_word(model: avjax.Model, clips: Mapping[str, world.Clip]) -> dict[str, avjax.Prompt]:
    """Prompts that end before the sound's word."""
    opening = model.processor.tokenizer(evidence.OPENING, add_special_tokens=False)["input_ids"]
    made = evidence.prompts_of(model, clips.values())
    return {name: prompt.continued(opening) for name, (_, prompt) in zip(clips, made, strict=True)}


def conflicting(model: avjax.Model, count: int) -> Conflict:
    clips = {str(i): world.clip("test", i, "counterfactual") for i in range(count)}
    heard = {name: sound_token(model, c.heard) for name, c in clips.items()}
    suggested = {name: sound_token(model, c.seen) for name, c in clips.items()}
    return Conflict(
        model=model,
        clips=clips,
        prompts=prompts_at_the_word(model, clips),
        heard=heard,
        suggested=suggested,
        metrics={name: LogitDiff(heard[name], suggested[name]) for name in clips},
    )


def sound_token(model: avjax.Model, kind: int | None) -> tuple[int, ...]:
    """The id of a sound's word after a space, in which tiny-av's captions have it."""
    assert kind is not None
    return tokenized(model, f" {KINDS[kind].sound}")
