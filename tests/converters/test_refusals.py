"""Damaged or unfit checkpoints: one message names everything that is wrong, and nothing is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import avjax
from converters.convert import convert
from tests.converters.raw import INDEX, RawTensor, edit_config, read_raw, rewritten
from tests.converters.targets import assert_nothing_was_written, refusal
from tests.tiny_hf import TinyCheckpoint, write_checkpoint

Tensors = dict[str, RawTensor]
LAYER = "model.layers.2.mlp.up_proj.weight"


def transposed(tensor: RawTensor) -> RawTensor:
    return RawTensor(tensor.dtype, tensor.shape[::-1], tensor.data)


def narrowed(tensor: RawTensor) -> RawTensor:
    data = np.frombuffer(tensor.data, np.float32).astype(np.float16).tobytes()
    return RawTensor("F16", tensor.shape, data)


def without(tensors: Tensors, *names: str) -> Tensors:
    assert set(names) <= tensors.keys()
    return {name: tensor for name, tensor in tensors.items() if name not in names}


DAMAGES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (
        lambda t: without(t, LAYER),
        rf"decoder\.layers\.mlp\.up\.kernel: source tensor '{re.escape(LAYER)}' is absent$",
    ),
    "missing in several layers": (
        lambda t: without(t, LAYER, LAYER.replace("2", "5")),
        rf"decoder\.layers\.mlp\.up\.kernel: source tensor '{re.escape(LAYER)}' is absent \(2 in all\)$",
    ),
    "extra": (
        lambda t: {**t, "model.layers.8.mlp.up_proj.weight": t[LAYER]},
        r"model\.layers\.8\.mlp\.up_proj\.weight: no rule reads this tensor$",
    ),
    "misshapen": (
        lambda t: {**t, LAYER: transposed(t[LAYER])},
        rf"{re.escape(LAYER)}: expected shape \[128, 64\], got \[64, 128\]$",
    ),
    "of two dtypes in a stack": (
        lambda t: {**t, LAYER: narrowed(t[LAYER])},
        r"decoder\.layers\.mlp\.up\.kernel: its tensors have several dtypes: float16, float32$",
    ),
    "of integers": (
        lambda t: {**t, "model.norm.weight": RawTensor("I64", (32,), t["model.norm.weight"].data)},
        r"model\.norm\.weight: expected a float tensor, got I64$",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_tensor_is(damage: str, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    change, expected = DAMAGES[damage]
    message = refusal(rewritten(omni.directory, tmp_path / "source", change), target)
    assert re.search(expected, message, re.MULTILINE), message
    assert str(tmp_path / "source") in message
    assert len([line for line in message.splitlines() if line.startswith("  ")]) == 1


def test_everything_wrong_is_in_one_message(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    names = ["extra", "missing"]

    def damage(tensors: Tensors) -> Tensors:
        tensors = {**tensors, "model.norm.weight": RawTensor("F32", (32,), bytes(128))}
        del tensors["audio_tower.conv1.bias"]
        del tensors["lm_head.weight"]
        tensors["visual.blocks.1.attn.q.weight"] = narrowed(tensors["visual.blocks.1.attn.q.weight"])
        for name in names:
            tensors = DAMAGES[name][0](tensors)
        return tensors

    message = refusal(rewritten(omni.directory, tmp_path / "source", damage), target)
    expected = [
        r"audio\.conv1\.bias: source tensor 'audio_tower\.conv1\.bias' is absent",
        r"decoder\.layers\.mlp\.up\.kernel: source tensor 'model\.layers\.2\.mlp\.up_proj\.weight' is absent",
        r"decoder\.unembed\.embedding: source tensor 'lm_head\.weight' is absent",
        r"model\.layers\.8\.mlp\.up_proj\.weight: no rule reads this tensor",
        r"model\.norm\.weight: expected shape \[64\], got \[32\]",
        r"vision\.layers\.attn\.qkv\.kernel: its tensors have several dtypes: float16, float32",
    ]
    for line in expected:
        assert re.search(rf"^  {line}$", message, re.MULTILINE), line
    assert len([line for line in message.splitlines() if line.startswith("  ")]) == len(expected)


def test_a_config_of_another_size_is_refused(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    """Weights of 8 layers under a config of 7: every tensor of the eighth is named."""
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)

    def fewer(raw: dict) -> dict:
        text = {**raw["text_config"], "num_hidden_layers": 7}
        return {**raw, "text_config": {k: v for k, v in text.items() if k != "layer_types"}}

    edit_config(source, fewer)
    message = refusal(source, target)
    unread = {n for n in read_raw(source) if n.startswith("model.layers.7.")}
    assert len(unread) == 12
    assert unread == set(re.findall(r"^  (\S+): no rule reads this tensor$", message, re.MULTILINE))


def test_a_tied_checkpoint_whose_head_differs_is_refused(tmp_path: Path, target: Path):
    tiny = write_checkpoint(tmp_path / "tied", "qwen2_5_vl", tie_word_embeddings=True)

    def change_last_value(tensors: Tensors) -> Tensors:
        embedding = tensors["model.embed_tokens.weight"]
        return {**tensors, "lm_head.weight": RawTensor("F32", embedding.shape, embedding.data[:-1] + b"\x99")}

    message = refusal(rewritten(tiny.directory, tmp_path / "source", change_last_value), target)
    assert re.search(r"^  lm_head\.weight: the config ties it to model\.embed_tokens\.weight", message, re.MULTILINE)
    assert "tie_word_embeddings" in message


@pytest.mark.parametrize("kept", [0.0, 0.00001, 0.3, 0.999])
def test_a_truncated_shard_is_named(kept: float, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t, num_shards=3)
    shard = source / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content))])
    message = refusal(source, target)
    assert re.search(rf"^  {shard.name}: truncated or damaged", message, re.MULTILINE)
    assert len([line for line in message.splitlines() if line.startswith("  ")]) == 1, message


def test_all_damaged_files_are_in_one_message(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    """A truncated shard, an absent one, an integer tensor, and a tensor that is not where the index puts it."""

    def integer(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": RawTensor("I64", (1,), bytes(8))}

    source = rewritten(omni.directory, tmp_path / "source", integer, num_shards=4)
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    shards = sorted(set(weight_map.values()) - {weight_map["lm_head.weight"]})
    (source / shards[0]).unlink()
    (source / shards[1]).write_bytes((source / shards[1]).read_bytes()[:-1])
    (source / INDEX).write_text(json.dumps({"weight_map": {**weight_map, "model.ghost": shards[2]}}))
    message = refusal(source, target)
    for line in (
        rf"{shards[0]}: the index names this shard, but it is missing",
        rf"{shards[1]}: truncated or damaged .*",
        r"lm_head\.weight: expected a float tensor, got I64",
        rf"model\.ghost: the index puts it in {shards[2]}, but it is not there",
    ):
        assert re.search(rf"^  {line}$", message, re.MULTILINE), (line, message)
    assert len([line for line in message.splitlines() if line.startswith("  ")]) == 4, message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_named(content: str, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t, num_shards=2)
    (source / INDEX).write_text(content)
    assert INDEX in refusal(source, target)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_config_is_named(content: str, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    (source / "config.json").write_text(content)
    assert "config.json" in refusal(source, target)


def test_a_tensor_in_two_shards_is_named(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    (source / "other.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    message = refusal(source, target)
    assert "  lm_head.weight: stored twice, in model.safetensors and other.safetensors" in message


def test_a_directory_without_config_or_weights_says_which(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "expected *.safetensors, found none" in refusal(source, target)
    (source / "config.json").unlink()
    assert "expected config.json, found none" in refusal(source, target)


def test_a_config_key_that_no_model_reads_stops_a_conversion(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    edit_config(source, lambda raw: {**raw, "text_config": {**raw["text_config"], "logit_scale": 2.0}})
    with pytest.raises(ValueError, match=r"text_config\.logit_scale: unknown key"):
        convert(source, target)
    assert_nothing_was_written(target)


PATHS = ["neither/here/nor/there", "nowhere", "../no_such_directory", "/no/such/directory", "a--b/c"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_neither_directory_nor_hub_id(name: str, target: Path):
    for call in (lambda: convert(name, target), lambda: avjax.load(name)):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)}: no such directory.*directory"):
            call()
    assert_nothing_was_written(target)


def test_a_file_is_no_checkpoint(omni: TinyCheckpoint, target: Path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such directory"):
        convert(omni.directory / "model.safetensors", target)


def test_a_hub_id_while_offline(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in (lambda: convert("someone/tiny", target), lambda: avjax.load("someone/tiny")):
        with pytest.raises(FileNotFoundError, match=r"someone/tiny: no such directory, and no such model on the hub"):
            call()
    assert_nothing_was_written(target)
