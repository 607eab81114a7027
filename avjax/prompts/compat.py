"""Behaviour of the published code that differs from avjax's own, reproduced on request and by name."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

from avjax.models.attention import Compat as AttentionCompat
from avjax.models.config import TokenIds
from avjax.nearest import did_you_mean
from avjax.prompts.prompt import Prompt

Compat = Literal["published", "published-script"]
KNOWN: tuple[Compat, ...] = ("published", "published-script")
MAX_NEW_TOKENS = 50  # of the paper's protocol
SCRIPT_MAX_NEW_TOKENS = 1024  # the limit that holds when the published script is run as it is


def checked_compat(compat: str | None, prompts: Iterable[Prompt] = ()) -> Compat | None:
    """The setting, checked: in an opened prompt, a blocked query of the answer would read what is said after it.

    Raises:
      ValueError: the name is unknown, or a prompt is opened.
    """
    if compat not in (None, *KNOWN):
        raise ValueError(
            f"compat: expected None or {' or '.join(map(repr, KNOWN))}, got {compat!r}{did_you_mean(compat, KNOWN)}"
        )
    if compat is not None and any("generated" in prompt.counts() for prompt in prompts):
        raise ValueError(
            f"compat={compat!r}: expected a prompt without an opening, since a blocked query would read the opening's "
            "later tokens; leave out the opening or compat"
        )
    return compat  # pyright: ignore[reportReturnType]


def attention_compat(compat: Compat | None) -> AttentionCompat | None:
    """What the setting asks of attention: both treat a fully blocked query as the published hooks do."""
    return None if compat is None else "published"


def compatible_prompt(prompt: Prompt, compat: Compat | None) -> Prompt:
    """The prompt with the rotary positions that the setting asks for.

    The published script does not pass `use_audio_in_video` to `generate`. Hugging Face then takes a video with its own
    sound for running text: one position per token, the same on all three axes. Everything else keeps its positions.
    """
    if compat != "published-script":
        return prompt
    positions = _script_positions(prompt.token_ids, prompt.positions, prompt.made_for.tokens)
    return dataclasses.replace(prompt, positions=positions)


def max_new_tokens_for(compat: Compat | None, max_new_tokens: int | None) -> int:
    """The limit of a continuation: as given, else of the protocol.

    The published script passes `max_new_tokens=50`; `Qwen2_5OmniForConditionalGeneration.generate` reads
    `thinker_max_new_tokens`, which it leaves at 1,024.
    """
    if max_new_tokens is not None:
        return max_new_tokens
    return SCRIPT_MAX_NEW_TOKENS if compat == "published-script" else MAX_NEW_TOKENS


def _script_positions(token_ids: np.ndarray, positions: np.ndarray, ids: TokenIds) -> np.ndarray:
    """int32 [3, T]: each video with its own sound numbered token by token, what follows it moved along."""
    if ids.audio_bos is None:  # a family without sound
        return positions
    positions = positions.copy()
    opens = np.flatnonzero((token_ids[:-1] == ids.vision_bos) & (token_ids[1:] == ids.audio_bos))
    closes = np.flatnonzero((token_ids[:-1] == ids.audio_eos) & (token_ids[1:] == ids.vision_eos))
    for start, stop in zip(opens, closes, strict=True):
        after = stop + 2
        moved = positions[0, start] + (after - start) - (positions[0, stop + 1] + 1)
        positions[:, start:after] = positions[0, start] + np.arange(after - start)
        positions[:, after:] += moved
    return positions
