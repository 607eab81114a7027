"""Frozen configs of the towers and the decoder, read from a Hugging Face `config.json`.

Every field below is read by a model; every key of the source config is either read, known to leave the forward pass
alone, or refused together with the others that nobody understands.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Family = Literal["qwen2_5_omni", "qwen2_5_vl"]

# Keys that cannot change a forward pass in evaluation mode: training, initialisation, bookkeeping, sampling defaults.
INERT = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation_autoset
    architectures dtype torch_dtype transformers_version model_type
    initializer_range init_std ignore_index use_cache use_return_dict return_dict output_hidden_states
    output_attentions output_scores return_dict_in_generate torchscript use_bfloat16 tf_legacy_loss pruned_heads
    dropout attention_dropout activation_dropout encoder_layerdrop chunk_size_feed_forward
    max_position_embeddings max_window_layers sliding_window
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id user_token_id vision_token_id
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task id2label label2id
    tokenizer_class prefix task_specific_params problem_type enable_audio_output enable_talker
    """.split()
)

_REQUIRED = object()


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


class _Section:
    """One JSON object of an HF config: what was read, and what nobody understood."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any], path: str, problems: list[str]):
        self.raw, self.defaults, self.path, self.problems = dict(raw), dict(defaults), path, problems
        self.seen: set[str] = set()

    def take(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The first of several spellings that is present, else HF's default, else `default`."""
        self.seen.update(names)
        for source in (self.raw, self.defaults):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        if default is _REQUIRED:
            self.problems.append(f"{self.path}{names[0]}: expected a value, got none")
            return None
        return default

    def expect(self, name: str, *supported: Any) -> None:
        """Records a problem unless the key holds a value that the models implement."""
        value = self.take(name, default=supported[0])
        if value not in supported:
            wanted = " or ".join(map(repr, supported))
            self.problems.append(f"{self.path}{name}: expected {wanted}, got {value!r}")

    def section(self, name: str, defaults: Mapping[str, Any]) -> "_Section":
        self.seen.add(name)
        return _Section(self.raw.get(name) or {}, defaults, f"{self.path}{name}.", self.problems)

    def finish(self) -> None:
        """Refuses every key that was not read, is not inert, and does not hold HF's default."""
        for key, value in self.raw.items():
            if key in self.seen or key in INERT or value is None:
                continue
            if key in self.defaults and self.defaults[key] == value:
                continue
            self.problems.append(f"{self.path}{key}: unknown key with the non-default value {value!r}")


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
    match raw.get("model_type"):
        case "qwen2_5_omni":
            _refuse_outer(raw, problems)
            config = _read_omni(raw.get("thinker_config") or {}, "thinker_config.", problems)
        case "qwen2_5_omni_thinker":
            config = _read_omni(raw, "", problems)
        case "qwen2_5_vl":
            config = _read_vl(raw, problems)
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


def _refuse_outer(raw: Mapping[str, Any], problems: list[str]) -> None:
    outer = _Section(raw, {}, "", problems)
    outer.seen.update(("thinker_config", "talker_config", "token2wav_config", "tie_word_embeddings"))
    outer.finish()


def _read_omni(raw: Mapping[str, Any], path: str, problems: list[str]) -> ModelConfig:
    from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as hf

    section = _Section(raw, _defaults(hf.Qwen2_5OmniThinkerConfig), path, problems)
    text = section.section("text_config", _defaults(hf.Qwen2_5OmniTextConfig))
    vision = section.section("vision_config", _defaults(hf.Qwen2_5OmniVisionEncoderConfig))
    audio = section.section("audio_config", _defaults(hf.Qwen2_5OmniAudioEncoderConfig))
    text.seen.add("tie_word_embeddings")  # the thinker's own key decides
    vision.seen.add("tokens_per_second")  # the thinker's position_id_per_seconds decides
    config = ModelConfig(
        family="qwen2_5_omni",
        decoder=_read_decoder(text, tied=bool(section.take("tie_word_embeddings", default=False))),
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


def _read_vl(raw: Mapping[str, Any], problems: list[str]) -> ModelConfig:
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as hf

    text_defaults = _defaults(hf.Qwen2_5_VLTextConfig)
    outer_defaults = _defaults(hf.Qwen2_5_VLConfig)
    section = _Section(raw, outer_defaults, "", problems)
    vision = section.section("vision_config", _defaults(hf.Qwen2_5_VLVisionConfig))
    if "text_config" in raw:
        text = section.section("text_config", text_defaults)
    else:
        # Hub checkpoints keep the decoder's keys at the top level.
        outer_keys = outer_defaults.keys() - text_defaults.keys()
        own = {k: v for k, v in raw.items() if k not in outer_keys | {"vision_config", "tie_word_embeddings"}}
        text = _Section(own, text_defaults, "", problems)
        section.seen.update(own)
    text.seen.update(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"))
    tied = section.take("tie_word_embeddings", default=False) or text.take("tie_word_embeddings", default=False)
    config = ModelConfig(
        family="qwen2_5_vl",
        decoder=_read_decoder(text, tied=bool(tied)),
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
    for part in (section, text, vision):
        part.finish()
    return config


def _read_decoder(section: _Section, tied: bool) -> DecoderConfig:
    section.expect("hidden_act", "silu")
    section.expect("use_sliding_window", False)
    layers, embed, heads = (section.take(k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    # HF fills layer_types in from the number of layers, so its default says nothing about this checkpoint.
    kinds = set(section.raw.get("layer_types") or ["full_attention"])
    section.seen.add("layer_types")
    if kinds != {"full_attention"}:
        section.problems.append(f"{section.path}layer_types: expected 'full_attention' only, got {sorted(kinds)}")
    head_dim = section.take("head_dim", default=embed // heads)
    theta, mrope = _read_rope(section, head_dim)
    return DecoderConfig(
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=section.take("num_key_value_heads"),
        head_dim=head_dim,
        embed_dim=embed,
        mlp_dim=section.take("intermediate_size"),
        vocab_size=section.take("vocab_size"),
        norm_eps=section.take("rms_norm_eps"),
        rope_theta=theta,
        mrope_section=mrope,
        tied_embeddings=tied,
    )


def _read_rope(section: _Section, head_dim: int) -> tuple[float, tuple[int, int, int]]:
    section.seen.update(("rope_parameters", "rope_scaling", "rope_theta"))
    # transformers 5 writes rope_parameters, the hub's checkpoints rope_theta beside rope_scaling.
    rope = section.raw.get("rope_parameters") or section.raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    unknown = rope.keys() - {"rope_type", "type", "rope_theta", "mrope_section"}
    if kind not in ("default", "mrope") or unknown:
        section.problems.append(f"{section.path}rope_parameters: expected multimodal rotary positions, got {rope!r}")
    theta = rope.get("rope_theta") or section.raw.get("rope_theta") or 1_000_000.0
    mrope = tuple(rope.get("mrope_section") or (16, 24, 24))
    if len(mrope) != 3 or sum(mrope) * 2 != head_dim:
        section.problems.append(
            f"{section.path}mrope_section: expected three numbers that add up to head_dim / 2 = {head_dim // 2}, "
            f"got {list(mrope)}"
        )
    return float(theta), mrope  # pyright: ignore[reportReturnType]


def _read_vision(section: _Section) -> VisionConfig:
    section.expect("hidden_act", "silu")
    rope = section.take("rope_parameters", default={})
    if rope.get("rope_type", "axial") != "axial":
        section.problems.append(f"{section.path}rope_parameters: expected rope_type 'axial', got {rope!r}")
    patch = _one(section.take("patch_size"))
    for alias in ("spatial_patch_size", "in_chans", "embed_dim"):
        section.seen.add(alias)  # older spellings that HF itself does not read
    return VisionConfig(
        num_layers=section.take("depth", "num_hidden_layers"),
        num_heads=section.take("num_heads", "num_attention_heads"),
        embed_dim=section.take("hidden_size"),
        mlp_dim=section.take("intermediate_size"),
        output_dim=section.take("out_hidden_size"),
        in_channels=section.take("in_channels"),
        patch_size=patch,
        temporal_patch_size=_one(section.take("temporal_patch_size")),
        spatial_merge_size=section.take("spatial_merge_size"),
        window_size=section.take("window_size"),
        full_attention_layers=tuple(section.take("fullatt_block_indexes")),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        norm_eps=1e-6,  # fixed in HF's vision blocks, whatever the decoder uses
    )


def _read_audio(section: _Section) -> AudioConfig:
    section.expect("activation_function", "gelu")
    section.expect("scale_embedding", False)
    return AudioConfig(
        num_mel_bins=section.take("num_mel_bins"),
        num_layers=section.take("encoder_layers", "num_hidden_layers"),
        num_heads=section.take("encoder_attention_heads"),
        embed_dim=section.take("d_model"),
        mlp_dim=section.take("encoder_ffn_dim"),
        output_dim=section.take("output_dim"),
        n_window=section.take("n_window"),
        max_positions=section.take("max_source_positions"),
    )


def _one(value: int | Sequence[int]) -> int:
    """A patch size that HF allows to be a list of equal numbers."""
    return value if isinstance(value, int) else value[0]


def _defaults(config_class: Any) -> dict[str, Any]:
    defaults = config_class().to_dict()
    return {k: v for k, v in defaults.items() if k not in ("text_config", "vision_config", "audio_config")}
