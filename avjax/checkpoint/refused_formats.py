"""What a directory may hold instead of a checkpoint in full precision, refused as what it is: with what to do."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avjax.families.section import QUANTIZATION, quantization_text

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Before the weights of a model that peft wraps.
ADAPTER_TENSORS = re.compile(
    r".*\.(lora_[A-Z]\w*|lora_embedding_[AB]|lora_magnitude_vector|base_layer|hada_\w+)(\..*)?"
)

# Tensors that only one way of quantising has beside the weights; the first that matches gives the name.
SIGNATURES: tuple[tuple[str, str], ...] = (
    ("bitsandbytes", r".*\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|quant_state\..*)"),
    ("compressed-tensors", r".*\.(weight_packed|weight_shape|weight_zero_point|weight_g_idx)"),
    ("GPTQ", r".*\.g_idx"),
    ("AWQ", r".*\.(qweight|qzeros)"),
    ("FP8", r".*\.weight_scale_inv"),
    ("FP8 or INT8", r".*\.(weight_scale|input_scale|activation_scale|weight_scale_2)"),
    ("MLX", r".*\.(scales|biases)"),
)
FLOATS_OF_8_BITS = re.compile(r"F[48]\w*")
PACKED = re.compile(r"[UI](8|16|32)|F[468]\w*")  # dtypes of weights that are no numbers yet
QUANTIZATION_ADVICE = (
    "avjax computes with the weights in full precision: use the checkpoint that this one was quantised from, or "
    "dequantise it first with the tool that made it (bitsandbytes: model.dequantize())"
)


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names every file or tensor that is wrong."""


def refuse_other_formats(directory: Path) -> None:
    """Refuses adapters, and weights in GGUF.

    Raises:
      CheckpointError: the directory holds one of them; the message says which, and what to do.
    """
    if (directory / ADAPTER).is_file() or any((directory / name).is_file() for name in ADAPTER_WEIGHTS):
        raise CheckpointError(_adapter_text(directory))
    packed = sorted(path.name for path in directory.glob("*.gguf"))
    if packed and not any([*directory.glob("*.safetensors"), *directory.glob("*.bin")]):
        refuse_gguf(directory, ", ".join(packed))


def refuse_gguf(path: Path, names: str) -> None:
    raise CheckpointError(
        f"{path}: expected a Hugging Face checkpoint in safetensors, got weights in GGUF ({names}), which is "
        f"llama.cpp's quantised format; {QUANTIZATION_ADVICE}"
    )


def _adapter_text(directory: Path) -> str:
    try:
        settings = json.loads((directory / ADAPTER).read_text())
    except (OSError, ValueError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    base, kind = settings.get("base_model_name_or_path"), settings.get("peft_type") or "PEFT"
    of_base = f"for the base model {base!r}" if base else "whose base model is not named"
    return (
        f"{directory}: expected a whole checkpoint, got a {kind} adapter {of_base}; merge it first: "
        f"PeftModel.from_pretrained(base, {str(directory)!r}).merge_and_unload().save_pretrained(merged), with the "
        f"{'' if base is None else f'model {base} as '}base, then convert the directory `merged`"
    )


def refuse_quantized(directory: Path, config: Mapping[str, Any], dtypes: Mapping[str, str]) -> None:
    """Refuses quantised weights, and the unmerged layers of an adapter.

    Args:
      config: the checkpoint's `config.json`.
      dtypes: of each tensor that a model would read, as safetensors names them.

    Raises:
      CheckpointError: the config or a tensor is of a quantised checkpoint; the method and a tensor are named.
    """
    wrapped = sorted(name for name in dtypes if ADAPTER_TENSORS.fullmatch(name))
    if wrapped:
        raise CheckpointError(
            f"{directory}: expected only a model's own weights, got adapter weights too ({wrapped[0]}, "
            f"{len(wrapped)} in all); merge them first with peft: model.merge_and_unload().save_pretrained(merged)"
        )
    example = _quantized_tensor(dtypes)
    declared = next((text for text in _declared(config)), None)
    if example is None and declared is None:
        return
    if example is None:
        advice = "; if these weights are in full precision after all, remove that key from config.json"
        raise CheckpointError(f"{directory}: {declared}; {QUANTIZATION_ADVICE}{advice}")
    name, method = example
    text = declared or f"expected weights in full precision, got quantised ones ({method})"
    raise CheckpointError(f"{directory}: {text}, such as {name} of dtype {dtypes[name]}; {QUANTIZATION_ADVICE}")


def _declared(config: Mapping[str, Any]) -> list[str]:
    """What the sections of a config say of quantisation."""
    sections = {"": config}
    for name in ("thinker_config", "text_config", "vision_config", "audio_config"):
        for path, section in list(sections.items()):
            if isinstance(section.get(name), Mapping):
                sections[f"{path}{name}."] = section[name]
    return [
        f"config.json, {path}{key}: {quantization_text(section[key])}"
        for path, section in sections.items()
        for key in QUANTIZATION
        if section.get(key)
    ]


def _quantized_tensor(dtypes: Mapping[str, str]) -> tuple[str, str] | None:
    """A tensor that only a quantised checkpoint has, and the method that makes such."""
    for method, pattern in SIGNATURES:
        for name in dtypes:
            if re.fullmatch(pattern, name):
                return name, method
    for name, dtype in dtypes.items():
        if name.endswith(".weight") and PACKED.fullmatch(dtype):
            return name, "FP8" if FLOATS_OF_8_BITS.fullmatch(dtype) else f"packed as {dtype}"
    return None
