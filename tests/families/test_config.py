"""Reading `config.json`: published spellings are accepted, and nothing that would change the model is passed over."""

import copy
import json
from typing import Any

import pytest
import transformers

from avjax.families.registry import read_config
from avjax.models.config import ModelConfig
from tests.hub_configs import HUB_OMNI, HUB_VL, LEGACY, Config


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
    config = read_config(changed(HUB_VL, "rope_theta", 500_000.0))
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
    assert not config.decoder.tied_embeddings, "whatever sections without words say"
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
