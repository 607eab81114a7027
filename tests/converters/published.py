"""The tensors of published checkpoints: true sizes and published names, from HF modules that hold no memory."""

from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from tests.tiny_hf import CLASSES

TEXT_3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
}
TEXT_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
VISION = {"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420}
AUDIO = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}

SIZES = {
    "omni-3b": ("qwen2_5_omni", TEXT_3B, False),
    "omni-7b": ("qwen2_5_omni", TEXT_7B, False),
    "vl-3b": ("qwen2_5_vl", TEXT_3B, True),
    "vl-7b": ("qwen2_5_vl", TEXT_7B, False),
}


def hf_config(name: str) -> transformers.PreTrainedConfig:
    family, text, tied = SIZES[name]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    sections: dict[str, Any] = {
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": {**VISION, "out_hidden_size": text["hidden_size"]},
    }
    if family == "qwen2_5_omni":
        sections["audio_config"] = {**AUDIO, "output_dim": text["hidden_size"]}
    return CLASSES[family][0](**sections, tie_word_embeddings=tied)


def shapes(config: transformers.PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that HF's `save_pretrained` would write for this config, by its published name.

    The three steps are those of `save_pretrained` itself: the state dict, without tied repetitions, under the names
    that the hub's checkpoints have.
    """
    model_class = next(m for c, m in CLASSES.values() if isinstance(config, c))
    with torch.device("meta"):
        model = model_class(config)
    state = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}
