"""Which frames of a clip the model looks at."""

import dataclasses
import math

import numpy as np

from avjax.media.options import MediaOptions
from avjax.media.video import VideoInfo

FRAME_FACTOR = 2  # sampled frames come in pairs
TICK_SECONDS = 1e-6  # containers count time in whole ticks, most of them longer


@dataclasses.dataclass(frozen=True)
class FrameChoice:
    """Frames of a clip and the times at which they are looked at.

    Attributes:
      indices: ascending; a frame that is shown for long may be repeated.
      seconds: after the first frame; each frame is shown at its time.
    """

    indices: tuple[int, ...]
    seconds: tuple[float, ...]


def choose_frames(info: VideoInfo, options: MediaOptions) -> FrameChoice:
    """The frames that the model looks at: by number where they come evenly, else by time.

    By time, there are as many as `sample_frames` would take of a clip with many frames.
    """
    if info.times is None:
        indices = sample_frames(info.num_frames, info.frames_per_second, options)
        return FrameChoice(tuple(indices), tuple(i / info.frames_per_second for i in indices))
    low = math.ceil(options.min_frames / FRAME_FACTOR) * FRAME_FACTOR
    high = math.floor(options.max_frames / FRAME_FACTOR) * FRAME_FACTOR
    count = math.floor(min(max(info.seconds * options.fps, low), high) / FRAME_FACTOR) * FRAME_FACTOR
    return spread_frames(info, max(FRAME_FACTOR, count))


def spread_frames(info: VideoInfo, count: int) -> FrameChoice:
    """`count` frames evenly spread over a clip, the first and the last among them."""
    if info.times is None or info.interval_seconds is None:
        indices = evenly_spaced(info.num_frames, count)
        return FrameChoice(tuple(indices), tuple(i / info.frames_per_second for i in indices))
    held_seconds = info.seconds - info.times[-1]
    last = info.seconds - min(info.interval_seconds, held_seconds)
    seconds = np.linspace(0.0, last, count)
    # The last frame that has appeared, as a player would show it; times of containers are rounded.
    shown = np.searchsorted(info.times, seconds + TICK_SECONDS, side="right") - 1
    return FrameChoice(tuple(shown.tolist()), tuple(seconds.tolist()))


def sample_frames(num_frames: int, frames_per_second: float, options: MediaOptions) -> list[int]:
    """Indices of the frames that the model looks at: evenly spaced, first and last included.

    Source: `smart_nframes` and `fetch_video` of `qwen-omni-utils`. A video of one frame, which those refuse, gives
    that frame.
    """
    if num_frames == 1:
        return [0]
    low = math.ceil(options.min_frames / FRAME_FACTOR) * FRAME_FACTOR
    high = math.floor(min(options.max_frames, num_frames) / FRAME_FACTOR) * FRAME_FACTOR
    count = min(max(num_frames / frames_per_second * options.fps, low), high, num_frames)
    count = max(FRAME_FACTOR, math.floor(count / FRAME_FACTOR) * FRAME_FACTOR)
    return evenly_spaced(num_frames, count)


def evenly_spaced(num_frames: int, count: int) -> list[int]:
    """Indices of `count` frames of a clip, first and last included; of a single one, the first."""
    return [0] if count == 1 else _linspace(num_frames - 1, count).round().astype(int).tolist()


def _linspace(last: int, count: int) -> np.ndarray:
    """float32 [count] from 0 to `last` as torch has it: from both ends to the middle, product and sum rounded once.

    In a video of half an hour, another rounding picks a neighbouring frame here and there.
    """
    step = np.float64(np.float32(last) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, step * i, last - step * (count - 1 - i)).astype(np.float32)
