"""What media become: arrays for the towers, and how many tokens they take. Numpy alone, for processes without JAX."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioFeatures:
    """One audio clip, ready for the audio tower."""

    mel: np.ndarray  # float32 [frames, bins], log-mel, 100 frames a second
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """One image or video, ready for the vision tower."""

    patches: np.ndarray  # float32 [t * h * w, patch_dim], in the processor's order
    grid: tuple[int, int, int]  # t, h, w in patches
    seconds_per_grid: float | None  # that rotary positions count for one temporal step; None for an image
    source: str
    step_seconds: tuple[float, ...] | None = None  # where each step begins in the clip; None: at the nominal rate


def num_positions(num_mel_frames: int) -> int:
    """Audio encoder positions of a clip, before pooling: one per 20 ms."""
    return (num_mel_frames - 1) // 2 + 1


def num_audio_tokens(num_mel_frames: int) -> int:
    """Tokens that a sound takes in a prompt: one per 40 ms."""
    return (num_positions(num_mel_frames) - 2) // 2 + 1
