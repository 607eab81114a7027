"""How a checkpoint wants its media: read from its preprocessor files, overridable per prompt."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from avjax.models.config import ModelConfig, read_json
from avjax.nearest import did_you_mean

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Fidelity = Literal["avjax", "qwen-omni-utils"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """Sampling and resizing of media.

    Attributes:
      fps: video frames per second that are looked at.
      min_frames, max_frames: bounds on the number of sampled frames.
      min_pixels, max_pixels: bounds on a resized video frame.
      total_pixels: bound on all sampled frames of a clip together, in pixels of merged frame pairs.
      image_min_pixels, image_max_pixels: bounds on a resized image.
      image_mean, image_std: of RGB in 0..1.
      sync: "clock" keeps a video's sound with its picture, as a player does; "published" takes the decoded samples
        end to end, as Qwen's published code does; see `avjax.media.sound.read_audio`.
      audio: arguments of `transformers.WhisperFeatureExtractor`.
      hears: whether the checkpoint was trained on sound; one that was not refuses it.
      media: how files are read. "avjax", the default, as a player shows them: upright, white behind what is
        transparent (the separate opacity layer of VP8 and VP9 in WebM is not read), sound as the codec gives it, frames
        resized as Hugging Face resizes images. Pixels are taken as stored: a sample aspect ratio other than 1 is not
        applied, nor is it in Qwen's own code. "qwen-omni-utils", to
        the bit what that package feeds the model where torchvision reads its videos: a video's sound rounded and
        clipped to 16 bits and taken end to end, whatever `sync`; frames sampled by index, resized in float32 and
        rounded once; no rotation applied.

    Source: defaults of Qwen's own `qwen-omni-utils` 0.0.x and the published preprocessor files.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    total_pixels: int = int(128_000 * 28 * 28 * 0.9)
    image_min_pixels: int = 56 * 56
    image_max_pixels: int = 16384 * 28 * 28
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    sync: Literal["clock", "published"] = "clock"
    audio: tuple[tuple[str, Any], ...] = ()
    hears: bool = True
    media: Fidelity = "avjax"

    def __post_init__(self):
        if self.media not in get_args(Fidelity):
            raise ValueError(
                f"media options: expected media among {', '.join(get_args(Fidelity))}, got {self.media!r}; choose one"
                f"{did_you_mean(self.media, get_args(Fidelity))}"
            )
        if not 0 < self.fps < math.inf:
            raise ValueError(f"media options: expected fps above 0, got {self.fps}")
        if self.sync not in ("clock", "published"):
            raise ValueError(f"media options: expected sync 'clock' or 'published', got {self.sync!r}")
        for low, high, least in (
            ("min_frames", "max_frames", 2),
            ("min_pixels", "max_pixels", 1),
            ("image_min_pixels", "image_max_pixels", 1),
        ):
            smallest, largest = getattr(self, low), getattr(self, high)
            if smallest < 1 or largest < max(smallest, least):
                raise ValueError(
                    f"media options: expected 1 <= {low} <= {high} and {high} >= {least}, got {low}={smallest} and "
                    f"{high}={largest}; set both"
                )

    @property
    def as_published(self) -> bool:
        """Whether media are read as `qwen-omni-utils` reads them."""
        return self.media == "qwen-omni-utils"

    def override(self, **changes: Any) -> "MediaOptions":
        """A copy with some fields changed; fields that are None keep their value."""
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(changes.keys() - known)
        if unknown:
            hints = ", ".join(f"{name}{did_you_mean(name, [*known, *PROMPT_ARGUMENTS])}" for name in unknown)
            raise TypeError(f"media options: expected {', '.join(sorted(known))}; got {hints}")
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})


# Of `model.prompt`, whose misspelt ones come here among the media options.
PROMPT_ARGUMENTS = ("text", "video", "audio", "image", "system", "order", "positions", "corrupt", "opening")
AUDIO_KEYS = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")


def read_options(directory: Path, config: ModelConfig) -> MediaOptions:
    """Reads `preprocessor_config.json` or transformers 5's `processor_config.json`; absent files mean defaults.

    Raises:
      ValueError: the files are of another checkpoint, or want images and videos in different colours.
    """
    legacy, nested = _json(directory / "preprocessor_config.json"), _json(directory / "processor_config.json")
    # Where transformers 5 has a section for a processor, it reads that alone, whatever older files are still there.
    image = nested.get("image_processor") or legacy
    audio = nested.get("feature_extractor") or legacy
    video = nested.get("video_processor") or _json(directory / "video_preprocessor_config.json")
    bounds = image.get("size") or {}
    # `media_options` is ours: the clips that a model was trained on may be smaller than Qwen's.
    options = (
        MediaOptions()
        .override(**legacy.get("media_options", {}))
        .override(
            image_min_pixels=image.get("min_pixels") or bounds.get("shortest_edge"),
            image_max_pixels=image.get("max_pixels") or bounds.get("longest_edge"),
            image_mean=tuple(image["image_mean"]) if image.get("image_mean") else None,
            image_std=tuple(image["image_std"]) if image.get("image_std") else None,
        )
    )
    _check_patches("image", image, config, directory)
    _check_patches("video", video, config, directory)
    for key in ("image_mean", "image_std"):
        if video.get(key) is not None and tuple(video[key]) != tuple(getattr(options, key)):
            raise ValueError(
                f"{directory}: expected {key} of the video processor to equal that of the image processor, "
                f"{list(getattr(options, key))}, got {list(video[key])}; make them equal"
            )
    if config.audio is None:
        return options
    settings = {key: audio[key] for key in AUDIO_KEYS if audio.get(key) is not None}
    settings = {"feature_size": config.audio.num_mel_bins, "chunk_length": 300, **settings}
    if settings["feature_size"] != config.audio.num_mel_bins:
        raise ValueError(
            f"{directory}: the feature extractor gives {settings['feature_size']} mel bins, the audio tower takes "
            f"{config.audio.num_mel_bins}; the files are of different checkpoints"
        )
    return options.override(audio=tuple(sorted(settings.items())))


def _check_patches(kind: str, settings: Mapping[str, Any], config: ModelConfig, directory: Path) -> None:
    vision = config.vision
    expected = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    wrong = {k: settings[k] for k, v in expected.items() if settings.get(k) not in (None, v)}
    if wrong:
        raise ValueError(
            f"{directory}: the {kind} processor has {wrong}, the vision tower {expected}; "
            "the files are of different checkpoints"
        )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
