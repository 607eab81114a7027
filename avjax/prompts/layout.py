"""Token layout and rotary positions of prompts with media, per family.

Positions are (t, h, w). Text counts on all three axes; a vision token keeps its row and column. They are those that the
weights were trained with, as Qwen's own code and transformers 4 number them, for every layout that a processor can
write. For Qwen2.5-VL, transformers 5.3 and later number what follows a video otherwise; that is there by name.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from avjax.config import ModelConfig
from avjax.models.audio import num_audio_tokens
from avjax.prompts.selectors import MODALITIES

Grid = tuple[int, int, int]
PositionRule = Literal["trained", "transformers-5.3"]
TOKENS_PER_SECOND = 25  # audio


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaShapes:
    """Sizes of the media of a prompt, in order of appearance."""

    images: Sequence[Grid] = ()
    videos: Sequence[Grid] = ()
    seconds_per_grid: Sequence[float] = ()  # one per video, as rotary positions count them
    step_seconds: Sequence[Sequence[float] | None] = ()  # per video, where each grid step begins; None: as counted
    audio_frames: Sequence[int] = ()  # mel frames, one per clip


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
                inside = _interleave(grid, times, num_audio_tokens(next(audio)), config)
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
    if config.family == "qwen2_5_omni":
        parts = list(_omni_parts(token_ids, shapes, config))
    else:
        parts = list(_vl_parts(token_ids, shapes, config, positions))
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
    if rule != "trained" and config.family != "qwen2_5_vl":
        raise ValueError(
            f"positions={rule!r}: every version of transformers numbers {config.family} alike; leave it out"
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """A run of tokens of one kind."""

    kind: str
    positions: np.ndarray  # 3 n
    seconds: np.ndarray  # n
    frames: np.ndarray  # n

    def __len__(self) -> int:
        return self.positions.shape[1]

    def __getitem__(self, span: slice) -> "_Part":
        return _Part(self.kind, self.positions[:, span], self.seconds[span], self.frames[span])

    @property
    def after(self) -> int:
        return int(self.positions.max()) + 1


def _line(kind: str, start: int, count: int) -> _Part:
    positions = np.broadcast_to(np.arange(start, start + count), (3, count))
    seconds = np.arange(count) / TOKENS_PER_SECOND if kind == "audio" else np.full(count, np.nan)
    return _Part(kind, positions, seconds, np.full(count, -1))


def _grid(kind: str, start: int, grid: Grid, times: np.ndarray, seconds: Sequence[float] | None, merge: int) -> _Part:
    """A block of vision tokens.

    Args:
      times: the t positions of the grid steps, from 0.
      seconds: where the grid steps begin in their clip; None for an image.
    """
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    step, row, column = (axis.reshape(-1) for axis in np.meshgrid(range(t), range(h), range(w), indexing="ij"))
    positions = np.stack([times[step], row, column]) + start
    begins = np.full(len(step), np.nan) if seconds is None else np.asarray(seconds, float)[step]
    return _Part(kind, positions, begins, step if kind == "video" else np.full(len(step), -1))


def _times(steps: int, seconds_per_grid: float, units_per_second: float) -> np.ndarray:
    # float32 throughout and truncated, as torch computes it.
    return (np.arange(steps, dtype=np.float32) * np.float32(seconds_per_grid) * np.float32(units_per_second)).astype(
        int
    )


def _omni_parts(token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig) -> Iterator[_Part]:
    """Qwen2.5-Omni: each run starts one past the largest position of the run before it."""
    ids, merge, units = config.tokens, config.vision.spatial_merge_size, config.position_units_per_second
    clips = _Clips(token_ids, shapes)
    after = 0
    while not clips.done:
        token = clips.token
        if token == ids.vision_bos and clips.peek(1) == ids.audio_bos:
            # The two opening tokens share one position, and so do the two closing ones.
            opening = _line("text", after, 1)
            yield from (opening, opening)
            clips.at += 2
            grid, step, seconds = clips.video()
            times = _times(grid[0], step, units)
            video = _grid("video", opening.after, grid, times, seconds, merge)
            audio = _line("audio", opening.after, num_audio_tokens(clips.audio()))
            order = _interleave(grid, times, len(audio), config)
            chunks = [(video if kind == "video" else audio)[start:stop] for kind, start, stop in order]
            yield from _in_token_order(clips.mixed(video, audio, config), chunks, video, audio, config)
            after = chunks[-1].after
            if (clips.peek(0), clips.peek(1)) != (ids.audio_eos, ids.vision_eos):
                raise ValueError(
                    f"prompt: expected a video with sound to be closed by tokens {ids.audio_eos} and {ids.vision_eos} "
                    f"at position {clips.at}, got {clips.peek(0)} and {clips.peek(1)}; the prompt is cut off"
                )
            closing = _line("text", after, 1)
            yield from (closing, closing)
            clips.at += 2
            after = closing.after
            continue
        if token == ids.audio:
            part = _line("audio", after, num_audio_tokens(clips.audio()))
        elif token == ids.image:
            grid = clips.image()
            part = _grid("image", after, grid, (np.arange(grid[0]) * units).astype(int), None, merge)
        elif token == ids.video:
            grid, step, seconds = clips.video()
            part = _grid("video", after, grid, _times(grid[0], step, units), seconds, merge)
        else:
            part = _line("text", after, 1)
        clips.consume(token, len(part), part.kind)
        yield part
        after = part.after
    clips.finish()


def _in_token_order(
    run: np.ndarray, chunks: Sequence[_Part], video: _Part, audio: _Part, config: ModelConfig
) -> Iterator[_Part]:
    """The tokens of a video with its sound: what they are by their ids, positions by their place among `chunks`.

    HF's processor orders the tokens by float64 times, its `get_rope_index` numbers them by float32 ones. At a few
    frame rates (2.6 fps after 30 s, say) the two open a chunk one grid step apart.
    """
    positions = np.concatenate([chunk.positions for chunk in chunks], axis=1)
    for start, stop in itertools.pairwise([0, *(np.flatnonzero(np.diff(run)) + 1), len(run)]):
        own = video if run[start] == config.tokens.video else audio
        first = int(np.sum(run[:start] == run[start]))
        yield dataclasses.replace(own[first : first + stop - start], positions=positions[:, start:stop])


def _vl_parts(token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig, rule: PositionRule) -> Iterator[_Part]:
    """Qwen2.5-VL: text after a clip starts one past its largest position; by the other rule, past its larger side."""
    ids, merge, units = config.tokens, config.vision.spatial_merge_size, config.position_units_per_second
    clips = _Clips(token_ids, shapes)
    after = 0
    while not clips.done:
        token = clips.token
        if token in (ids.image, ids.video):
            if token == ids.image:
                grid = clips.image()
                part = _grid("image", after, grid, np.arange(grid[0]), None, merge)
            else:
                grid, step, seconds = clips.video()
                times = (_times if rule == "trained" else _vl_times)(grid[0], step, units)
                part = _grid("video", after, grid, times, seconds, merge)
            after = part.after if rule == "trained" else after + max(grid[1], grid[2]) // merge
        else:
            part = _line("text", after, 1)
            after += 1
        clips.consume(token, len(part), part.kind)
        yield part
    clips.finish()


def _vl_times(steps: int, seconds_per_grid: float, units_per_second: float) -> np.ndarray:
    # These versions multiply units by seconds first; float32 rounding depends on the order.
    interval = np.float32(units_per_second) * np.float32(seconds_per_grid)
    return (np.arange(steps, dtype=np.float32) * interval).astype(int)


def _interleave(grid: Grid, times: np.ndarray, num_audio: int, config: ModelConfig) -> list[tuple[str, int, int]]:
    """Chunks of video and audio tokens in prompt order: (kind, start, stop) within the clip's own tokens.

    Args:
      times: of each grid step, in position units.
    """
    per_chunk = int(config.position_units_per_second * (config.seconds_per_chunk or 0))
    per_step = grid[1] * grid[2] // config.vision.spatial_merge_size**2
    video, audio = _chunks(np.repeat(times, per_step), per_chunk), _chunks(np.arange(num_audio), per_chunk)
    order: list[tuple[str, int, int]] = []
    for j in range(max(len(video), len(audio))):
        order += [("video", *video[j])] if j < len(video) else []
        order += [("audio", *audio[j])] if j < len(audio) else []
    return order


def _chunks(times: np.ndarray, per_chunk: int) -> list[tuple[int, int]]:
    """Splits where a time first reaches the next multiple of `per_chunk`; one split at most per token, as HF does."""
    spans, start, chunk = [], 0, 1
    for i, time in enumerate(times):
        if time >= chunk * per_chunk:
            spans.append((start, i))
            start = i
            chunk += 1
    return [*spans, (start, len(times))]


class _Clips:
    """Walks the tokens and hands out the clips they stand for."""

    def __init__(self, token_ids: np.ndarray, shapes: MediaShapes):
        self.ids, self.at = token_ids, 0
        self._images = iter(shapes.images)
        self._videos = iter(
            [
                (grid, step, np.arange(grid[0]) * step if begins is None else begins)
                for grid, step, begins in itertools.zip_longest(
                    shapes.videos, shapes.seconds_per_grid, shapes.step_seconds
                )
            ]
        )
        self._audio = iter(shapes.audio_frames)

    @property
    def done(self) -> bool:
        return self.at >= len(self.ids)

    @property
    def token(self) -> int:
        return int(self.ids[self.at])

    def peek(self, ahead: int) -> int | None:
        return int(self.ids[self.at + ahead]) if self.at + ahead < len(self.ids) else None

    def image(self) -> Grid:
        return self._next(self._images, "image")

    def video(self) -> tuple[Grid, float, Sequence[float]]:
        """The grid, the nominal seconds of a step, and where each step begins."""
        return self._next(self._videos, "video")

    def audio(self) -> int:
        return self._next(self._audio, "audio")

    def _next(self, clips: Iterator, kind: str):
        clip = next(clips, None)
        if clip is None:
            raise ValueError(f"prompt: position {self.at} is a {kind} token, but no {kind} is left for it")
        return clip

    def consume(self, token: int, count: int, kind: str) -> None:
        run = self.ids[self.at : self.at + count]
        if len(run) < count or not np.all(run == token):
            raise ValueError(
                f"prompt: expected {count} {kind} tokens from position {self.at}, got "
                f"{int(np.argmin(np.append(run == token, False)))}; features and tokens are of different clips"
            )
        self.at += count

    def mixed(self, video: _Part, audio: _Part, config: ModelConfig) -> np.ndarray:
        """The token ids of a video with its sound, in whatever order they come."""
        run = self.ids[self.at : self.at + len(video) + len(audio)]
        got = [int(np.sum(run == token)) for token in (config.tokens.video, config.tokens.audio)]
        if got != [len(video), len(audio)]:
            raise ValueError(
                f"prompt: expected {len(video)} video and {len(audio)} audio tokens from position {self.at}, got "
                f"{got[0]} and {got[1]}; features and tokens are of different clips"
            )
        self.at += len(run)
        return run

    def finish(self) -> None:
        for kind, rest in (("image", self._images), ("video", self._videos), ("audio", self._audio)):
            if next(rest, None) is not None:
                raise ValueError(f"prompt: features of one more {kind} than the tokens show")


def _need(token: int | None) -> int:
    if token is None:
        raise ValueError("prompt: this family has no audio; pass audio=None")
    return token
