"""A tiny random Qwen2.5-Omni that every environment rebuilds to the bit, so that no weights have to be kept.

Weights are functions of their names: PCG64's raw bits, whose stream numpy guarantees, mapped to float32 without
rounding that could differ. Used here by the tests, and by the scripts that run the original code in other environments.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHIPPED = Path(__file__).parents[2] / "avjax" / "assets" / "checkpoints" / "tiny-av"
FIXTURES = Path(__file__).parent / "fixtures"
END_OF_TEXT, END_OF_TURN = 500, 502  # ids in the shipped tokenizer
NAMED_TOKENS = {
    "audio_token": "<|AUDIO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
}
MROPE = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}
TEXT = {
    "vocab_size": 510,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
}
AUDIO = {
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "d_model": 32,
    "output_dim": 64,
}
# As published configurations name them: transformers 4.52 says `*_token_index`, too, and reads the tokens that end a
# reply from here, since a thinker inside a whole model has no generation_config.json of its own.
MARKERS = {
    "audio_start_token_id": 504,
    "audio_end_token_id": 505,
    "vision_start_token_id": 506,
    "vision_end_token_id": 507,
}
PLACEHOLDERS = {"audio": 503, "image": 508, "video": 509}
OF_SOUND = ("chunk_length", "feature_extractor_type", "feature_size", "hop_length", "n_fft", "sampling_rate")
WRITES_RESIDUAL = ("o_proj", "down_proj", "out_proj", "fc2", "attn.proj")


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 values of one tensor of the thinker, named without `thinker.`; uniform, of order 1 after each layer."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    uniform = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    if len(shape) > 1:
        gain = 0.4 if any(part in name for part in WRITES_RESIDUAL) else 1.0
        scale, mean = gain * (3 / np.prod(shape[1:])) ** 0.5, 0.0
    elif "norm" in name or "ln_" in name:
        scale, mean = 0.15, 0.0 if name.endswith("bias") else 1.0
    else:
        scale, mean = 0.15, 0.0
    return (uniform * np.float32(scale) + np.float32(mean)).reshape(shape)


def checksum(weights: Mapping[str, np.ndarray]) -> str:
    """Of names, shapes and values: two environments that agree on it hold the same model."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {list(weights[name].shape)}".encode())
        digest.update(np.ascontiguousarray(weights[name], np.float32).tobytes())
    return digest.hexdigest()[:16]


def write_files(directory: Path, *, hears: bool = True) -> None:
    """Tokenizer, chat template and preprocessor files as published checkpoints have them: Qwen's own pixel bounds."""
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json"):
        shutil.copy(SHIPPED / name, directory / name)
    preprocessor = json.loads((directory / "preprocessor_config.json").read_text())
    for key in ("media_options", *(() if hears else OF_SOUND)):
        preprocessor.pop(key)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    tokenizer = {
        **NAMED_TOKENS,
        "extra_special_tokens": NAMED_TOKENS,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def thinker_config() -> dict[str, Any]:
    """`config.json` of the thinker alone, as current transformers writes it."""
    return {
        "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "text_config": {**TEXT, "rope_parameters": {"rope_theta": 10000.0, **MROPE}},
        "vision_config": VISION,
        "audio_config": AUDIO,
        "tie_word_embeddings": False,
        **MARKERS,
        **{f"{kind}_token_id": token for kind, token in PLACEHOLDERS.items()},
    }


def write_thinker(directory: Path) -> str:
    """The thinker alone, under the published tensor names. Returns the checksum of its weights."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True)
    write_files(directory)
    (directory / "config.json").write_text(json.dumps(thinker_config(), indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": END_OF_TURN}) + "\n")
    shapes = json.loads((FIXTURES / "tiny_omni_tensors.json").read_text())
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return checksum(weights)
