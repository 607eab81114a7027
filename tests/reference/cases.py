"""What the published script is run on."""

import dataclasses
from typing import Literal

QUESTION = "Describe what you see"  # the script's default
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
CLEAN = "generated,video,0,0"  # a window without a layer: the script has no other way to run unedited
RULES = (
    CLEAN,
    "generated,video,0,35",  # the script's default
    "generated,audio,0,8",
    "query_text,video,2,6",
    "query_text,audio,0,8",
    "audio,video,0,4",
    "video,audio,3,8",
    "query_text,video,4,8;generated,video,4,8;generated,audio,0,2",
    "query_text,query_text,0,8",  # whole rows are blocked: they attend uniformly, to later tokens too
    "video,video,1,5",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionCase:
    """One run of the script.

    Attributes:
      model: the tiny random one, or the trained one that the package ships.
      order: "text-first" as published.
      positions: "published": `generate` is called as published, without `use_audio_in_video`, and its limit of 50
        tokens is without effect. "proper": it gets `use_audio_in_video` and `thinker_max_new_tokens=50`.
    """

    model: Literal["random", "shipped"]
    clip: str
    order: Literal["text-first", "media-first"]
    positions: Literal["published", "proper"]
    rules: str

    @property
    def prompt(self) -> str:
        """What decides the prompt."""
        return f"{self.clip} {self.order} {self.positions}"

    @property
    def name(self) -> str:
        return f"{self.model} {self.prompt} {self.rules}"


def _captions() -> list[CaptionCase]:
    """As published a random model writes 1,024 tokens, which takes a minute: fewer rules there."""
    default, words = "generated,video,0,35", "query_text,video,2,6"
    of_each = (
        ("random", "exact-3s.mkv", "proper", RULES),
        ("random", "exact-3s.mkv", "published", (CLEAN, default)),
        ("random", "clip.mp4", "proper", (default, words)),
        ("random", "clip.mp4", "published", (words,)),
        ("shipped", "clip.mp4", "proper", (CLEAN, default, words)),
        ("shipped", "clip.mp4", "published", (CLEAN, default)),
        ("shipped", "exact-7s.mkv", "proper", (CLEAN, default)),
        ("shipped", "exact-7s.mkv", "published", (default,)),
        ("random", "exact-7s.mkv", "proper", (default,)),
    )
    return [
        CaptionCase(model=model, clip=clip, order=order, positions=positions, rules=rules)
        for model, clip, positions, all_rules in of_each
        for order in ("text-first", "media-first")
        for rules in all_rules
    ]


CAPTIONS = _captions()
