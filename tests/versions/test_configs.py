"""Configs in the spelling of every version, and which keys count where: held to what each version itself does."""

import copy
from typing import Any

import pytest

from avjax.families import inert_keys as keys
from avjax.families.registry import read_config
from avjax.models.config import ModelConfig
from tests.versions.probe import LEFT_ALONE, SECTIONS
from tests.versions.published import DECODERS, PUBLISHED
from tests.versions.saved import VERSIONS, configs, probes, references

Config = dict[str, Any]
TIED = [(version, entry) for version in VERSIONS for entry in probes(version)["tied"]]


@pytest.mark.parametrize("name", DECODERS)
def test_a_published_config_reads_alike_in_every_spelling(name: str):
    published = read_config(PUBLISHED[name])
    hidden, layers, heads, kv_heads, mlp, vocabulary, tied = DECODERS[name]
    decoder = published.decoder
    assert (decoder.embed_dim, decoder.num_layers, decoder.num_heads) == (hidden, layers, heads)
    assert (decoder.num_kv_heads, decoder.mlp_dim, decoder.vocab_size) == (kv_heads, mlp, vocabulary)
    assert decoder.tied_embeddings == tied
    saved = configs(rf"{name}(-thinker)?")
    assert len(saved) == (5 if name.startswith("vl") else 8)
    for where, raw in saved.items():
        assert read_config(raw) == published, where


@pytest.mark.parametrize("kind", ["vl", "thinker", "omni"])
def test_defaults_read_alike(kind: str):
    """A version leaves out what is its default, so that defaults count; they are the same in all of them."""
    default = configs(f"{kind}-default")
    assert len(default) == (5 if kind == "vl" else 4)
    readings = {where: read_config(raw) for where, raw in default.items()}
    assert len({repr(reading) for reading in readings.values()}) == 1, readings


@pytest.mark.parametrize("version", VERSIONS)
def test_inert_keys_change_nothing_in_the_version_itself(version: str):
    """Every key that is inert in a section was odd there once, and the version computed the same."""
    answers = probes(version)["keys"]
    nested = version != "4.50.3"
    assert set(answers) == {
        ".".join((kind, *path))
        for kind, sections in SECTIONS.items()
        for path in sections
        if nested or (kind == "vl" and path != ("text_config",))
    }
    for section, answer in answers.items():
        kind, *path = section.split(".")
        inert = SECTIONS[kind][tuple(path)] - LEFT_ALONE
        if not nested and not path:
            inert -= keys.DECODER_SIZES  # the flat section is the decoder's own
            # Masks of that version end at the window even where `use_sliding_window` is false; 4.52 mended it.
            assert answer["other"] == {"sliding_window": "differs"}
        else:
            assert answer["other"] == {}, section
        assert {*answer["same"], *answer["other"]} == inert, f"{section}: run `python -m tests.versions.build` again"


@pytest.mark.parametrize(("version", "entry"), TIED, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_tied_as_the_version_ties(version: str, entry: dict[str, Any]):
    """Of two sections that declare it, each version looks at its own."""
    reference = next(r for r in references() if (r.version, r.kind) == (version, entry["kind"]))
    raw = configs(f"{entry['kind']}-default")[f"{reference.version}/{entry['kind']}-default"]
    raw = copy.deepcopy(raw)
    model = raw["thinker_config"] if entry["kind"] == "omni" else raw
    for section, value in ((model, entry["model"]), (model.get("text_config"), entry["text"])):
        if section is not None:
            section.pop("tie_word_embeddings", None)
            section.update({} if value is None else {"tie_word_embeddings": value})
    assert read_config(raw).decoder.tied_embeddings == entry["tied"], entry


def nested_vl(version: str | None) -> Config:
    """Qwen2.5-VL-3B as 4.57 writes it: the decoder's keys twice."""
    raw = copy.deepcopy(configs("vl-3b")["4.57.6/vl-3b"])
    assert raw["hidden_size"] == raw["text_config"]["hidden_size"]
    raw["transformers_version"] = version
    return raw


COPIES = {
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 151000,
    "intermediate_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [24, 20, 20]},
    "hidden_act": "gelu",
    "use_sliding_window": True,
}


@pytest.mark.parametrize("key", COPIES)
def test_of_two_copies_that_differ_the_writer_knows_which_one_counts(key: str):
    """Every version that knows `text_config` reads it alone; what is from none of them is refused, by name."""
    for version in ("4.52.4", "4.57.6", "5.0.0", "5.24.0"):
        expected = read_config(nested_vl(version))
        assert read_config({**nested_vl(version), key: COPIES[key]}) == expected
    for version in (None, "4.49.0"):
        with pytest.raises(ValueError, match=rf"\n  {key}: expected the value in text_config, .*remove the wrong one"):
            read_config({**nested_vl(version), key: COPIES[key]})


def test_copies_that_agree_need_no_version():
    expected = read_config(nested_vl("4.57.6"))
    for spelling in ({"type": "mrope"}, {"rope_type": "default"}, {"type": "default", "rope_type": "default"}):
        raw = nested_vl(None) | {"rope_scaling": {**spelling, "mrope_section": [16, 24, 24]}}
        assert read_config(raw) == expected


def set_rope(raw: Config, **changes: Any) -> ModelConfig:
    raw = copy.deepcopy(raw)
    raw["text_config"] |= changes
    return read_config(raw)


def test_a_base_in_two_places():
    """transformers 4 reads `rope_theta` beside the angles, transformers 5 the one inside."""
    inside = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [16, 24, 24]}
    for version, theta in (("4.57.6", 7000.0), ("5.0.0", 5000.0)):
        raw = nested_vl(version)
        assert set_rope(raw, rope_scaling=inside, rope_theta=7000.0).decoder.rope_theta == theta
    with pytest.raises(
        ValueError, match=r"text_config\.rope_theta: expected the value in .*rope_scaling, 5000\.0, got 7000\.0"
    ):
        set_rope(nested_vl(None), rope_scaling=inside, rope_theta=7000.0)
    other = {**inside, "rope_theta": 6000.0}
    with pytest.raises(ValueError, match=r"text_config\.rope_parameters: expected the value of rope_scaling"):
        set_rope(nested_vl("5.0.0"), rope_scaling=inside, rope_parameters=other)


def test_a_type_that_the_other_name_contradicts():
    """transformers 4 lets `type` win over `rope_type`."""
    rope = {"type": "yarn", "rope_type": "default", "mrope_section": [16, 24, 24]}
    with pytest.raises(ValueError, match=r"text_config\.rope_parameters: expected multimodal rotary positions.*yarn"):
        set_rope(nested_vl("4.57.6"), rope_scaling=rope)


def test_two_names_of_one_value_must_agree():
    raw = copy.deepcopy(PUBLISHED["omni-3b"])
    thinker = raw["thinker_config"]
    thinker["image_token_id"] = thinker["image_token_index"]
    read_config(raw)
    thinker["image_token_id"] = 7
    with pytest.raises(ValueError, match=r"thinker_config\.image_token_id: .*image_token_index=151655"):
        read_config(raw)


@pytest.mark.parametrize("key", sorted(keys.DECODER_SIZES))
def test_sections_that_hold_sections_read_no_sizes(key: str):
    """A public Omni-7B fine-tune has `hidden_size` in its outermost section; training frameworks put it there."""
    raw = PUBLISHED["omni-7b"]
    expected = read_config(raw)
    assert read_config({**raw, key: 7}) == expected
    assert read_config({**raw, "thinker_config": {**raw["thinker_config"], key: 7}}) == expected
    with pytest.raises(ValueError, match=r"\n  audio_config\.gadget: unknown key"):
        thinker = raw["thinker_config"]
        read_config({**thinker, "audio_config": {**thinker["audio_config"], "gadget": 7}})
