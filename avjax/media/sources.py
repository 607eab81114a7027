"""What media may be given as: files, Pillow images, arrays; each as decoded arrays with a name for messages."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avjax.media import qwen_omni_utils
from avjax.media.decode import read_audio, read_video, to_mono_16k
from avjax.media.errors import MediaError
from avjax.media.frames import choose_frames, sample_frames
from avjax.media.images import array_picture, picture_array, pillow_array, read_image, refuse_picture
from avjax.media.options import MediaOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageSource = str | Path | Image | np.ndarray
else:
    ImageSource = Any
SoundSource = str | Path | tuple[np.ndarray, float]
VideoSource = str | Path | tuple[np.ndarray, float]

MAX_CHANNELS = 16  # the longer side of a two-dimensional sound is time where the other one is at most this
LOUDEST_FLOAT = 10.0  # samples of floats lie within -1 to 1, with room for sounds that clip
LARGEST_INT16 = 2**15  # 96 dB below the full scale of int32, where 16 bits of it hold nothing
MIN_SOUND_RATE, MAX_SOUND_RATE = 1e3, 1e6  # Hz


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledVideo:
    """The frames of a clip that the model looks at.

    Attributes:
      frames: uint8 [n, height, width, 3].
      seconds: when each begins in the clip.
      frames_per_second: at which they were sampled, on average.
      source: what the clip is called in messages.
    """

    frames: np.ndarray
    seconds: tuple[float, ...]
    frames_per_second: float
    source: str


def sampled_video(video: VideoSource, options: MediaOptions) -> SampledVideo:
    """Samples a file, or (frames, frames per second).

    Raises:
      MediaError: it cannot be read as a video.
    """
    if isinstance(video, str | Path):
        refuse_picture(video)
        return _published_file(video, options) if options.as_published else _sampled_file(video, options)
    frames, rate = _array_and_rate(video, "video", "(frames, frames_per_second), frames as uint8 [n, height, width, 3]")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise MediaError(
            f"video: expected frames as uint8 [n, height, width, 3], got {frames.dtype} {list(frames.shape)}; convert "
            "them"
        )
    indices = sample_frames(len(frames), rate, options)
    return _evenly_sampled(frames[indices], indices, len(frames), rate, "video (an array)")


def _sampled_file(path: str | Path, options: MediaOptions) -> SampledVideo:
    frames, info = read_video(path, lambda info: choose_frames(info, options).indices)
    return SampledVideo(
        frames=frames,
        seconds=choose_frames(info, options).seconds,
        frames_per_second=len(frames) / info.num_frames * info.frames_per_second,
        source=str(path),
    )


def _published_file(path: str | Path, options: MediaOptions) -> SampledVideo:
    frames, num_frames, rate = qwen_omni_utils.read_frames(path, lambda n, rate: sample_frames(n, rate, options))
    return _evenly_sampled(frames, sample_frames(num_frames, rate, options), num_frames, rate, str(path))


def _evenly_sampled(
    frames: np.ndarray, indices: Sequence[int], num_frames: int, rate: float, source: str
) -> SampledVideo:
    return SampledVideo(
        frames=frames,
        seconds=tuple(i / rate for i in indices),
        frames_per_second=len(indices) / num_frames * rate,
        source=source,
    )


def sound(audio: SoundSource, options: MediaOptions) -> tuple[np.ndarray, str]:
    """float32 [n], mono at 16 kHz, of a file or of (samples, rate in Hz); and what it is called in messages.

    Raises:
      MediaError: it cannot be read as a sound.
    """
    if isinstance(audio, str | Path):
        published = options.as_published
        return qwen_omni_utils.read_audio(audio) if published else read_audio(audio, sync=options.sync), str(audio)
    samples, rate = _array_and_rate(audio, "audio", "(samples, rate), such as (np.zeros(16_000, np.float32), 16_000)")
    if not MIN_SOUND_RATE <= rate <= MAX_SOUND_RATE:
        raise MediaError(
            f"audio: expected a rate of {MIN_SOUND_RATE:.0f} to {MAX_SOUND_RATE:.0f} Hz beside the samples, got "
            f"{rate:g}; give it in samples per second"
        )
    return to_mono_16k(_channels_last(_as_floats(samples)), rate, "audio (an array)"), "audio (an array)"  # pyright: ignore[reportArgumentType]


def picture(image: ImageSource, options: MediaOptions) -> tuple[np.ndarray, str]:
    """uint8 [height, width, 3] of a file, a Pillow image or an array; and what it is called in messages.

    Raises:
      MediaError: it cannot be read as an image.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        return read_image(image, as_viewers_show=not options.as_published), str(image)
    if isinstance(image, Image.Image):
        source = f"image (Pillow's, mode {image.mode})"
        if not image.width or not image.height:
            raise MediaError(f"{source}: expected pixels, got {image.width} x {image.height}; choose another picture")
        return pillow_array(image) if options.as_published else picture_array(image, source), source
    if isinstance(image, np.ndarray):
        return array_picture(_plain(image, "image"), "image (an array)"), "image (an array)"
    raise _unexpected(image, "image", "a file, a Pillow image, or an array [height, width, 3]")


def _array_and_rate(clip: Any, name: str, expected: str) -> tuple[np.ndarray, float]:
    if (
        isinstance(clip, Mapping) and {"array", "sampling_rate"} <= clip.keys()
    ):  # as Hugging Face's datasets hold sounds
        clip = (np.asanyarray(clip["array"]), clip["sampling_rate"])
    if isinstance(clip, tuple) and len(clip) == 2 and _has_axes(clip[1]) and not _has_axes(clip[0]):
        clip = clip[::-1]  # as scipy reads them
    if isinstance(clip, np.ndarray):
        raise MediaError(f"{name}: expected {expected}, got an array without its rate; give both: ({name}, rate)")
    if not isinstance(clip, tuple) or len(clip) != 2 or not isinstance(clip[0], np.ndarray):
        raise _unexpected(clip, name, f"a file, or {expected}")
    samples, rate = clip
    if isinstance(rate, np.ndarray) and rate.ndim == 0:
        rate = rate[()]
    number = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if not number or not 0 < rate < math.inf:
        shown = f"an array {list(rate.shape)}" if isinstance(rate, np.ndarray) else repr(rate)
        raise MediaError(f"{name}: expected a rate above 0 beside the array, got {shown}; give it as a number")
    return _plain(samples, name), float(rate)


def _has_axes(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0


def _plain(values: np.ndarray, name: str) -> np.ndarray:
    """The same values in this machine's byte order, without a mask.

    Raises:
      MediaError: some of them are masked.
    """
    if np.ma.is_masked(values):
        count = int(np.ma.count_masked(values))
        raise MediaError(f"{name}: expected an array without gaps, got {count} masked values; fill them: x.filled(0)")
    return np.asarray(values, values.dtype.newbyteorder("="))


def _unexpected(clip: Any, name: str, expected: str) -> MediaError:
    if isinstance(clip, list):
        return MediaError(f"{name}: expected one {name} ({expected}), got a list of {len(clip)}; pass one of them")
    kind = f"{type(clip).__module__}.{type(clip).__name__}".removeprefix("builtins.")
    step = "convert it with np.asarray" if hasattr(clip, "__array__") else "pass one of these"
    return MediaError(f"{name}: expected {expected}, got {kind}; {step}")


def _as_floats(samples: np.ndarray) -> np.ndarray:
    """Integers by their type's range, floats as they are; full scale is 1."""
    if samples.dtype == np.int32:
        largest = int(np.abs(samples.astype(np.int64)).max(initial=0))
        if 0 < largest <= LARGEST_INT16:
            raise MediaError(
                f"audio: expected int32 samples of full scale 2^31, got {largest} at most, as of 16-bit samples; "
                "give them as int16, or as floats divided by their full scale"
            )
    if samples.dtype in (np.int16, np.int32):
        return samples / np.float64(2 ** (8 * samples.dtype.itemsize - 1))
    if not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(
            f"audio: expected samples as floats within -1 to 1, int16 or int32, got {samples.dtype}; convert them"
        )
    loudest = float(np.abs(samples[np.isfinite(samples)]).max(initial=0))
    if loudest > LOUDEST_FLOAT:
        raise MediaError(
            f"audio: expected floats within -1 to 1, got {loudest:g}; divide by the full scale, such as 32768"
        )
    return samples


def _channels_last(samples: np.ndarray) -> np.ndarray:
    """[n], or [n, channels]."""
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2:
        raise MediaError(f"audio: expected samples [n] or [n, channels], got {list(samples.shape)}; reshape them")
    rows, columns = samples.shape
    if min(rows, columns) > MAX_CHANNELS or max(rows, columns) <= MAX_CHANNELS:
        raise MediaError(
            f"audio: expected samples [n] or [n, channels], got {rows} x {columns}, where neither axis is clearly the "
            "channels; average over the channels first: samples.mean(axis=...)"
        )
    return samples if columns <= MAX_CHANNELS else samples.T
