"""Frozen configs of the towers and the decoder; every field is read by a model.

How they are read from a Hugging Face `config.json` is each family's own, see `avjax.families`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The audio tower: two convolutions, then transformer blocks inside chunks of `2 * n_window` mel frames."""

    num_mel_bins: int
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int
    output_dim: int
    n_window: int  # half a chunk, in mel frames (10 ms each)
    max_positions: int  # length of the sinusoidal table

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower: a patch embedding, windowed and full-attention blocks, and a spatial merger."""

    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int
    output_dim: int
    in_channels: int
    patch_size: int  # pixels
    temporal_patch_size: int  # frames
    spatial_merge_size: int  # patches per side of one merged token
    window_size: int  # pixels
    full_attention_layers: tuple[int, ...]
    rope_theta: float
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the pixels of one patch."""
        return self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size

    @property
    def window_side(self) -> int:
        """Merged tokens per side of an attention window."""
        return self.window_size // self.spatial_merge_size // self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model: grouped-query attention with multimodal rotary positions (t, h, w)."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies that follow t, h and w
    tied_embeddings: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Vocabulary ids that mark media in a prompt."""

    image: int
    video: int
    vision_bos: int
    vision_eos: int
    audio: int | None = None
    audio_bos: int | None = None
    audio_eos: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One checkpoint's architecture."""

    family: str  # a name in `avjax.families.registry`
    decoder: DecoderConfig
    vision: VisionConfig
    audio: AudioConfig | None
    tokens: TokenIds
    position_units_per_second: float  # rotary time units in a second of video
    seconds_per_chunk: float | None  # of interleaved audio and video; None where the family has no audio


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      ValueError: the file is absent or holds something else; it is named.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; copy it from the original checkpoint")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path}: expected JSON, got {error}; copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}; copy it again")
    return content
