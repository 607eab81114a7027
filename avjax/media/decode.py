"""Frames and samples from files, by PyAV and soundfile; resampling by soxr."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

EARLY_END_SECONDS = 0.5  # a file may end this much before its header says
BLOCK = 2**20  # samples that are read at a time
SAMPLE_RATE = 16_000  # Hz; what the audio towers were trained on


class MediaError(ValueError):
    """A media file cannot be used as asked; the message names the file and the next step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video stream holds."""

    num_frames: int
    frames_per_second: float

    @property
    def seconds(self) -> float:
        return self.num_frames / self.frames_per_second


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator:
    import av
    from av.error import FFmpegError

    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; check the path")
    try:
        with av.open(str(path)) as container:
            yield container
    except FFmpegError as error:
        raise MediaError(
            f"{path}: expected a readable media file, got {error.strerror or error}; it may be truncated or damaged: "
            "copy it again or re-encode it"
        ) from error


def video_info(path: str | Path) -> VideoInfo:
    """Counts the frames of the first video stream without decoding them.

    Raises:
      MediaError: there is no video stream, it is empty, or it ends before its header says.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path}: expected a video stream, found none; pass an audio file as audio=")
        stream = container.streams.video[0]
        count = 0
        end = 0.0
        for packet in container.demux():
            end = max(end, _end_seconds(packet))
            if packet.stream is not stream:
                continue
            if packet.is_corrupt:
                raise MediaError(f"{path}: the video is truncated inside frame {count}; copy it again or re-encode it")
            count += packet.size > 0
        _refuse_early_end(path, container, end)
        rate = stream.average_rate or stream.guessed_rate
        if count < stream.frames:
            raise MediaError(
                f"{path}: the video is truncated: its header announces {stream.frames} frames, {count} are there; "
                "copy it again or re-encode it"
            )
        if not count or not rate:
            raise MediaError(f"{path}: the video stream has no frames; re-encode it or choose another clip")
        return VideoInfo(num_frames=count, frames_per_second=float(rate))


def _end_seconds(packet: Any) -> float:
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _refuse_early_end(path: str | Path, container: Any, end_seconds: float) -> None:
    """Matroska has no frame count, but its header says how long the file is; others only estimate it."""
    announced = (container.duration or 0) / 1e6
    if "matroska" in container.format.name and announced > end_seconds + EARLY_END_SECONDS:
        raise MediaError(
            f"{path}: truncated: its header announces {announced:.2f} s, {end_seconds:.2f} s are there; "
            "copy it again or re-encode it"
        )


def read_frames(path: str | Path, choose: Callable[[int], Sequence[int]], num_frames: int) -> tuple[np.ndarray, int]:
    """The chosen frames of the first video stream, upright.

    Args:
      choose: frame indices, ascending, given the number of frames.
      num_frames: how many frames the stream is believed to have.

    Returns:
      uint8 [n, height, width, 3] and the number of frames that there really are.
    """
    wanted = list(choose(num_frames))
    frames, seen = _decode_frames(path, set(wanted))
    if seen < num_frames:
        # Some containers count frames that no decoder shows; choose again among those that exist.
        if not seen:
            raise MediaError(f"{path}: no frame could be decoded; re-encode it or choose another clip")
        wanted = list(choose(seen))
        frames, seen = _decode_frames(path, set(wanted))
    return np.stack([frames[i] for i in wanted]), seen


def _decode_frames(path: str | Path, wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    frames: dict[int, np.ndarray] = {}
    index = -1
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                turns = round(frame.rotation / 90) % 4  # phones store a rotation instead of turning the pixels
                frames[index] = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    return frames, index + 1


def has_sound(path: str | Path) -> bool:
    """Whether a file has an audio stream.

    Raises:
      MediaError: it cannot be opened.
    """
    with _opened(path) as container:
        return bool(container.streams.audio)


def media_kind(path: str | Path) -> Literal["image", "video", "audio"]:
    """What a file holds, by its contents."""
    from PIL import Image

    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; check the path")
    with contextlib.suppress(Exception), Image.open(path) as image:  # damaged ones raise whatever their parser does
        if getattr(image, "n_frames", 1) == 1:
            return "image"
    with _opened(path) as container:
        return "video" if container.streams.video else "audio"


def read_image(path: str | Path) -> np.ndarray:
    """uint8 [height, width, 3], upright; transparency becomes white."""
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; check the path")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged ones raise whatever their parser does
        raise MediaError(f"{path}: expected an image, got {error}; convert it to PNG or JPEG") from error


def read_audio(path: str | Path) -> np.ndarray:
    """The first audio stream of a sound or video file as float32 mono at 16 kHz; channels are averaged.

    Raises:
      MediaError: there is no audio stream, it is empty, or it holds a value that is not finite.
    """
    if not Path(path).is_file():
        raise MediaError(f"{path}: no such file; check the path")
    samples, rate = _read_sound_file(path) or _read_audio_stream(path)
    return to_mono_16k(samples, rate, str(path))


def to_mono_16k(samples: np.ndarray, rate: int, source: str) -> np.ndarray:
    """float32 [n] at 16 kHz from samples [n] or [n, channels] at `rate` Hz."""
    import soxr

    if samples.size == 0:
        raise MediaError(f"{source}: the audio is empty; choose another file or pass audio=None")
    if not np.isfinite(samples).all():
        bad = int(np.sum(~np.isfinite(samples)))
        raise MediaError(f"{source}: expected finite audio samples, got {bad} NaN or infinite ones; repair the file")
    mono = samples.astype(np.float32)
    if mono.ndim == 2:
        mono = mono.mean(axis=1)
    if rate != SAMPLE_RATE:
        length = int(np.ceil(len(mono) * SAMPLE_RATE / rate))
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
        mono = np.pad(mono[:length], (0, max(0, length - len(mono))))
    return np.ascontiguousarray(mono, np.float32)


def _read_sound_file(path: str | Path) -> tuple[np.ndarray, int] | None:
    """Samples [n, channels] and rate when libsndfile knows the format."""
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as sound:
            blocks: list[Any] = [np.zeros((0, sound.channels), np.float32)]
            announced, rate = sound.frames, sound.samplerate
            # A damaged header may announce more than there is memory for.
            while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
            samples = np.concatenate(blocks)
    except soundfile.LibsndfileError:
        return None
    if len(samples) < announced or _wav_is_cut(Path(path)):
        raise MediaError(f"{path}: the audio is truncated, {len(samples) / rate:.2f} s are there; copy it again")
    return samples, rate


def _wav_is_cut(path: Path) -> bool:
    """libsndfile trusts the file's size, not the header. Programs that pipe their sound write 0 or the largest size."""
    with path.open("rb") as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"WAVE":
        return False
    announced = int.from_bytes(header[4:8], "little")
    return announced < 2**31 - 2**16 and announced + 8 > path.stat().st_size


def _read_audio_stream(path: str | Path) -> tuple[np.ndarray, int]:
    import av

    with _opened(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: expected an audio stream, found none; pass audio=None or a sound file")
        stream = container.streams.audio[0]
        planar = av.AudioResampler(format="fltp")
        blocks: list[np.ndarray] = []
        end = 0.0
        for packet in container.demux():
            end = max(end, _end_seconds(packet))
            if packet.stream is not stream:
                continue
            if packet.is_corrupt:
                raise MediaError(f"{path}: the audio stream is truncated; copy it again or re-encode it")
            for frame in packet.decode():
                blocks.extend(part.to_ndarray() for part in planar.resample(frame))
        blocks.extend(part.to_ndarray() for part in planar.resample(None))
        _refuse_early_end(path, container, end)
        samples = np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, 1), np.float32)
        return samples, int(stream.rate)
