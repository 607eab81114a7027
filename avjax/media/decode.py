"""Frames, pictures and samples from files: what the rest of avjax reads media with."""

from pathlib import Path
from typing import Literal

from avjax.media.container import SAMPLE_RATE, audio_stream, opened, require_file, video_stream
from avjax.media.errors import MediaError
from avjax.media.images import is_image, read_image, refuse_picture
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


def has_sound(path: str | Path) -> bool:
    """Whether a file has an audio stream that holds something; some recorders write empty ones.

    Raises:
      MediaError: it cannot be opened.
    """
    require_file(path)
    with opened(path) as container:
        sounds = container.streams.audio
        return bool(sounds) and any(packet.size for packet in container.demux(sounds))


def media_kind(path: str | Path) -> Literal["image", "video", "audio"]:
    """What a file holds, by its contents; the cover of an album is no video."""
    require_file(path)
    if is_image(path):
        return "image"
    refuse_picture(path)
    with opened(path) as container:
        if video_stream(container) is not None:
            return "video"
        if audio_stream(container) is not None:
            return "audio"
    raise MediaError(f"{path}: expected a picture, a video or a sound, got a file without any; check the path")
