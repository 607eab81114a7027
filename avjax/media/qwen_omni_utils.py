"""Reading as `qwen-omni-utils` reads: what the originals feed their model, rounding, clipping and blind spots included.

Sound of a video passes through 16-bit integers, by the ffmpeg program that audioread calls; a sound file that
libsndfile knows does not. Frames come in the order of their timestamps, without the display rotation, as
`torchvision.io.read_video` gives them, which is the reader where neither torchcodec nor decord is installed.

Source: qwen-omni-utils 0.0.4 to 0.0.9, librosa 0.11, audioread 3.1, torchvision up to 0.23.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avjax.media.container import library_name, opened, require_file
from avjax.media.errors import MediaError
from avjax.media.sound import to_mono_16k

FULL_SCALE_16 = 2**15


def read_audio(path: str | Path) -> np.ndarray:
    """float32 [n], mono at 16 kHz; channels are averaged before resampling. Gaps and a late start are not filled.

    Raises:
      MediaError: there is no sound, or it cannot be decoded.
    """
    require_file(path)
    samples, rate = _read_sound_file(path) or _read_16_bits(path)
    return to_mono_16k(samples, rate, str(path))


def _read_sound_file(path: str | Path) -> tuple[np.ndarray, int] | None:
    """float32 [n, channels] and rate when libsndfile knows the format; as many samples as it announces."""
    import soundfile

    name: Any = library_name(path)  # soundfile takes bytes too
    try:
        samples, rate = soundfile.read(name, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError):  # the latter of a name that ends in .raw
        return None
    except (MemoryError, ValueError) as error:  # the latter from numpy
        raise MediaError(
            f"{path}: its header announces more sound than fits in memory; it may be damaged: copy it again"
        ) from error
    return samples, int(rate)


def _read_16_bits(path: str | Path) -> tuple[np.ndarray, int]:
    """float32 [n, channels], each a multiple of 2^-15, and the rate."""
    import av

    with opened(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: expected an audio stream, found none; pass audio=None or a sound file")
        # ffmpeg's own choice: the default track, then the one with most channels, then the first
        stream = max(container.streams.audio, key=lambda s: (bool(s.disposition & 1), s.channels))
        rounding = av.AudioResampler(format="s16")
        blocks: list[np.ndarray] = [np.zeros(0, np.int16)]
        channels, rate = 1, int(stream.rate)
        for frame in itertools.chain(_decoded(container, stream), [None]):
            try:
                parts = rounding.resample(frame)
            except ValueError as error:
                raise MediaError(f"{path}: the format of its sound changes ({error}); re-encode it") from error
            for part in parts:
                channels, rate = part.layout.nb_channels, part.sample_rate
                blocks.append(part.to_ndarray().reshape(-1))
    samples = np.concatenate(blocks).astype(np.float32) * np.float32(1 / FULL_SCALE_16)
    return samples.reshape(-1, channels), rate


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream up to where it is damaged, as the ffmpeg program goes on."""
    from av.error import FFmpegError

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except FFmpegError:
            continue


def read_frames(path: str | Path, choose: Callable[[int, float], Sequence[int]]) -> tuple[np.ndarray, int, float]:
    """The chosen frames of the first video stream, as they are stored.

    Args:
      choose: frame indices, ascending, given the number of frames and their rate in the file's header.

    Returns:
      uint8 [n, height, width, 3], the number of frames that there are, and the rate in frames per second.

    Raises:
      MediaError: there is no video stream, or fewer than two frames, which the original refuses too.
    """
    times, rate = _frame_times(path)
    if len(times) < 2 or not rate:
        raise MediaError(f'{path}: expected at least 2 frames, got {len(times)}; pass media="avjax"')
    order = sorted(times)
    indices = choose(len(order), rate)
    wanted = {order[i] for i in indices}
    frames: dict[int, np.ndarray] = {}
    with opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts in wanted:
                frames[frame.pts] = frame.to_ndarray(format="rgb24")
    shapes = {frame.shape for frame in frames.values()}
    if len(shapes) > 1:
        raise MediaError(f"{path}: the size of its frames changes, {sorted(shapes)}; re-encode it at one size")
    return np.stack([frames[order[i]] for i in indices]), len(order), rate


def _frame_times(path: str | Path) -> tuple[set[int], float]:
    """Timestamps from zero on of the frames that decode, and the rate of the header."""
    with opened(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path}: expected a video stream, found none; pass an audio file as audio=")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        times = {frame.pts for frame in container.decode(stream) if frame.pts is not None and frame.pts >= 0}
        return times, float(stream.average_rate or 0)
