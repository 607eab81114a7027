"""The checkpoint that every method of the benchmark loads: the same seeded weights in two published forms.

A text prompt has equal t, h and w rotary positions, so that multimodal rotary angles equal plain ones and both forms
give the same logits:
  plain/    `Qwen2ForCausalLM`, which every torch library loads;
  thinker/  `qwen2_5_omni_thinker`, the same text tensors under the same names, with towers of one block that no
            workload runs.
Without a tokenizer: prompts are token ids, and continuations are compared as ids.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from avjax.families.registry import abstract_network, family_of, read_config
from avjax.models.parameters import parameter_paths

SEED = 0
ROPE_THETA = 1e6
NORM_EPS = 1e-6
GENERATION = {"do_sample": False, "pad_token_id": 0}  # no stop token: every continuation has its full length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A decoder and the prompt that it is measured on."""

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    vocab_size: int
    num_tokens: int

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads


SIZES = {
    "small": Size(
        num_layers=12,
        embed_dim=256,
        num_heads=8,
        num_kv_heads=2,
        mlp_dim=1024,
        vocab_size=32_000,
        num_tokens=512,
    ),
    "large": Size(
        num_layers=24,
        embed_dim=512,
        num_heads=16,
        num_kv_heads=4,
        mlp_dim=2048,
        vocab_size=32_000,
        num_tokens=2048,
    ),
}


def _text_config(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocab_size,
        "hidden_size": size.embed_dim,
        "intermediate_size": size.mlp_dim,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_kv_heads,
        "rms_norm_eps": NORM_EPS,
    }


def plain_config(size: Size) -> dict[str, Any]:
    """`config.json` of the text model alone; rotary settings in both spellings, for old and new libraries."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **_text_config(size),
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def thinker_config(size: Size) -> dict[str, Any]:
    """`config.json` of the same text model in the audio-visual form."""
    half = size.head_dim // 2
    third = half // 3
    markers = ("image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id")
    markers += ("audio_start_token_id", "audio_end_token_id")
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [half - 2 * third, third, third]}
    return {
        "model_type": "qwen2_5_omni_thinker",
        "text_config": {**_text_config(size), "rope_parameters": rope},
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": size.embed_dim,
            "fullatt_block_indexes": [0],
        },
        "audio_config": {
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "d_model": 32,
            "output_dim": size.embed_dim,
        },
        **{name: size.vocab_size - 1 - i for i, name in enumerate(markers)},
    }


def write(directory: Path, size: Size) -> None:
    """Writes `plain/` and `thinker/`."""
    raw = thinker_config(size)
    tensors = _tensors(raw)
    text = {name: value for name, value in tensors.items() if name.startswith(("model.", "lm_head."))}
    for name, config, content in (("plain", plain_config(size), text), ("thinker", raw, tensors)):
        target = directory / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (target / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
        save_file(content, target / "model.safetensors", metadata={"format": "pt"})


def _tensors(raw: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor of the audio-visual form, through the converter's own key table."""
    config = read_config(raw)
    shapes = {path: leaf.shape for path, leaf in parameter_paths(abstract_network(config)).items()}
    rng = np.random.default_rng(SEED)
    tensors = {}
    for rule in family_of(config).key_table(config).rules:
        shape = shapes[rule.target]
        for places, name in rule.entries(shape[0]):
            # Drawn in the target's shape, of which the table knows the source's.
            values = rng.standard_normal(shape[len(places) :], np.float32)
            tensors[name] = np.ascontiguousarray(_scaled(name, rule.to_source(values), config.decoder.embed_dim))
    return tensors


def _scaled(name: str, values: np.ndarray, embed_dim: int) -> np.ndarray:
    """Weights under which attention is neither uniform nor saturated, so that edits show in the logits.

    With queries and keys of variance 2 per entry, scores have a standard deviation of 2.
    """
    if name.endswith("bias"):
        return 0.1 * values
    if values.ndim == 1:
        return 1 + 0.1 * values
    if "embed_tokens" in name:
        return values
    if ".q_proj" in name or ".k_proj" in name:
        return values * np.float32(2 / embed_dim) ** 0.5
    if "lm_head" in name:
        return values * np.float32(3 / embed_dim**0.5)
    return values / np.float32(np.prod(values.shape[1:])) ** np.float32(0.5)
