"""Tiny random Hugging Face checkpoints, written offline in the published format."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers

from sweeps.train_tiny.files import write_preprocessor, write_tokenizer

CLASSES = {
    "qwen2_5_omni": (transformers.Qwen2_5OmniThinkerConfig, transformers.Qwen2_5OmniThinkerForConditionalGeneration),
    "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
}


def hf_config(ids: dict[str, int], family: str = "qwen2_5_omni") -> dict[str, Any]:
    """The `config.json` of a tiny checkpoint: 8 decoder layers of 4 heads, 2 blocks in each tower."""
    text = {
        "vocab_size": ids["vocab_size"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    markers = {
        "image_token_id": ids["image"],
        "video_token_id": ids["video"],
        "vision_start_token_id": ids["vision_bos"],
        "vision_end_token_id": ids["vision_eos"],
    }
    if family == "qwen2_5_vl":
        return {"model_type": family, "text_config": text, "vision_config": vision, **markers}
    audio = {
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "output_dim": 64,
    }
    return {
        "model_type": "qwen2_5_omni_thinker",
        "text_config": text,
        "vision_config": vision,
        "audio_config": audio,
        **markers,
        "audio_token_id": ids["audio"],
        "audio_start_token_id": ids["audio_bos"],
        "audio_end_token_id": ids["audio_eos"],
    }


@dataclasses.dataclass(frozen=True)
class TinyCheckpoint:
    """A checkpoint directory and the torch model that it holds."""

    directory: Path
    torch_model: Any
    ids: dict[str, int]  # control tokens by name, and vocab_size

    def in_bfloat16(self) -> Any:
        """The torch model as users load it: a cast of the float32 one would round its rotary frequencies too."""
        loaded = type(self.torch_model).from_pretrained(
            self.directory, dtype=torch.bfloat16, attn_implementation="eager"
        )
        return loaded.eval()


def write_checkpoint(
    directory: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sections: dict[str, Any]
) -> TinyCheckpoint:
    """Saves a random model with its tokenizer and preprocessor files.

    Args:
      sections: changes to `text_config`, `vision_config`, `audio_config`, or other top-level keys.
    """
    directory.mkdir(parents=True)
    ids = write_tokenizer(directory, family)
    write_preprocessor(directory)
    raw = copy.deepcopy(hf_config(ids, family))
    for name, change in sections.items():
        raw[name] = {**raw.get(name, {}), **change} if isinstance(change, dict) else change
    config_class, model_class = CLASSES[family]
    config = config_class(**{k: v for k, v in raw.items() if k != "model_type"})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).eval().to(dtype)
    randomize(model, seed)
    model.generation_config.eos_token_id = [ids["im_end"], ids["endoftext"]]
    model.generation_config.pad_token_id = ids["endoftext"]
    model.save_pretrained(directory)
    return TinyCheckpoint(directory, model, ids)


WRITES_RESIDUAL = ("o_proj", "down_proj", "out_proj", "fc2", "attn.proj")


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights at which attention is neither uniform nor saturated and logits spread over nats.

    Activations stay of order 1, as in trained models, so that absolute tolerances mean what they say in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            gain = 0.4 if any(part in name for part in WRITES_RESIDUAL) else 1.0
            value = gain / fan_in**0.5 * noise
        elif "norm" in name or "ln_" in name:
            value = noise * 0.1 + (0.0 if name.endswith("bias") else 1.0)
        else:
            value = 0.1 * noise
        parameter.data.copy_(value.to(parameter.dtype))
