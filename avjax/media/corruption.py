"""Corruptions of the media themselves, before any encoder: silence, noise, a shift, another clip's sound or frames.

Every one keeps the number of samples, or the number and size of the frames, so that a corrupt prompt has the token
layout of the clean one and activations can be patched between the two.
"""

import abc
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from avjax.media.decode import SAMPLE_RATE, read_audio, read_video
from avjax.media.errors import MediaError
from avjax.media.frames import spread_frames
from avjax.nearest import did_you_mean

MAX_SNR_DB = 120.0  # the 24 bits of a float32 sample hold 144 dB


class Corruption(abc.ABC):
    """A change of one decoded clip."""

    modality: ClassVar[Literal["audio", "video"]]

    @abc.abstractmethod
    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        """The changed clip and its source with what was done to it, as "clip.mp4, muted".

        Args:
          clip: float32 [n], mono samples at 16 kHz; or uint8 [n, height, width, 3], the sampled frames, upright.
          source: what the clip is called in messages.

        Raises:
          MediaError: the clip, or the file that replaces it, cannot be used so.
        """


class AudioCorruption(Corruption):
    """A change of the prompt's sound."""

    modality = "audio"


class VideoCorruption(Corruption):
    """A change of the prompt's video; images stay."""

    modality = "video"


@dataclasses.dataclass(frozen=True)
class MuteAudio(AudioCorruption):
    """Silence: every sample is 0."""

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        return np.zeros_like(clip), f"{source}, muted"


@dataclasses.dataclass(frozen=True)
class NoiseAudio(AudioCorruption):
    """White Gaussian noise added to the sound.

    The ratio is of mean squares over the whole clip, and exact for the noise that was drawn. Nothing is clipped.

    Attributes:
      snr_db: signal-to-noise ratio in decibels, -120 to 120.
      seed: of the noise; the same seed gives the same noise.
    """

    snr_db: float
    seed: int = 0

    def __post_init__(self):
        snr_db = _finite(self, "snr_db")
        if abs(snr_db) > MAX_SNR_DB:
            raise ValueError(f"NoiseAudio: expected snr_db within -120 to 120 dB, got {snr_db:g}; use MuteAudio below")
        object.__setattr__(self, "snr_db", snr_db)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise ValueError(f"NoiseAudio: expected a seed of at least 0, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        signal = clip.astype(np.float64)
        power = np.mean(signal**2)
        if power == 0:
            raise MediaError(
                f"{source}: expected a sound to measure the noise against, got silence, which has no "
                "signal-to-noise ratio; leave NoiseAudio out"
            )
        noise = np.random.default_rng(self.seed).standard_normal(len(signal))
        noise *= np.sqrt(power / 10 ** (self.snr_db / 10) / np.mean(noise**2))
        return (signal + noise).astype(np.float32), f"{source}, white noise at {self.snr_db:g} dB (seed {self.seed})"


@dataclasses.dataclass(frozen=True)
class ShiftAudio(AudioCorruption):
    """The sound moved in time against the picture.

    Attributes:
      seconds: later when positive, earlier when negative; rounded to a sample, 1/16000 s.
      fill: "circular", the default, brings what leaves at one end in at the other, so that the same sound is heard;
        "silence" drops it.
    """

    seconds: float
    fill: Literal["circular", "silence"] = "circular"

    def __post_init__(self):
        object.__setattr__(self, "seconds", _finite(self, "seconds"))
        _one_of(self, "fill", ("circular", "silence"))
        if not self.samples:
            raise ValueError(
                f"ShiftAudio: expected a shift of at least one sample (1/{SAMPLE_RATE} s), got {self.seconds:g} s; "
                "leave it out for the clean sound"
            )

    @property
    def samples(self) -> int:
        return round(self.seconds * SAMPLE_RATE)

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        if abs(self.samples) >= len(clip):
            raise MediaError(
                f"{source}: expected a shift shorter than the sound, {len(clip) / SAMPLE_RATE:g} s, got "
                f"{self.seconds:g} s; shift by less, or use MuteAudio"
            )
        shifted = np.roll(clip, self.samples)
        if self.fill == "silence":
            shifted[slice(self.samples) if self.samples > 0 else slice(self.samples, None)] = 0
        return shifted, f"{source}, shifted by {self.seconds:+g} s ({self.fill})"


@dataclasses.dataclass(frozen=True)
class SwapAudio(AudioCorruption):
    """Another file's sound, from its beginning, for the same number of samples.

    Attributes:
      path: a sound file, or a video with sound. One that is longer is cut.
      fill: what follows one that is shorter: "silence", the default, or "loop", itself again.
    """

    path: str
    fill: Literal["silence", "loop"] = "silence"

    def __post_init__(self):
        object.__setattr__(self, "path", _path(self))
        _one_of(self, "fill", ("silence", "loop"))

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        with _named(self):
            other = read_audio(self.path)
        words = f"{source}, sound of {self.path}"
        if len(other) >= len(clip):
            return other[: len(clip)].copy(), words + (", cut" if len(other) > len(clip) else "")
        if self.fill == "loop":
            return np.resize(other, len(clip)), f"{words}, looped"
        return np.pad(other, (0, len(clip) - len(other))), f"{words}, then silence"


@dataclasses.dataclass(frozen=True)
class BlankVideo(VideoCorruption):
    """Every frame in one colour, in the size that was decoded.

    Attributes:
      value: a grey, or red, green and blue; integers within 0 to 255. The default is black.
    """

    value: int | tuple[int, int, int] = 0

    def __post_init__(self):
        value = self.value
        channels = [value] if isinstance(value, int | np.integer) else list(value) if _is_list(value) else []
        whole = all(isinstance(c, int | np.integer) and not isinstance(c, bool) and 0 <= c <= 255 for c in channels)
        if not whole or len(channels) != (3 if _is_list(value) else 1):
            raise ValueError(f"BlankVideo: expected one integer, or three, within 0 to 255, got {value!r}")
        plain = tuple(int(c) for c in channels)
        object.__setattr__(self, "value", plain if _is_list(value) else plain[0])

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        return np.broadcast_to(np.array(self.value, np.uint8), clip.shape).copy(), f"{source}, blank ({self.value})"


@dataclasses.dataclass(frozen=True)
class SwapVideo(VideoCorruption):
    """Another clip's frames: as many, evenly spaced over the whole of it, resized to the same height and width.

    A clip of another length thus plays faster or slower, one of another shape is stretched, and one with fewer frames
    repeats some. Resizing is bicubic.

    Attributes:
      path: a video file.
    """

    path: str

    def __post_init__(self):
        object.__setattr__(self, "path", _path(self))

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        with _named(self):
            frames, _ = read_video(self.path, lambda info: spread_frames(info, len(clip)).indices)
        resized = np.stack([_resized(frame, *clip.shape[1:3]) for frame in frames])
        return resized, f"{source}, frames of {self.path}"


def corruptions_of(corrupt: Any, *, has_audio: bool, has_video: bool) -> tuple[Corruption, ...]:
    """One corruption or several as a tuple, in the order in which they apply.

    Raises:
      TypeError: something else came.
      MediaError: the prompt has no clip of that modality.
    """
    several = (corrupt,) if isinstance(corrupt, Corruption) else tuple(corrupt) if _is_list(corrupt) else None
    wrong = [corrupt] if several is None else [one for one in several if not isinstance(one, Corruption)]
    if several is None or wrong:
        raise TypeError(
            f"corrupt: expected a corruption such as avjax.MuteAudio(), or a list of them, got {wrong[0]!r}"
        )
    for one in several:
        if not {"audio": has_audio, "video": has_video}[one.modality]:
            raise MediaError(
                f"corrupt={one!r}: expected a prompt with {one.modality}, got none; pass {one.modality}= too"
            )
    return several


def _finite(one: Corruption, name: str) -> float:
    value = getattr(one, name)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ValueError(f"{type(one).__name__}: expected a finite {name}, got {value!r}; give it as a number")
    return float(value)


def _one_of(one: Corruption, name: str, known: Sequence[str]) -> None:
    if getattr(one, name) not in known:
        value = getattr(one, name)
        raise ValueError(
            f"{type(one).__name__}: expected {name} among {', '.join(known)}, got {value!r}{did_you_mean(value, known)}"
        )


def _path(one: Any) -> str:
    """As text, so that equal paths compare equal and have a JSON form."""
    if not isinstance(one.path, str | Path):
        raise ValueError(f"{type(one).__name__}: expected the path of a file, got {one.path!r}")
    return str(one.path)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


@contextlib.contextmanager
def _named(one: Corruption) -> Iterator[None]:
    """Says whose file it was: not the prompt's own."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{type(one).__name__}: {error}") from error


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), resample=Image.Resampling.BICUBIC))
