"""Checkpoints that several versions of transformers saved themselves: read, converted and captioned as those do."""

from pathlib import Path

import numpy as np
import pytest

import avjax
from converters.convert import convert
from converters.export import export
from converters.verify import verify
from tests.converters.raw import file_names, read_raw, rewritten
from tests.versions import inputs
from tests.versions.saved import VERSIONS, Reference, references

REFERENCES = references()
LOGIT_TOLERANCE = 1e-4
CLASSES = {"vl", "thinker", "omni"}

each = pytest.mark.parametrize("reference", REFERENCES, ids=str)


def of(version: str, name: str) -> Reference:
    return next(r for r in REFERENCES if (r.version, r.directory.name) == (version, name))


def assert_captions_alike(model: avjax.Model, reference: Reference) -> None:
    """The logits of the version itself, token for token."""
    prompt = model.prompt_from_hf(inputs.batch(audio=reference.kind != "vl"))
    generation = avjax.generate(model, prompt, max_new_tokens=inputs.GENERATED)
    assert generation.tokens.tolist() == reference.tokens
    np.testing.assert_allclose(generation.logits, reference.logits, atol=LOGIT_TOLERANCE, rtol=0)


def test_every_version_saved_every_class_that_it_has():
    kinds = {version: {r.kind for r in REFERENCES if r.version == version} for version in VERSIONS}
    assert kinds.pop("4.50.3") == {"vl"}, "Omni came with 4.52"
    assert set(kinds) == {"4.52.4", "4.57.6", "5.0.0", "5.24.0"}
    assert all(classes == CLASSES for classes in kinds.values())
    assert {r.tied for r in REFERENCES if r.kind == "vl"} == {True, False}
    assert {r.tied for r in REFERENCES if r.kind == "thinker"} == {True, False}


@each
def test_the_logits_are_those_of_the_version_that_saved(reference: Reference):
    model = avjax.load(reference.directory)
    assert model.config.decoder.tied_embeddings == reference.tied
    assert_captions_alike(model, reference)


CONVERTED = [r for r in REFERENCES if r.directory.name in ("vl-tied-shards", "thinker-tied", "omni-shards")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("reference", CONVERTED, ids=str)
def test_a_conversion_captions_alike_and_comes_back_bit_for_bit(reference: Reference, tmp_path: Path):
    plan = convert(reference.directory, tmp_path / "converted")
    assert_captions_alike(avjax.load(tmp_path / "converted"), reference)
    export(tmp_path / "converted", tmp_path / "back")
    tensors = read_raw(reference.directory)
    expected = {name: t for name, t in tensors.items() if not name.startswith(("talker.", "token2wav."))}
    assert plan.skipped == len(tensors) - len(expected)
    assert (plan.skipped > 0) == (reference.kind == "omni")
    assert read_raw(tmp_path / "back") == expected
    assert file_names(tmp_path / "back") == file_names(reference.directory)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("version", "name"), [("4.52.4", "omni-shards"), ("4.57.6", "vl-tied-shards")], ids=str)
def test_older_files_verify_against_the_installed_transformers(version: str, name: str):
    rows = list(verify(of(version, name).directory))
    assert len(rows) >= 8
    assert [row for row in rows if not row.passes] == []


SPELLINGS = {
    "state dict of 4.52 and later": {"model.": "model.language_model.", "visual.": "model.visual."},
    "audio tower too": {
        "model.": "model.language_model.",
        "visual.": "model.visual.",
        "audio_tower.": "model.audio_tower.",
    },
    "language model apart": {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
    "base model alone": {"model.": "language_model."},
}


def respelled(name: str, spellings: dict[str, str], prefix: str) -> str:
    stripped = name.removeprefix(prefix)
    if name != prefix + stripped:
        return name
    start = next((start for start in spellings if stripped.startswith(start)), None)
    return name if start is None else prefix + spellings[start] + stripped.removeprefix(start)


@pytest.mark.parametrize("name", ["vl", "omni-shards"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_of_the_names_are_read(name: str, spelling: str, tmp_path: Path):
    """And are there again after an export, with buffers left out that nobody reads."""
    reference = of("4.57.6", name)
    prefix = "thinker." if reference.kind == "omni" else ""
    source = rewritten(
        reference.directory,
        tmp_path / "source",
        lambda tensors: {respelled(n, SPELLINGS[spelling], prefix): t for n, t in tensors.items()},
        num_shards=2,
    )
    assert_captions_alike(avjax.load(source), reference)
    convert(source, tmp_path / "converted")
    export(tmp_path / "converted", tmp_path / "back")
    expected = {n: t for n, t in read_raw(source).items() if not n.startswith(("talker.", "token2wav."))}
    assert read_raw(tmp_path / "back") == expected


def test_names_spelled_two_ways_are_named(tmp_path: Path):
    """Most tensors decide; the others are not guessed at."""
    stray = "model.layers.1.mlp.up_proj.weight"
    spelling = {"model.": "language_model."}
    source = rewritten(
        of("5.24.0", "vl").directory,
        tmp_path / "source",
        lambda tensors: {n if n == stray else respelled(n, spelling, ""): t for n, t in tensors.items()},
    )
    with pytest.raises(ValueError, match=rf"{stray}: no rule reads this tensor") as refused:
        avjax.load(source)
    assert "source tensor 'language_model.layers.1.mlp.up_proj.weight' is absent" in str(refused.value)


BUFFERS = [
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "model.language_model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "visual.rotary_pos_emb.inv_freq",
    "model.visual.rotary_pos_emb.inv_freq",
    "audio_tower.positional_embedding.positional_embedding",
]


@pytest.mark.parametrize("name", ["vl", "omni-shards"])
def test_stray_buffers_are_skipped(name: str, tmp_path: Path):
    reference = of("4.52.4", name)
    prefix = "thinker." if reference.kind == "omni" else ""
    buffers = [b for b in BUFFERS if reference.kind == "omni" or "audio" not in b]

    def add(tensors: dict) -> dict:
        any_tensor = next(iter(tensors.values()))
        return {**tensors, **{prefix + buffer: any_tensor for buffer in buffers}}

    source = rewritten(reference.directory, tmp_path / "source", add, num_shards=2)
    assert_captions_alike(avjax.load(source), reference)
    before = sum(not n.startswith("thinker.") for n in read_raw(reference.directory)) if prefix else 0
    assert convert(source, tmp_path / "converted").skipped == before + len(buffers)


def test_a_head_spelled_out_though_tied(tmp_path: Path):
    reference = of("4.57.6", "thinker-tied")
    source = rewritten(
        reference.directory,
        tmp_path / "source",
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]},
    )
    assert_captions_alike(avjax.load(source), reference)
