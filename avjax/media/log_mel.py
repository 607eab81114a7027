"""Whisper's log-mel frames, by Hugging Face's own spectrogram.

`transformers.WhisperFeatureExtractor` imports torch where that is installed, for seconds, and computes with it: its
frames then differ in the fifth digit from those of its own numpy code, which runs where there is no torch. Here they
are the numpy code's everywhere, so that a clip is the same on every machine.
"""

import dataclasses
import functools

import numpy as np

from avjax.media.decode import SAMPLE_RATE

RANGE = 8.0  # decades below the loudest bin, beyond which everything is as quiet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whisper:
    """The feature extractor's settings, under its own names and with its defaults.

    Attributes:
      feature_size: mel bins.
      sampling_rate: Hz.
      hop_length, n_fft: samples between frames, and of one frame's window.
      chunk_length: seconds of the longest clip.
      padding_value: of the samples after a clip's end.
      dither: standard deviation of noise that is added to the samples.
    """

    feature_size: int = 80
    sampling_rate: int = 16_000
    hop_length: int = 160
    chunk_length: int = 30
    n_fft: int = 400
    padding_value: float = 0.0
    dither: float = 0.0

    def __post_init__(self):
        if self.sampling_rate != SAMPLE_RATE:
            raise ValueError(
                f"feature extractor: expected sampling_rate {SAMPLE_RATE}, got {self.sampling_rate}; the checkpoint's "
                "preprocessor files are of another model"
            )

    @property
    def num_samples(self) -> int:
        """Of the longest clip."""
        return self.chunk_length * self.sampling_rate

    def log_mel(self, waveform: np.ndarray, num_samples: int) -> np.ndarray:
        """Frames of a mono waveform, padded to `num_samples`: float32 [frame, mel bin]."""
        from transformers.audio_utils import spectrogram, window_function

        padded = np.full(num_samples, self.padding_value, np.float32)
        padded[: len(waveform)] = waveform
        decades = spectrogram(
            padded,
            window_function(self.n_fft, "hann"),
            frame_length=self.n_fft,
            hop_length=self.hop_length,
            power=2.0,
            dither=self.dither,
            mel_filters=_mel_filters(self.n_fft, self.feature_size, self.sampling_rate),
            log_mel="log10",
        )[:, :-1]
        return (np.maximum(decades, decades.max() - RANGE).T + 4) / 4


@functools.lru_cache(maxsize=4)
def _mel_filters(n_fft: int, feature_size: int, sampling_rate: int) -> np.ndarray:
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(
        num_frequency_bins=1 + n_fft // 2,
        num_mel_filters=feature_size,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
