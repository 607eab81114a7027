"""Clips that every decoder reads to the same bits: lossless RGB frames, 16-bit sound at 16 kHz."""

from fractions import Fraction
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000  # Hz
# Multiples of 28, just above the least area that Qwen's code allows: frames that nobody resizes.
HEIGHT, WIDTH = 280, 392
# Name: seconds, frames per second. The second one has a chunk of sound after its last frame pair.
CLIPS = {"exact-3s.mkv": (3.0, 8), "exact-7s.mkv": (7.5, 4)}


def write_all(folder: Path) -> dict[str, Path]:
    """Writes every clip. Returns their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (seconds, rate) in CLIPS.items():
        samples = round(seconds * SAMPLE_RATE)
        write_clip(folder / name, frames=round(seconds * rate), frames_per_second=rate, samples=samples)
    return {name: folder / name for name in CLIPS}


def write_clip(
    path: Path,
    *,
    frames: int,
    frames_per_second: Fraction | int,
    samples: int = 0,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> None:
    """Writes a Matroska file of losslessly coded RGB frames and, if there are samples, 16-bit mono sound."""
    import av

    rate = Fraction(frames_per_second)
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "bgr0"
        audio = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono") if samples else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width), format="rgb24")
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is None:
            return
        sound = tone(samples)
        for start in range(0, samples, 1600):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1600], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))


def picture(index: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: gradients, stripes and a square that moves; integers throughout."""
    row, column = np.mgrid[0:height, 0:width]
    red = (column * 255) // width
    green = (row * 3 + index * 17) % 256
    blue = np.where((row // 20 + column // 20 + index) % 2 == 0, 40, 200)
    frame = np.stack([red, green, blue], axis=-1)
    side = min(80, height // 3, width // 3)
    left = (index * 31) % (width - side)
    frame[side : 2 * side, left : left + side] = (230, 60, 30)
    return frame.astype(np.uint8)


def tone(count: int) -> np.ndarray:
    """int16 [count]: two triangle waves whose pitch rises, and a click every half second; integers throughout."""
    i = np.arange(count, dtype=np.int64)
    phase = i * 200 + i * i // 64
    low, high = (np.abs((phase * k) % 16000 - 8000) - 4000 for k in (1, 3))
    return (low + high // 2 + np.where(i % 8000 < 40, 6000, 0)).astype(np.int16)
