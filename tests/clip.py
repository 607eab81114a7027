"""A small clip with a picture and a sound, made on the spot: a square that moves while a tone rises."""

from fractions import Fraction
from pathlib import Path

import numpy as np

FRAMES_PER_SECOND = 10
SAMPLE_RATE = 44_100  # Hz


def write_clip(path: Path, *, seconds: float = 4.0, height: int = 112, width: int = 168) -> None:
    """Writes an mp4 with a moving square and, beside it, a stereo tone that rises from 220 to 880 Hz."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.bit_rate = 2_000_000
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for picture in _pictures(round(seconds * FRAMES_PER_SECOND), height, width):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        samples = _tone(round(seconds * SAMPLE_RATE))
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def _pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    side = height // 3
    pictures = []
    for i in range(count):
        picture = np.full((height, width, 3), (24, 28, 48), np.uint8)
        left = round((width - side) * i / max(1, count - 1))
        picture[height // 3 : height // 3 + side, left : left + side] = (220, 60, 40)
        pictures.append(picture)
    return pictures


def _tone(count: int) -> np.ndarray:
    """float32 [2, count]."""
    frequency = np.linspace(220.0, 880.0, count)
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    return np.tile(0.3 * np.sin(phase), (2, 1)).astype(np.float32)
