"""Hugging Face to avjax and back: the same names and the same bits, whatever the source looked like."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import avjax
from converters.convert import PROVENANCE, convert
from converters.export import export
from tests.converters.raw import (
    INDEX,
    RawTensor,
    copy_without_weights,
    edit_config,
    file_names,
    read_raw,
    rewritten,
    write_weights,
)
from tests.tiny_hf import CLASSES, TinyCheckpoint, write_checkpoint

Tensors = dict[str, RawTensor]


@pytest.fixture(scope="module")
def tied_vl(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    directory = tmp_path_factory.mktemp("tied") / "checkpoint"
    return write_checkpoint(directory, "qwen2_5_vl", tie_word_embeddings=True)


def there_and_back(source: Path) -> Path:
    convert(source, source.parent / "converted")
    export(source.parent / "converted", source.parent / "back")
    return source.parent / "back"


def unchanged(tensors: Tensors) -> Tensors:
    return tensors


def with_duplicate(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}


def whole(tensors: Tensors) -> Tensors:
    """The thinker among the other parts of a whole checkpoint."""
    other = RawTensor("F32", (2, 3), bytes(range(24)))
    return {
        "talker.model.embed_tokens.weight": other,
        **{f"thinker.{name}": tensor for name, tensor in tensors.items()},
        "talker.codec_head.weight": other,
        "token2wav.code2wav_bigvgan_model.conv_pre.weight": other,
    }


CASES: dict[str, tuple[str, Callable[[Tensors], Tensors], int]] = {
    "omni": ("omni", unchanged, 1),
    "omni-whole": ("omni", whole, 1),
    "omni-whole-shards": ("omni", whole, 4),
    "vl": ("vl", unchanged, 1),
    "vl-shards": ("vl", unchanged, 3),
    "vl-tied": ("tied_vl", unchanged, 1),
    "vl-tied-duplicate": ("tied_vl", with_duplicate, 1),
    "vl-tied-duplicate-shards": ("tied_vl", with_duplicate, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_names_and_bits_come_back(case: str, request: pytest.FixtureRequest, tmp_path: Path):
    family, change, num_shards = CASES[case]
    tiny: TinyCheckpoint = request.getfixturevalue(family)
    source = rewritten(tiny.directory, tmp_path / "source", change, num_shards)
    assert (source / INDEX).is_file() == (num_shards > 1)
    back = there_and_back(source)
    expected = {n: t for n, t in read_raw(source).items() if not n.startswith(("talker.", "token2wav."))}
    assert len(expected) == len(read_raw(tiny.directory)) + ("duplicate" in case)
    assert read_raw(back) == expected
    assert file_names(back) == file_names(source)


PATTERNS = {
    "F32": (np.uint32, [0x7FC12345, 0xFF812345, 0x80000000, 0x00000001, 0x7F800000]),
    "BF16": (np.uint16, [0x7FC5, 0xFF91, 0x8000, 0x0001, 0x7F80]),
    "F16": (np.uint16, [0x7E45, 0xFC11, 0x8000, 0x0001, 0x7C00]),
}


@pytest.mark.parametrize("family", ["omni", "vl"])
@pytest.mark.parametrize("dtype", PATTERNS)
def test_every_bit_pattern_survives(
    family: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """NaN payloads, signalling NaNs, negative zeros and subnormals, in all tensors, through small blocks of rows."""
    monkeypatch.setattr("avjax.checkpoint.matching.ROW_BYTES", 1000)  # the embedding is then moved in many blocks
    kind, special = PATTERNS[dtype]
    rng = np.random.default_rng(0)

    def scramble(tensors: Tensors) -> Tensors:
        scrambled = {}
        for name, tensor in tensors.items():
            bits = rng.integers(0, np.iinfo(kind).max, tensor.shape, kind, endpoint=True)
            bits.reshape(-1)[: len(special)] = special
            scrambled[name] = RawTensor(dtype, tensor.shape, bits.tobytes())
        return scrambled

    source = rewritten(request.getfixturevalue(family).directory, tmp_path / "source", scramble)
    assert read_raw(there_and_back(source)) == read_raw(source)


def test_a_checkpoint_of_several_dtypes_keeps_each(omni: TinyCheckpoint, tmp_path: Path):
    """Only the tensors of one stack have to agree."""

    def narrow_norm(tensors: Tensors) -> Tensors:
        norm = tensors["model.norm.weight"]
        half = np.frombuffer(norm.data, np.float32).astype(np.float16)
        return {**tensors, "model.norm.weight": RawTensor("F16", norm.shape, half.tobytes())}

    source = rewritten(omni.directory, tmp_path / "source", narrow_norm)
    assert read_raw(there_and_back(source)) == read_raw(source)


def test_an_export_of_several_shards_has_an_index(vl: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("converters.export.SHARD_BYTES", 100_000)
    source = rewritten(vl.directory, tmp_path / "source", unchanged)
    back = there_and_back(source)
    assert read_raw(back) == read_raw(source)
    index = json.loads((back / INDEX).read_text())
    shards = {path.name for path in back.glob("*.safetensors")}
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == shards
    for name in shards:
        (one := tmp_path / "one" / name).mkdir(parents=True)
        (one / name).symlink_to(back / name)
        assert set(read_raw(one)) == {n for n, shard in index["weight_map"].items() if shard == name}
    assert index["metadata"]["total_size"] == sum(len(t.data) for t in read_raw(source).values())
    loaded = CLASSES["qwen2_5_vl"][1].from_pretrained(back)
    chex.assert_trees_all_equal(dict(loaded.state_dict()), dict(vl.torch_model.state_dict()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["omni", "vl", "tied_vl"])
def test_both_kinds_of_directory_load_the_same(family: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path):
    source = request.getfixturevalue(family).directory
    convert(source, tmp_path / "converted")
    direct, converted = avjax.load(source, dtype=dtype), avjax.load(tmp_path / "converted", dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(converted.network)} == {jnp.dtype(dtype)}
    chex.assert_trees_all_equal(converted.network, direct.network)
    assert converted.config == direct.config
    assert converted.generation == direct.generation


@pytest.mark.exhaustive
def test_a_bfloat16_checkpoint_loads_in_both_dtypes(tmp_path: Path):
    tiny = write_checkpoint(tmp_path / "source", "qwen2_5_omni", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in read_raw(tiny.directory).values()} == {"BF16"}
    assert read_raw(there_and_back(tiny.directory)) == read_raw(tiny.directory)
    embedding = tiny.torch_model.get_input_embeddings().weight.float().numpy()
    for dtype in ("float32", "bfloat16"):
        direct, converted = avjax.load(tiny.directory, dtype=dtype), avjax.load(tmp_path / "converted", dtype=dtype)
        chex.assert_trees_all_equal(converted.network, direct.network)
        np.testing.assert_array_equal(np.float32(converted.network.decoder.embed.embedding[...]), embedding)


def test_the_directory_says_where_it_came_from(omni: TinyCheckpoint, tmp_path: Path):
    source = rewritten(omni.directory, tmp_path / "source", whole)
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n# A model\n")
    edit_config(source, lambda raw: {**raw, "_commit_hash": "f75b40e3da2003cdd6e1829b1f420ca70797c34e"})
    convert(source, tmp_path / "converted")
    written = json.loads((tmp_path / "converted" / PROVENANCE).read_text())
    assert written == {
        "source": str(source),
        "revision": "f75b40e3da2003cdd6e1829b1f420ca70797c34e",
        "licence": "qwen-research",
        "prefix": "thinker.",
        "spellings": {},
        "aliases": [],
        "skipped_tensors": 3,
        "avjax_version": version("avjax"),
    }
    copied = {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    }
    assert copied <= file_names(tmp_path / "converted")
    for name in file_names(source):
        assert (tmp_path / "converted" / name).read_bytes() == (source / name).read_bytes()
    assert not list((tmp_path / "converted").glob("**/*.safetensors"))


def test_a_licence_file_is_copied_and_named(vl: TinyCheckpoint, tmp_path: Path):
    source = rewritten(vl.directory, tmp_path / "source", unchanged)
    (source / "LICENSE").write_text("\n   Apache License\n   Version 2.0\n")
    convert(source, tmp_path / "converted")
    written = json.loads((tmp_path / "converted" / PROVENANCE).read_text())
    assert written["licence"] == "Apache License"
    assert written["revision"] is None
    assert (tmp_path / "converted" / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()


@pytest.mark.parametrize("case", ["omni", "omni-whole", "vl", "vl-tied", "vl-tied-duplicate"])
def test_hf_computes_the_same_logits(case: str, request: pytest.FixtureRequest, tmp_path: Path):
    family, change, num_shards = CASES[case]
    tiny: TinyCheckpoint = request.getfixturevalue(family)
    source = rewritten(tiny.directory, tmp_path / "source", change, num_shards)
    model_class = type(tiny.torch_model)
    loaded = model_class.from_pretrained(there_and_back(source), attn_implementation="eager").eval()
    ids = torch.tensor(np.random.default_rng(0).integers(0, tiny.ids["endoftext"], (1, 40)))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(loaded(**batch).logits, tiny.torch_model(**batch).logits)


def test_what_was_converted_from_a_hub_cache_keeps_its_commit(
    omni: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub's cache, laid out as its client leaves it, is enough to convert by hub id without a network."""
    commit = "ae9e1690543ffd5c0221dc27f79834d0294cba00"
    model = tmp_path / "cache" / "models--someone--tiny"
    snapshot = copy_without_weights(omni.directory, model / "snapshots" / commit)
    write_weights(snapshot, read_raw(omni.directory))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    convert("someone/tiny", tmp_path / "converted")
    written = json.loads((tmp_path / "converted" / PROVENANCE).read_text())
    assert (written["source"], written["revision"]) == ("someone/tiny", commit)
