"""Readers of a prompt's media: in this process, or in a separate one (`avjax.media.isolated`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from avjax.media.corruption import Corruption
from avjax.media.decode import has_sound
from avjax.media.features import audio_features, image_features, video_features
from avjax.media.options import MediaOptions
from avjax.media.sources import ImageSource, SoundSource, VideoSource
from avjax.models.clip_features import AudioFeatures, VisionFeatures
from avjax.models.config import VisionConfig


class Reader(Protocol):
    """Reads media to features, as `avjax.media.features` does."""

    def has_sound(self, path: str | Path) -> bool:
        """See `avjax.media.decode.has_sound`."""
        ...

    def image(self, image: ImageSource, config: VisionConfig, options: MediaOptions) -> VisionFeatures:
        """See `image_features`."""
        ...

    def video(
        self, video: VideoSource, config: VisionConfig, options: MediaOptions, corrupt: Sequence[Corruption] = ()
    ) -> tuple[VisionFeatures, float]:
        """See `video_features`."""
        ...

    def audio(self, audio: SoundSource, options: MediaOptions, corrupt: Sequence[Corruption] = ()) -> AudioFeatures:
        """See `audio_features`."""
        ...


class ReaderHere:
    """Reads in this process. A decoder that crashes ends it."""

    has_sound = staticmethod(has_sound)
    image = staticmethod(image_features)
    video = staticmethod(video_features)
    audio = staticmethod(audio_features)


HERE: Reader = ReaderHere()
