"""The key tables against the published sizes: every name and shape of HF's modules, without weights."""

import collections
from pathlib import Path

import numpy as np
import pytest

from avjax.checkpoint.huggingface import CheckpointError, Source, TensorInfo
from avjax.checkpoint.matching import Matching, match_parameters
from avjax.families.registry import abstract_network, family_of, read_config
from avjax.models.parameters import parameter_paths
from tests.converters import published
from tests.tiny_hf import TinyCheckpoint

TWO_BYTES = np.dtype(np.float16)  # nothing is read, only counted

# What the hub's pages of Qwen2.5-VL-3B-Instruct and -7B-Instruct count; Omni's count the talker too.
NUM_PARAMETERS = {"vl-3b": 3_754_622_976, "vl-7b": 8_292_166_656}


def source_of(shapes: dict[str, tuple[int, ...]], name: str) -> Source:
    tensors = {key: TensorInfo(Path("absent.safetensors"), shape, TWO_BYTES) for key, shape in shapes.items()}
    return Source(Path("absent"), published.hf_config(name).to_dict(), tensors, None)


@pytest.fixture(scope="module", params=list(published.SIZES))
def sized(request: pytest.FixtureRequest) -> tuple[str, dict[str, tuple[int, ...]]]:
    return request.param, published.shapes(published.hf_config(request.param))


def planned(name: str, shapes: dict[str, tuple[int, ...]]) -> Matching:
    source = source_of(shapes, name)
    return match_parameters(source, read_config(source.config))


def test_every_tensor_has_one_place(sized: tuple[str, dict[str, tuple[int, ...]]]):
    name, shapes = sized
    plan = planned(name, shapes)
    reads = collections.Counter(part.source for p in plan.parameters.values() for part in p.parts)
    assert reads == collections.Counter(shapes.keys()), "each tensor is read by one rule, once"
    for path, parameter in plan.parameters.items():
        for part in parameter.parts:
            assert parameter.rule.source_shape(parameter.part_shape) == shapes[part.source], path
    assert plan.skipped == 0
    assert plan.prefix == ""


def test_every_parameter_is_filled_to_the_last_element(sized: tuple[str, dict[str, tuple[int, ...]]]):
    name, shapes = sized
    plan = planned(name, shapes)
    config = read_config(published.hf_config(name).to_dict())
    wanted = {path: tuple(leaf.shape) for path, leaf in parameter_paths(abstract_network(config)).items()}
    assert {path: p.shape for path, p in plan.parameters.items()} == wanted
    assert sum(p.size for p in plan.parameters.values()) == sum(int(np.prod(s)) for s in shapes.values())
    if name in NUM_PARAMETERS:
        assert sum(p.size for p in plan.parameters.values()) == NUM_PARAMETERS[name]
    assert config.decoder.tied_embeddings == (name == "vl-3b")
    assert ("lm_head.weight" in shapes) != config.decoder.tied_embeddings


def test_names_are_the_published_ones(sized: tuple[str, dict[str, tuple[int, ...]]]):
    _, shapes = sized
    assert {key.split(".")[0] for key in shapes} <= {"model", "visual", "audio_tower", "lm_head"}
    assert "model.layers.0.self_attn.q_proj.weight" in shapes
    assert "visual.blocks.31.attn.proj.weight" in shapes


@pytest.mark.parametrize("name", ["omni-3b", "vl-3b"])
def test_one_wrong_name_or_shape_is_seen(name: str):
    """The tests above could pass by matching nothing; these sizes must also be able to fail."""
    shapes = published.shapes(published.hf_config(name))
    key = "visual.blocks.17.mlp.down_proj.weight"
    out, inner = shapes[key]
    for damaged in (
        {k: v for k, v in shapes.items() if k != key},
        {**shapes, key: (inner, out)},
        {**shapes, key.replace("17", "32"): (out, inner)},
    ):
        with pytest.raises(CheckpointError, match=r"visual\.blocks\.(17|32)\.mlp\.down_proj\.weight"):
            planned(name, damaged)


@pytest.mark.parametrize("family", ["omni", "vl"])
def test_meta_names_are_what_save_pretrained_writes(family: str, request: pytest.FixtureRequest):
    """The names above come from HF's internals; here they are held against a file that HF wrote."""
    from tests.converters.raw import read_raw

    tiny: TinyCheckpoint = request.getfixturevalue(family)
    written = {key: tensor.shape for key, tensor in read_raw(tiny.directory).items()}
    assert published.shapes(tiny.torch_model.config) == written


def test_the_prefix_of_a_whole_checkpoint_is_taken_off():
    shapes = published.shapes(published.hf_config("omni-3b"))
    whole = {f"thinker.{key}": shape for key, shape in shapes.items()}
    whole["talker.model.layers.0.mlp.up_proj.weight"] = (4, 4)
    whole["token2wav.code2wav_dit_model.proj.bias"] = (4,)
    plan = planned("omni-3b", whole)
    assert plan.prefix == "thinker."
    assert plan.skipped == 2
    config = read_config(published.hf_config("omni-3b").to_dict())
    table = family_of(config).key_table(config)
    assert len(plan.parameters) == len(table.rules)
