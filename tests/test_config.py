"""Reading `config.json`: published spellings are accepted, and nothing that would change the model is passed over."""

import copy
import json
from typing import Any

import pytest
import transformers

from avjax.config import ModelConfig, read_config

Config = dict[str, Any]

# What transformers 4 wrote into every section of a config, with its values.
LEGACY: Config = {
    "_attn_implementation_autoset": True,
    "add_cross_attention": False,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}

HUB_VL: Config = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}

HUB_OMNI: Config = {
    "architectures": ["Qwen2_5OmniModel"],
    "enable_audio_output": True,
    "enable_talker": True,
    "model_type": "qwen2_5_omni",
    "talker_config": {**LEGACY, "model_type": "qwen2_5_omni_talker", "unheard_of": 1},
    "thinker_config": {
        **LEGACY,
        "_name_or_path": "Qwen2.5-Omni-3B/thinker",
        "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
        "audio_config": {
            **LEGACY,
            "activation_dropout": 0.0,
            "activation_function": "gelu",
            "attention_dropout": 0.0,
            "d_model": 1280,
            "dropout": 0.0,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "encoder_layerdrop": 0.0,
            "encoder_layers": 32,
            "init_std": 0.02,
            "initializer_range": 0.02,
            "max_source_positions": 1500,
            "model_type": "qwen2_5_omni_audio_encoder",
            "n_window": 100,
            "num_hidden_layers": 32,
            "num_mel_bins": 128,
            "output_dim": 2048,
            "scale_embedding": False,
        },
        "audio_end_token_id": 151648,
        "audio_start_token_id": 151647,
        "audio_token_index": 151646,
        "bos_token_id": 151644,
        "eos_token_id": 151645,
        "ignore_index": -100,
        "image_token_index": 151655,
        "init_std": 0.02,
        "initializer_range": 0.02,
        "model_type": "qwen2_5_omni_thinker",
        "pad_token_id": 151643,
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "text_config": {
            **LEGACY,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "init_std": 0.02,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "max_position_embeddings": 32768,
            "max_window_layers": 70,
            "model_type": "qwen2_5_omni_text",
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "user_token_id": 872,
        "video_token_index": 151656,
        "vision_config": {
            **LEGACY,
            "depth": 32,
            "embed_dim": 1280,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_channels": 3,
            "in_chans": 3,
            "init_std": 0.02,
            "initializer_range": 0.02,
            "intermediate_size": 3420,
            "model_type": "qwen2_5_omni_vision_encoder",
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 25,
            "window_size": 112,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
        "vision_token_id": 151654,
    },
    "token2wav_config": {**LEGACY, "model_type": "qwen2_5_omni_token2wav", "unheard_of": 1},
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}


def changed(raw: Config, path: str, value: Any) -> Config:
    """A copy with one key set."""
    raw = copy.deepcopy(raw)
    *sections, key = path.split(".")
    node = raw
    for section in sections:
        node = node[section]
    node[key] = value
    return raw


def problems_of(raw: Config) -> list[str]:
    with pytest.raises(ValueError, match="would change the model") as caught:
        read_config(raw)
    return [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]


def assert_3b(config: ModelConfig) -> None:
    text, vision = config.decoder, config.vision
    assert (text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim) == (36, 16, 2, 128)
    assert (text.embed_dim, text.mlp_dim, text.vocab_size) == (2048, 11008, 151936)
    assert text.mrope_section == (16, 24, 24)
    assert text.norm_eps == 1e-6
    assert (vision.num_layers, vision.num_heads, vision.embed_dim, vision.mlp_dim) == (32, 16, 1280, 3420)
    assert (vision.output_dim, vision.patch_shape, vision.window_side) == (2048, (3, 2, 14, 14), 4)
    assert vision.full_attention_layers == (7, 15, 23, 31)
    assert (config.tokens.image, config.tokens.video) == (151655, 151656)
    assert (config.tokens.vision_bos, config.tokens.vision_eos) == (151652, 151653)


def test_a_flat_vl_config_of_the_hub():
    config = read_config(HUB_VL)
    assert_3b(config)
    assert config.decoder.rope_theta == 500_000.0
    assert config.decoder.tied_embeddings
    assert config.position_units_per_second == 2
    assert config.audio is None
    assert config.seconds_per_chunk is None


def test_a_nested_omni_config_of_the_hub():
    config = read_config(HUB_OMNI)
    assert_3b(config)
    assert config.decoder.rope_theta == 1_000_000.0
    assert not config.decoder.tied_embeddings, "the thinker decides, not its text_config"
    assert config.position_units_per_second == 25, "the thinker decides, not its vision_config"
    assert config.seconds_per_chunk == 2
    assert config.audio is not None
    assert (config.audio.num_layers, config.audio.num_heads, config.audio.embed_dim) == (32, 20, 1280)
    assert (config.audio.mlp_dim, config.audio.output_dim, config.audio.n_window) == (5120, 2048, 100)
    assert (config.tokens.audio, config.tokens.audio_bos, config.tokens.audio_eos) == (151646, 151647, 151648)


def test_a_thinker_alone_reads_as_in_its_whole_checkpoint():
    assert read_config(HUB_OMNI["thinker_config"]) == read_config(HUB_OMNI)


def test_the_flat_and_the_nested_vl_config_read_the_same():
    """transformers 5 writes `text_config`, where older checkpoints keep its keys at the top."""
    written = json.loads(json.dumps(transformers.Qwen2_5_VLConfig(**HUB_VL).to_diff_dict()))
    assert "text_config" in written
    assert read_config(written) == read_config(HUB_VL)


def test_a_whole_omni_config_of_transformers_5_reads_the_same():
    hub = {key: HUB_OMNI[key] for key in ("thinker_config",)}
    written = json.loads(json.dumps(transformers.Qwen2_5OmniConfig(**copy.deepcopy(hub)).to_diff_dict()))
    assert read_config(written) == read_config(HUB_OMNI)


LEVELS = {
    "qwen2_5_omni": (
        HUB_OMNI,
        ["", "thinker_config.", *(f"thinker_config.{p}_config." for p in ("text", "vision", "audio"))],
    ),
    "qwen2_5_vl": (HUB_VL, ["", "vision_config."]),
}


@pytest.mark.parametrize("family", LEVELS)
def test_unknown_keys_are_named_together(family: str):
    raw, levels = LEVELS[family]
    expected = []
    for i, level in enumerate(levels):
        for key in (f"gadget_{i}", f"widget_{i}"):
            raw = changed(raw, level + key, i + 0.5)
            expected.append(f"{level}{key}: unknown key with the non-default value {i + 0.5!r}")
    assert sorted(problems_of(raw)) == sorted(expected)


@pytest.mark.parametrize("family", LEVELS)
def test_an_unknown_key_without_a_value_changes_nothing(family: str):
    raw, levels = LEVELS[family]
    expected = read_config(raw)
    for level in levels:
        raw = changed(raw, f"{level}gadget", None)
    assert read_config(raw) == expected


@pytest.mark.parametrize("family", LEVELS)
@pytest.mark.parametrize("key", LEGACY)
def test_an_inert_key_changes_nothing_whatever_its_value(family: str, key: str):
    raw, levels = LEVELS[family]
    expected = read_config(raw)
    for level in levels:
        raw = changed(raw, level + key, 0.875)
    assert read_config(raw) == expected


OMNI_TEXT, OMNI_AUDIO = "thinker_config.text_config.", "thinker_config.audio_config."
UNSUPPORTED = [
    (HUB_VL, "use_sliding_window", True),
    (HUB_VL, "hidden_act", "gelu"),
    (HUB_VL, "rope_scaling", {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4.0}),
    (HUB_VL, "rope_scaling", {"type": "mrope", "mrope_section": [16, 24, 24], "factor": 4.0}),
    (HUB_VL, "rope_scaling", {"rope_type": "linear", "mrope_section": [16, 24, 24]}),
    (HUB_VL, "rope_scaling", {"type": "mrope", "mrope_section": [16, 24, 25]}),
    (HUB_VL, "rope_scaling", {"type": "mrope", "mrope_section": [32, 32]}),
    (HUB_VL, "layer_types", ["full_attention"] * 35 + ["sliding_attention"]),
    (HUB_VL, "vision_config.hidden_act", "gelu"),
    (HUB_VL, "vision_config.rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
    (HUB_OMNI, OMNI_TEXT + "use_sliding_window", True),
    (HUB_OMNI, OMNI_TEXT + "hidden_act", "relu"),
    (HUB_OMNI, OMNI_TEXT + "rope_scaling", {"rope_type": "dynamic", "mrope_section": [16, 24, 24]}),
    (HUB_OMNI, OMNI_AUDIO + "activation_function", "relu"),
    (HUB_OMNI, OMNI_AUDIO + "scale_embedding", True),
    (HUB_OMNI, "thinker_config.vision_config.hidden_act", "quick_gelu"),
]


@pytest.mark.parametrize(("raw", "path", "value"), UNSUPPORTED, ids=[f"{p}-{v}"[:60] for _, p, v in UNSUPPORTED])
def test_what_no_model_implements_is_refused(raw: Config, path: str, value: Any):
    (problem,) = problems_of(changed(raw, path, value))
    key = path.split(".")[-1]
    named = ("rope_parameters", "mrope_section") if key == "rope_scaling" else (key,)
    assert problem.startswith(tuple(path.removesuffix(key) + name for name in named)), problem
    assert ": expected " in problem
    assert ", got " in problem


def test_sizes_that_are_no_default_reach_the_model():
    raw = changed(HUB_OMNI, "thinker_config.position_id_per_seconds", 13)
    raw = changed(raw, "thinker_config.vision_config.window_size", 56)
    raw = changed(raw, "thinker_config.audio_config.n_window", 50)
    raw = changed(raw, "thinker_config.text_config.head_dim", 64)
    raw = changed(raw, "thinker_config.text_config.rope_scaling.mrope_section", [8, 12, 12])
    config = read_config(raw)
    assert config.position_units_per_second == 13
    assert config.vision.window_side == 2
    assert config.audio is not None
    assert config.audio.n_window == 50
    assert (config.decoder.head_dim, config.decoder.mrope_section) == (64, (8, 12, 12))


@pytest.mark.parametrize("model_type", [None, "llama", "qwen2_vl", "qwen3_omni_moe"])
def test_another_family_is_refused_by_name(model_type: str | None):
    with pytest.raises(ValueError, match=f"expected model_type 'qwen2_5_omni'.*got {model_type!r}"):
        read_config({**HUB_VL, "model_type": model_type})
