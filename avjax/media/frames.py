"""Which frames of a clip the model looks at."""

import math

import numpy as np

from avjax.media.options import MediaOptions

FRAME_FACTOR = 2  # sampled frames come in pairs


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
