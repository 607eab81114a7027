"""Quantised weights, adapters and GGUF: refused as what they are, with what to do; nothing is written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from avjax.checkpoint.huggingface import CheckpointError
from avjax.checkpoint.loading import load_processor
from avjax.families.registry import read_config
from converters.convert import convert
from tests.converters.raw import ITEM_BYTES, RawTensor, edit_config, read_raw, rewritten
from tests.converters.targets import refusal
from tests.hub_configs import HUB_OMNI, HUB_VL
from tests.tiny_hf import TinyCheckpoint

Tensors = dict[str, RawTensor]
WEIGHT = "model.layers.2.mlp.up_proj.weight"
MODULE = WEIGHT.removesuffix(".weight")


def packed(tensors: Tensors, **extras: str) -> Tensors:
    """One layer's weight in the parts of a quantised one, by suffix and dtype; an empty suffix is the weight."""
    added = {}
    for suffix, dtype in extras.items():
        name = WEIGHT if suffix == "weight" else f"{MODULE}.{suffix.replace('__dot__', '.')}"
        size = ITEM_BYTES[dtype]
        added[name] = RawTensor(dtype, (8, 16), bytes(128 * size))
    return {**{n: t for n, t in tensors.items() if n != WEIGHT}, **added}


QUANTIZED: dict[str, tuple[dict[str, str], str]] = {
    "awq": ({"qweight": "I32", "qzeros": "I32", "scales": "F16"}, "AWQ"),
    "gptq": ({"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}, "GPTQ"),
    "fp8": ({"weight": "F8_E4M3", "weight_scale_inv": "F32"}, "FP8"),
    "fp8 without scales": ({"weight": "F8_E4M3"}, "FP8"),
    "fp8 with static scales": ({"weight": "F8_E4M3", "weight_scale": "F32", "input_scale": "F32"}, "FP8 or INT8"),
    "bitsandbytes 4 bits": (
        {
            "weight": "U8",
            "weight__dot__absmax": "F32",
            "weight__dot__quant_map": "F32",
            "weight__dot__quant_state__dot__bitsandbytes__nf4": "U8",
        },
        "bitsandbytes",
    ),
    "bitsandbytes 8 bits": ({"weight": "I8", "SCB": "F32"}, "bitsandbytes"),
    "compressed-tensors": (
        {"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"},
        "compressed-tensors",
    ),
    "mlx": ({"weight": "U32", "scales": "BF16", "biases": "BF16"}, "MLX"),
    "bytes": ({"weight": "U8"}, "packed as U8"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantised_tensors(kind: str, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    extras, method = QUANTIZED[kind]
    message = refusal(rewritten(omni.directory, tmp_path / "source", lambda t: packed(t, **extras)), target)
    assert re.search(rf"got quantised ones \({re.escape(method)}\), such as model\.layers\.2\.mlp", message), message
    assert "dequantise" in message
    assert "quantised from" in message


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq, 4 bits"),
    "gptq": ({"quant_method": "gptq", "bits": 8}, "gptq, 8 bits"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_8bit": False}, "bitsandbytes, 4"),
    "bitsandbytes of old": ({"load_in_8bit": True}, "unnamed, 8 bits"),
    "compressed-tensors": ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    "none we know": ({"quant_method": "quarks", "bits": 3}, "quarks, 3 bits"),
    "mlx": ({"group_size": 64, "bits": 4}, "unnamed, 4 bits"),
}


@pytest.mark.parametrize("section", [(), ("text_config",)])
@pytest.mark.parametrize("kind", SETTINGS)
def test_quantisation_settings(kind: str, section: tuple[str, ...], omni: TinyCheckpoint, tmp_path: Path, target: Path):
    """Whatever the tensors are: HF would quantise weights in full precision when it loads them."""
    settings, named = SETTINGS[kind]
    key = "quantization" if kind == "mlx" else "quantization_config"
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)

    def add(raw: dict) -> dict:
        node = raw
        for name in section:
            node = node[name]
        node[key] = settings
        return raw

    edit_config(source, add)
    message = refusal(source, target)
    path = ".".join((*section, key))
    assert re.search(rf"config\.json, {re.escape(path)}: .*got quantised ones \({named}", message), message
    assert "remove that key" in message


def test_settings_and_tensors_are_named_together(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    extras, _ = QUANTIZED["awq"]
    source = rewritten(omni.directory, tmp_path / "source", lambda t: packed(t, **extras))
    edit_config(source, lambda raw: {**raw, "quantization_config": SETTINGS["awq"][0]})
    message = refusal(source, target)
    assert "(awq, 4 bits), such as model.layers.2.mlp.up_proj.q" in message
    assert "I32" in message
    assert "remove that key" not in message


@pytest.mark.parametrize("raw", [HUB_OMNI, HUB_VL], ids=["omni", "vl"])
def test_a_config_alone_names_its_quantisation(raw: dict[str, Any]):
    read_config({**raw, "quantization_config": None})
    with pytest.raises(ValueError, match=r"\n  quantization_config: .*quantised ones \(awq, 4 bits\)"):
        read_config({**raw, "quantization_config": SETTINGS["awq"][0]})


def test_parts_that_nobody_reads_may_be_anything(omni: TinyCheckpoint, tmp_path: Path):
    """A talker's integers stop no thinker."""
    extra = {"talker.model.codes": RawTensor("I64", (1,), bytes(8)), "talker.a.weight": RawTensor("U8", (1,), bytes(1))}

    def whole(tensors: Tensors) -> Tensors:
        return {**{f"thinker.{name}": tensor for name, tensor in tensors.items()}, **extra}

    source = rewritten(omni.directory, tmp_path / "source", whole)
    assert convert(source, tmp_path / "converted").skipped == 2


ADAPTER = {"base_model_name_or_path": "Qwen/Qwen2.5-Omni-7B", "peft_type": "LORA", "r": 8, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_refused_with_its_base_model(weights: str, tmp_path: Path, target: Path):
    (source := tmp_path / "adapter").mkdir()
    (source / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (source / weights).write_bytes(b"")
    message = refusal(source, target)
    assert "got a LORA adapter for the base model 'Qwen/Qwen2.5-Omni-7B'" in message
    assert "merge_and_unload()" in message
    with pytest.raises(CheckpointError, match="LORA adapter"):
        load_processor(source)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_an_adapter_whose_settings_say_nothing(content: str | None, tmp_path: Path, target: Path):
    (source := tmp_path / "adapter").mkdir()
    if content is not None:
        (source / "adapter_config.json").write_text(content)
    (source / "adapter_model.safetensors").write_bytes(b"")
    message = refusal(source, target)
    assert "got a PEFT adapter whose base model is not named" in message
    assert "merge_and_unload()" in message


def test_an_adapter_beside_a_checkpoint_is_not_passed_over(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    """transformers would add it to the weights in silence."""
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    (source / "adapter_config.json").write_text(json.dumps(ADAPTER))
    assert "LORA adapter for the base model 'Qwen/Qwen2.5-Omni-7B'" in refusal(source, target)


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_B.default.weight", "base_layer.weight"])
def test_unmerged_layers_of_an_adapter(name: str, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    wrapped = f"base_model.model.{MODULE}.{name}"
    source = rewritten(omni.directory, tmp_path / "source", lambda t: {**t, wrapped: t[WEIGHT]})
    message = refusal(source, target)
    assert wrapped in message
    assert "merge_and_unload()" in message


@pytest.mark.parametrize("with_config", [True, False])
def test_gguf(with_config: bool, omni: TinyCheckpoint, tmp_path: Path, target: Path):
    (source := tmp_path / "gguf").mkdir()
    for name in ("model-Q4_K_M.gguf", "mmproj-F16.gguf"):
        (source / name).write_bytes(b"GGUF")
    if with_config:
        shutil.copyfile(omni.directory / "config.json", source / "config.json")
    message = refusal(source, target)
    assert "GGUF (mmproj-F16.gguf, model-Q4_K_M.gguf)" in message
    assert "quantised from" in message
    message = refusal(source / "model-Q4_K_M.gguf", target)
    assert "GGUF (model-Q4_K_M.gguf)" in message


def test_gguf_beside_safetensors_is_passed_over(omni: TinyCheckpoint, tmp_path: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    (source / "model-Q8_0.gguf").write_bytes(b"GGUF")
    convert(source, tmp_path / "converted")
    assert not list((tmp_path / "converted").glob("*.gguf"))


def test_weights_in_bin_keep_their_advice(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    source = rewritten(omni.directory, tmp_path / "source", lambda t: t)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "expected *.safetensors, found none; convert .bin or .pt weights first" in refusal(source, target)


def test_every_tensor_of_a_plain_checkpoint_is_plain(omni: TinyCheckpoint, vl: TinyCheckpoint):
    """The patterns above match no name that a checkpoint in full precision has."""
    from avjax.checkpoint.refused_formats import refuse_quantized

    for tiny in (omni, vl):
        refuse_quantized(tiny.directory, {}, {name: t.dtype for name, t in read_raw(tiny.directory).items()})
