"""Runs of tokens of one kind, from which a family lays out its prompts.

Positions are (t, h, w). Text counts on all three axes; a vision token keeps its row and column.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from avjax.models.config import ModelConfig

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


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """A run of tokens of one kind."""

    kind: str
    positions: np.ndarray  # 3 n
    seconds: np.ndarray  # n
    frames: np.ndarray  # n

    def __len__(self) -> int:
        return self.positions.shape[1]

    def __getitem__(self, span: slice) -> "TokenRun":
        return TokenRun(self.kind, self.positions[:, span], self.seconds[span], self.frames[span])

    @property
    def after(self) -> int:
        return int(self.positions.max()) + 1


def counted_run(kind: str, start: int, count: int) -> TokenRun:
    """Tokens that count on all three axes: text and sound."""
    positions = np.broadcast_to(np.arange(start, start + count), (3, count))
    seconds = np.arange(count) / TOKENS_PER_SECOND if kind == "audio" else np.full(count, np.nan)
    return TokenRun(kind, positions, seconds, np.full(count, -1))


def grid_run(
    kind: str, start: int, grid: Grid, times: np.ndarray, seconds: Sequence[float] | None, merge: int
) -> TokenRun:
    """A block of vision tokens.

    Args:
      times: the t positions of the grid steps, from 0.
      seconds: where the grid steps begin in their clip; None for an image.
    """
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    step, row, column = (axis.reshape(-1) for axis in np.meshgrid(range(t), range(h), range(w), indexing="ij"))
    positions = np.stack([times[step], row, column]) + start
    begins = np.full(len(step), np.nan) if seconds is None else np.asarray(seconds, float)[step]
    return TokenRun(kind, positions, begins, step if kind == "video" else np.full(len(step), -1))


def grid_times(steps: int, seconds_per_grid: float, units_per_second: float) -> np.ndarray:
    """The t positions of the grid steps of a video, from 0."""
    # float32 throughout and truncated, as torch computes it.
    return (np.arange(steps, dtype=np.float32) * np.float32(seconds_per_grid) * np.float32(units_per_second)).astype(
        int
    )


def interleave(grid: Grid, times: np.ndarray, num_audio: int, config: ModelConfig) -> list[tuple[str, int, int]]:
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


class Clips:
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
            raise ValueError(f"prompt: position {self.at} is a {kind} token, but no {kind} features are left for it")
        return clip

    def consume(self, token: int, count: int, kind: str) -> None:
        run = self.ids[self.at : self.at + count]
        if len(run) < count or not np.all(run == token):
            raise ValueError(
                f"prompt: expected {count} {kind} tokens from position {self.at}, got "
                f"{int(np.argmin(np.append(run == token, False)))}; features and tokens are of different clips"
            )
        self.at += count

    def mixed(self, video: TokenRun, audio: TokenRun, config: ModelConfig) -> np.ndarray:
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
                raise ValueError(f"prompt: expected {kind} features only for the clips in the tokens, got more")
