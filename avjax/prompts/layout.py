"""Token layout and rotary positions of prompts with media, per family.

Positions are (t, h, w). Text counts on all three axes; a vision token keeps its row and column. They are those that the
weights were trained with, as Qwen's own code and transformers 4 number them, for every layout that a processor can
write. For Qwen2.5-VL, transformers 5.3 and later number what follows a video otherwise; that is there by name.
"""

import dataclasses
from collections.abc import Sequence
from typing import get_args

import numpy as np

from avjax.families.registry import family_of
from avjax.families.token_runs import MediaShapes, PositionRule, interleave
from avjax.models.audio import num_audio_tokens
from avjax.models.config import ModelConfig
from avjax.prompts.selectors import MODALITIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """What every token of a prompt is; see `avjax.prompts.prompt.Prompt` for the fields."""

    positions: np.ndarray
    kinds: np.ndarray
    seconds: np.ndarray
    frames: np.ndarray


def expand_placeholders(
    token_ids: Sequence[int], shapes: MediaShapes, config: ModelConfig, *, audio_in_video: bool
) -> np.ndarray:
    """Writes out each single placeholder of a chat template as the tokens of its clip.

    Args:
      token_ids: the templated prompt, with one image, video or audio token per clip.
      audio_in_video: each video carries its own sound, interleaved with it in chunks.

    Raises:
      ValueError: the placeholders do not match the clips one to one.
    """
    ids, merge = config.tokens, config.vision.spatial_merge_size**2
    images, videos, audio = iter(shapes.images), iter(enumerate(shapes.videos)), iter(shapes.audio_frames)
    out: list[int] = []
    try:
        for token in token_ids:
            if token == ids.image:
                out.extend([token] * (int(np.prod(next(images))) // merge))
            elif token == ids.video and audio_in_video:
                index, grid = next(videos)
                times = np.arange(grid[0]) * shapes.seconds_per_grid[index] * config.position_units_per_second
                inside = interleave(grid, times, num_audio_tokens(next(audio)), config)
                kinds = [k for k, start, stop in inside for _ in range(stop - start)]
                out.extend([_need(ids.audio_bos), *(_need(getattr(ids, k)) for k in kinds), _need(ids.audio_eos)])
            elif token == ids.video:
                out.extend([token] * (int(np.prod(next(videos)[1])) // merge))
            elif token == ids.audio and ids.audio is not None:
                out.extend([token] * num_audio_tokens(next(audio)))
            else:
                out.append(int(token))
    except StopIteration:
        raise ValueError(
            "prompt: it has more media placeholders than clips; remove control tokens such as <|VIDEO|> from the text"
        ) from None
    if any(next(rest, None) is not None for rest in (images, videos, audio)):
        raise ValueError("prompt: the chat template left out a clip; check the tokenizer directory's chat template")
    return np.asarray(out, np.int32)


def token_layout(
    token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig, positions: PositionRule = "trained"
) -> TokenLayout:
    """Positions, modality and clip time of every token.

    Args:
      token_ids: int [T] with every clip's tokens written out.
      positions: of Qwen2.5-VL. "trained": text after a video starts one past its largest position, as in Qwen's own
        code, vLLM and transformers 4.49 to 5.2; a grid step's time is its seconds in units, truncated (4.52 to 5.2 cut
        the seconds to whole ones first). "transformers-5.3": text starts past the clip's larger side, however long it
        lasts, as in transformers 5.3 to 5.24 (its issue 45381); to the last position that of 5.22 to 5.24, since the
        versions before cut seconds too.

    Raises:
      ValueError: the media tokens do not add up to the clips, or the rule is unknown or not one of this family.
    """
    check_rule(positions, config)
    parts = list(family_of(config).token_runs(token_ids, shapes, config, positions))
    return TokenLayout(
        positions=np.concatenate([part.positions for part in parts], axis=1).astype(np.int32),
        kinds=np.concatenate([np.full(len(part), MODALITIES.index(part.kind)) for part in parts]).astype(np.int8),
        seconds=np.concatenate([part.seconds for part in parts]).astype(np.float32),
        frames=np.concatenate([part.frames for part in parts]).astype(np.int32),
    )


def check_rule(rule: str, config: ModelConfig) -> None:
    """Raises ValueError when a rule of positions is unknown, or not one of the family."""
    if rule not in get_args(PositionRule):
        raise ValueError(f"positions: expected {' or '.join(map(repr, get_args(PositionRule)))}, got {rule!r}")
    if rule not in family_of(config).position_rules:
        raise ValueError(
            f"positions={rule!r}: every version of transformers numbers {config.family} alike; leave it out"
        )


def _need(token: int | None) -> int:
    if token is None:
        raise ValueError("prompt: this family has no audio; pass audio=None")
    return token
