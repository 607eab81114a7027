"""Media to tower inputs: resizing, patches, log-mel; as Qwen's own preprocessing does it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from avjax.media.corruption import Corruption
from avjax.media.decode import SAMPLE_RATE
from avjax.media.errors import MediaError
from avjax.media.log_mel import Whisper
from avjax.media.options import MediaOptions
from avjax.media.resize import resize_bicubic
from avjax.media.sources import ImageSource, SoundSource, VideoSource, picture, sampled_video, sound
from avjax.models.clip_features import AudioFeatures, VisionFeatures, num_audio_tokens
from avjax.models.config import VisionConfig


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: float,
    source: str = "image",
    smallest: int = 0,
) -> tuple[int, int]:
    """Height and width, multiples of `factor`, within the pixel bounds, near the original aspect ratio.

    Args:
      smallest: of a side, before the area is looked at. The image processor has none, `qwen-omni-utils` a factor.

    Raises:
      MediaError: one side is more than 200 times the other.

    Source: `smart_resize` of Qwen2-VL's image processor.
    """
    if max(height, width) > 200 * min(height, width):
        raise MediaError(f"{source}: expected an aspect ratio below 200, got {height} x {width}; crop it first")
    # A side below half a factor rounds to 0 here; the area is then too small and grows.
    new_height, new_width = (max(smallest, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height, new_width = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def video_features(
    video: VideoSource, config: VisionConfig, options: MediaOptions, corrupt: Sequence[Corruption] = ()
) -> tuple[VisionFeatures, float]:
    """Patches of the sampled frames of a clip, and the rate in frames per second at which they were sampled.

    Args:
      video: a file, or uint8 [n, height, width, 3] with the frames per second.
      corrupt: applied to the frames in order; they keep their number, size and time.

    Raises:
      MediaError: it cannot be read as a video.
    """
    clip = sampled_video(video, options)
    frames, source = clip.frames, clip.source
    for corruption in corrupt:
        frames, source = corruption(frames, source)
    features = frame_features(frames, config, options, source=source)
    features = dataclasses.replace(features, step_seconds=clip.seconds[:: config.temporal_patch_size])
    return features, clip.frames_per_second


def frame_features(frames: np.ndarray, config: VisionConfig, options: MediaOptions, *, source: str) -> VisionFeatures:
    """Patches of decoded frames, uint8 [n, height, width, 3]; an odd number repeats the last frame."""
    factor = config.patch_size * config.spatial_merge_size
    share = options.total_pixels / len(frames) * config.temporal_patch_size
    height, width = smart_resize(
        *frames.shape[1:3],
        factor=factor,
        min_pixels=options.min_pixels,
        max_pixels=min(options.max_pixels, max(share, int(options.min_pixels * 1.05))),
        source=source,
        smallest=factor if options.as_published else 0,
    )
    normalized = _published_frame if options.as_published else _normalized
    pixels = np.stack([normalized(frame, height, width, options) for frame in frames])
    patches, grid = patchify(pixels, config)
    return VisionFeatures(
        patches=patches, grid=grid, seconds_per_grid=config.temporal_patch_size / options.fps, source=source
    )


def image_features(image: ImageSource, config: VisionConfig, options: MediaOptions) -> VisionFeatures:
    """Patches of one image, which fills a whole step of the temporal grid.

    Args:
      image: a file, a Pillow image, or uint8 [height, width, 3] or [height, width].

    Raises:
      MediaError: it cannot be read as an image.
    """
    pixels, source = picture(image, options)
    factor = config.patch_size * config.spatial_merge_size
    height, width = smart_resize(
        *pixels.shape[:2],
        factor=factor,
        min_pixels=options.image_min_pixels,
        max_pixels=options.image_max_pixels,
        source=source,
        smallest=factor if options.as_published else 0,
    )
    patches, grid = patchify(_normalized(pixels, height, width, options)[None], config)
    return VisionFeatures(patches=patches, grid=grid, seconds_per_grid=None, source=source)


def patchify(pixels: np.ndarray, config: VisionConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Flattened patches in the order that the towers were trained on.

    Args:
      pixels: float32 [frames, height, width, channels], sides multiples of patch size times merge size.

    Returns:
      float32 [t * h * w, channels * temporal * patch * patch], the patches of one merged token next to each other,
      and the grid (t, h, w).
    """
    from einops import rearrange

    missing = -len(pixels) % config.temporal_patch_size
    pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    t, h, w = len(pixels) // config.temporal_patch_size, *(side // config.patch_size for side in pixels.shape[1:3])
    patches = rearrange(
        pixels,
        "(t tp) (h mh ph) (w mw pw) c -> (t h w mh mw) (c tp ph pw)",
        tp=config.temporal_patch_size,
        mh=config.spatial_merge_size,
        mw=config.spatial_merge_size,
        ph=config.patch_size,
        pw=config.patch_size,
    )
    return np.ascontiguousarray(patches), (t, h, w)


def _normalized(image: np.ndarray, height: int, width: int, options: MediaOptions) -> np.ndarray:
    from PIL import Image

    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), resample=Image.Resampling.BICUBIC)
    scaled = (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
    return (scaled - np.asarray(options.image_mean, np.float32)) / np.asarray(options.image_std, np.float32)


def _published_frame(frame: np.ndarray, height: int, width: int, options: MediaOptions) -> np.ndarray:
    """As torchvision resizes and Hugging Face's video processor normalises, scale and mean in one."""
    mean, std = (np.asarray(values, np.float32) * np.float32(255) for values in (options.image_mean, options.image_std))
    return (resize_bicubic(frame, height, width).astype(np.float32) - mean) / std


def audio_features(audio: SoundSource, options: MediaOptions, corrupt: Sequence[Corruption] = ()) -> AudioFeatures:
    """Log-mel frames of a sound file, of a video's sound, or of samples; those of HF's Whisper feature extractor.

    Args:
      audio: a file, or samples with their rate in Hz.
      corrupt: applied to the samples in order; they keep their number.

    Raises:
      MediaError: it cannot be read as a sound.
    """
    waveform, source = corrupted_sound(audio, options, corrupt)
    return waveform_features(waveform, options, source=source)


def corrupted_sound(
    audio: SoundSource, options: MediaOptions, corrupt: Sequence[Corruption] = ()
) -> tuple[np.ndarray, str]:
    """The samples that `audio_features` looks at, float32 [n] mono at 16 kHz, and what they are called."""
    waveform, source = sound(audio, options)
    for corruption in corrupt:
        waveform, source = corruption(waveform, source)
    return waveform, source


def waveform_features(waveform: np.ndarray, options: MediaOptions, *, source: str) -> AudioFeatures:
    """Log-mel frames, 100 a second, of float32 mono samples at 16 kHz.

    Raises:
      MediaError: the audio is longer than the feature extractor takes, or too short to give a token.
    """
    extractor = Whisper(**dict(options.audio))
    seconds, limit = len(waveform) / SAMPLE_RATE, extractor.num_samples / SAMPLE_RATE
    if seconds > limit:
        raise MediaError(
            f"{source}: the audio is {seconds:.1f} s long, the checkpoint takes at most {limit:.0f} s; cut it first"
        )
    num_frames = math.ceil(len(waveform) / extractor.hop_length)
    if num_frames < 2 or num_audio_tokens(num_frames) < 1:
        raise MediaError(f"{source}: {seconds * 1000:.0f} ms of audio give no token; the shortest clip is 40 ms")
    # HF pads to the limit (300 s). Padding past the last window alone gives the same frames in a fraction of the time.
    hops = num_frames + math.ceil(extractor.n_fft / extractor.hop_length)
    padded = min(hops * extractor.hop_length, extractor.num_samples)
    mel = extractor.log_mel(waveform, padded)[:num_frames]
    return AudioFeatures(mel=np.ascontiguousarray(mel, np.float32), source=source)
