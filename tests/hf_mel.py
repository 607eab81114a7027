"""Hugging Face's log-mel frames as its feature extractor computes them where there is no torch.

With torch the same class computes in float32: in quiet bins its frames are 4e-5 off, by another amount on every
machine. `test_log_mel_is_exact` holds both to float64.
"""

from typing import Any
from unittest import mock

import numpy as np
from transformers import WhisperFeatureExtractor
from transformers.models.whisper import feature_extraction_whisper

RATE = 16_000
OMNI_AUDIO = {"feature_size": 128, "chunk_length": 300}


def hf_batch(waveform: np.ndarray, return_tensors: str = "np") -> Any:
    """`input_features` and `attention_mask`, called as HF's Omni processor calls it."""
    with mock.patch.object(feature_extraction_whisper, "is_torch_available", lambda: False):
        return WhisperFeatureExtractor(**OMNI_AUDIO)(
            waveform,
            sampling_rate=RATE,
            padding="max_length",
            return_attention_mask=True,
            return_tensors=return_tensors,
        )


def hf_log_mel(waveform: np.ndarray) -> np.ndarray:
    """[frames, 128]; the mask says which of 30,000 frames are the clip's."""
    out = hf_batch(waveform)
    return out["input_features"][0][:, out["attention_mask"][0].astype(bool)].T
