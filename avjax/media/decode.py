"""Frames, pictures and samples from files: what the rest of avjax reads media with."""

import contextlib
from pathlib import Path
from typing import Literal

import numpy as np

from avjax.media.container import SAMPLE_RATE, MediaError, audio_stream, opened, require_file, video_stream
from avjax.media.sound import Sync, read_audio, sound_offset_seconds, to_mono_16k
from avjax.media.video import VideoInfo, read_frames, read_video, video_info

__all__ = [
    "SAMPLE_RATE",
    "MediaError",
    "Sync",
    "VideoInfo",
    "media_kind",
    "read_audio",
    "read_frames",
    "read_image",
    "read_video",
    "sound_offset_seconds",
    "to_mono_16k",
    "video_info",
]


def media_kind(path: str | Path) -> Literal["image", "video", "audio"]:
    """What a file holds, by its contents; the cover of an album is no video."""
    from PIL import Image

    require_file(path)
    with contextlib.suppress(Exception), Image.open(path) as image:  # damaged ones raise whatever their parser does
        if getattr(image, "n_frames", 1) == 1:
            return "image"
    with opened(path) as container:
        if video_stream(container) is not None:
            return "video"
        if audio_stream(container) is not None:
            return "audio"
    raise MediaError(f"{path}: expected a picture or a sound, found neither; check the path")


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
