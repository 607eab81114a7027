"""Frozen configs of the towers and the decoder, read from a Hugging Face `config.json`.

Every field below is read by a model; every key of the source config is either read, known to leave the forward pass
alone, or refused together with the others that nobody understands.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from avjax import config_keys as keys
from avjax.config_keys import Version
from avjax.config_rope import KEYS as ROPE_KEYS
from avjax.config_rope import read_rope
from avjax.config_section import Section

Family = Literal["qwen2_5_omni", "qwen2_5_vl"]


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

    family: Family
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


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The architecture that an HF `config.json` describes.

    Args:
      raw: the parsed JSON of a Qwen2.5-Omni checkpoint (whole or thinker alone) or a Qwen2.5-VL checkpoint.

    Raises:
      ValueError: the family is unknown, a key is missing, or a key that no model reads has a non-default value;
        all such keys are named together.
    """
    problems: list[str] = []
    version = keys.writer(raw)
    match raw.get("model_type"):
        case "qwen2_5_omni" as model_type:
            outer = Section(raw, {}, "", problems, keys.OMNI)
            thinker = outer.section("thinker_config", _defaults("omni", "Thinker"), keys.THINKER)
            outer.finish()
            config = _read_omni(thinker, version, model_type)
        case "qwen2_5_omni_thinker" as model_type:
            thinker = Section(raw, _defaults("omni", "Thinker"), "", problems, keys.THINKER)
            config = _read_omni(thinker, version, model_type)
        case "qwen2_5_vl":
            config = _read_vl(raw, version, problems)
        case other:
            raise ValueError(
                f"config: expected model_type 'qwen2_5_omni', 'qwen2_5_omni_thinker' or 'qwen2_5_vl', got {other!r}; "
                "other families can enter as embeddings through model.prompt_from_embeddings"
            )
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(
            f"config: {len(problems)} key(s) would change the model in a way that is not implemented:\n  {listing}\n"
            "Remove the key if it has no effect on the forward pass, or open an issue naming the checkpoint."
        )
    return config


def _read_omni(section: Section, version: Version | None, model_type: str) -> ModelConfig:
    text = section.section("text_config", _defaults("omni", "Text"), keys.DECODER)
    vision = section.section("vision_config", _defaults("omni", "VisionEncoder"), keys.VISION)
    audio = section.section("audio_config", _defaults("omni", "AudioEncoder"), keys.AUDIO)
    vision.ignore(["tokens_per_second"])  # the thinker's position_id_per_seconds decides
    config = ModelConfig(
        family="qwen2_5_omni",
        decoder=_read_decoder(text, version, tied=_read_tied(model_type, version, section, text)),
        vision=_read_vision(vision),
        audio=_read_audio(audio),
        tokens=TokenIds(
            image=section.take("image_token_id", "image_token_index"),
            video=section.take("video_token_id", "video_token_index"),
            audio=section.take("audio_token_id", "audio_token_index"),
            vision_bos=section.take("vision_start_token_id", default=151652),
            vision_eos=section.take("vision_end_token_id", default=151653),
            audio_bos=section.take("audio_start_token_id"),
            audio_eos=section.take("audio_end_token_id"),
        ),
        position_units_per_second=section.take("position_id_per_seconds"),
        seconds_per_chunk=section.take("seconds_per_chunk"),
    )
    for part in (section, text, vision, audio):
        part.finish()
    return config


def _read_vl(raw: Mapping[str, Any], version: Version | None, problems: list[str]) -> ModelConfig:
    text_defaults, outer_defaults = _defaults("vl", "Text"), _defaults("vl", "")
    section = Section(raw, outer_defaults, "", problems, keys.VL)
    vision = section.section("vision_config", _defaults("vl", "Vision"), keys.VISION)
    if raw.get("text_config") is not None:
        text = section.section("text_config", text_defaults, keys.DECODER)
        _compare_copies(section, text, version)
    else:
        # Until 4.51 the decoder's keys were at the top level, as they still are in the hub's checkpoints.
        outer_keys = outer_defaults.keys() - text_defaults.keys()
        own = {k: v for k, v in raw.items() if k not in outer_keys | {"vision_config", "tie_word_embeddings"}}
        text = Section(own, text_defaults, "", problems, keys.DECODER)
        section.ignore([*own, "text_config"])
    config = ModelConfig(
        family="qwen2_5_vl",
        decoder=_read_decoder(text, version, tied=_read_tied("qwen2_5_vl", version, section, text)),
        vision=_read_vision(vision),
        audio=None,
        tokens=TokenIds(
            image=section.take("image_token_id"),
            video=section.take("video_token_id"),
            vision_bos=section.take("vision_start_token_id"),
            vision_eos=section.take("vision_end_token_id"),
        ),
        position_units_per_second=vision.take("tokens_per_second"),
        seconds_per_chunk=None,
    )
    decoder = config.decoder
    # Qwen2.5-VL's attention divides hidden_size among its heads, whatever head_dim says.
    if decoder.embed_dim and decoder.head_dim != decoder.embed_dim // decoder.num_heads:
        problems.append(
            f"{text.path}head_dim: expected hidden_size / num_attention_heads = "
            f"{decoder.embed_dim // decoder.num_heads}, got {decoder.head_dim}"
        )
    for part in (section, text, vision):
        part.finish()
    return config


def _read_tied(model_type: str, version: Version | None, model: Section, text: Section) -> bool:
    """Whether the embeddings are tied; where both sections say, the version that wrote them knows which one counts."""
    declared = {"model": model.raw.get("tie_word_embeddings"), "text": text.raw.get("tie_word_embeddings")}
    for section in (model, text):
        section.ignore(["tie_word_embeddings"])
    if "text_config" not in model.raw or model.raw["text_config"] is None:
        declared["text"] = declared["model"]  # one flat section is both
    return keys.is_tied(model_type, version, declared)


def _compare_copies(outer: Section, text: Section, version: Version | None) -> None:
    """The decoder's keys above `text_config`, as 4.52 to 4.57 repeat them; where they differ, one copy counts.

    Every version that knows `text_config` reads it alone. A file that does not say that it is from such a version may
    have been meant for an older one, which reads the other copy: then they must agree.
    """
    copies = [key for key in keys.DECODER_SIZES if outer.raw.get(key) is not None]
    outer.ignore(keys.DECODER_SIZES | keys.DECODER_LENGTHS)
    if version is not None and version >= keys.NESTED_VL:
        return
    ropes = [read_rope(Section(s.raw, {}, s.path, [], frozenset()), version) for s in (outer, text)]
    for key in sorted(copies):
        value, inside = outer.raw[key], text.raw.get(key, text.defaults.get(key))
        if (ropes[0] != ropes[1]) if key in ROPE_KEYS else (value != inside):
            outer.problems.append(
                f"{key}: expected what text_config says, {inside!r}, got {value!r}; remove the wrong one"
            )


def _read_decoder(section: Section, version: Version | None, tied: bool) -> DecoderConfig:
    section.expect("hidden_act", "silu")
    section.expect("use_sliding_window", False)
    layers, embed, heads = (section.take(k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    # HF fills layer_types in from the number of layers, so its default says nothing about this checkpoint.
    kinds = set(section.raw.get("layer_types") or ["full_attention"])
    section.ignore(["layer_types"])
    if kinds != {"full_attention"}:
        section.problems.append(f"{section.path}layer_types: expected 'full_attention' only, got {sorted(kinds)}")
    head_dim = section.take("head_dim", default=embed // heads)
    rope = read_rope(section, version)
    if len(rope.section) != 3 or sum(rope.section) * 2 != head_dim:
        section.problems.append(
            f"{section.path}mrope_section: expected three numbers that add up to head_dim / 2 = {head_dim // 2}, "
            f"got {list(rope.section)}"
        )
    return DecoderConfig(
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=section.take("num_key_value_heads", default=heads),
        head_dim=head_dim,
        embed_dim=embed,
        mlp_dim=section.take("intermediate_size"),
        vocab_size=section.take("vocab_size"),
        norm_eps=section.take("rms_norm_eps"),
        rope_theta=rope.theta,
        mrope_section=rope.section,  # pyright: ignore[reportArgumentType]
        tied_embeddings=tied,
    )


def _read_vision(section: Section) -> VisionConfig:
    section.expect("hidden_act", "silu")
    rope = section.take("rope_parameters", default={})
    if rope.get("rope_type", "axial") != "axial":
        section.problems.append(f"{section.path}rope_parameters: expected rope_type 'axial', got {rope!r}")
    return VisionConfig(
        num_layers=section.take("depth", "num_hidden_layers"),
        num_heads=section.take("num_heads", "num_attention_heads"),
        embed_dim=section.take("hidden_size"),
        mlp_dim=section.take("intermediate_size"),
        output_dim=section.take("out_hidden_size"),
        in_channels=section.take("in_channels"),
        patch_size=_side(section, "patch_size"),
        temporal_patch_size=_side(section, "temporal_patch_size"),
        spatial_merge_size=section.take("spatial_merge_size"),
        window_size=section.take("window_size"),
        full_attention_layers=tuple(section.take("fullatt_block_indexes")),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        norm_eps=1e-6,  # fixed in HF's vision blocks, whatever the decoder uses
    )


def _read_audio(section: Section) -> AudioConfig:
    section.expect("activation_function", "gelu")
    section.expect("scale_embedding", False)
    # transformers 5 also reads the sizes under the names of the other towers.
    return AudioConfig(
        num_mel_bins=section.take("num_mel_bins"),
        num_layers=section.take("encoder_layers", "num_hidden_layers"),
        num_heads=section.take("encoder_attention_heads", "num_attention_heads"),
        embed_dim=section.take("d_model", "hidden_size"),
        mlp_dim=section.take("encoder_ffn_dim", "intermediate_size"),
        output_dim=section.take("output_dim"),
        n_window=section.take("n_window"),
        max_positions=section.take("max_source_positions"),
    )


def _side(section: Section, name: str) -> int:
    """A size that HF allows to be a list of equal numbers."""
    value = section.take(name)
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        section.problems.append(f"{section.path}{name}: expected equal numbers, got {list(value)}")
    return value[0]


def _defaults(family: str, section: str) -> dict[str, Any]:
    """What HF's class for a section has where a file has nothing; the same in every version that reads the files."""
    from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as vl

    module, name = (omni, "Qwen2_5Omni") if family == "omni" else (vl, "Qwen2_5_VL")
    defaults = getattr(module, f"{name}{section}Config")().to_dict()
    return {k: v for k, v in defaults.items() if k not in ("text_config", "vision_config", "audio_config")}
