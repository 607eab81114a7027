"""Writes a whole Qwen2.5-Omni, talker and token2wav included, with the transformers of this environment.

    PYTHONPATH=. python -m tests.reference.whole_omni DIRECTORY [--thinker shipped | random] [--shapes FILE]

Run in the environment of transformers 4.52.4 (README.md). The published script reads the result as it would a hub
checkpoint. The thinker is the tiny random one of `tiny_omni`, or the trained one that the package ships, in float32.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from tests.reference import tiny_omni

TALKER = {
    "embedding_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_scaling": tiny_omni.MROPE,
}
DIT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "ff_mult": 1,
    "emb_dim": 16,
    "enc_dim": 16,
    "enc_emb_dim": 16,
    "enc_channels": [16, 16, 16, 16, 16],
    "enc_attention_channels": 8,
    "enc_se_channels": 8,
    "enc_lin_neurons": 16,
    "look_ahead_layers": [0],
    "look_backward_layers": [0],
}
SHIPPED_TEXT = {"num_attention_heads": 8, "hidden_size": 128, "intermediate_size": 256}
SHIPPED_VISION = {"depth": 3, "hidden_size": 80, "intermediate_size": 160, "num_heads": 4, "out_hidden_size": 128}
SHIPPED_AUDIO = {"encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 160, "d_model": 80}


def thinker_config(kind: str) -> dict[str, Any]:
    shipped = kind == "shipped"
    text = {**tiny_omni.TEXT, **(SHIPPED_TEXT if shipped else {})}
    vision = {**tiny_omni.VISION, **({**SHIPPED_VISION, "fullatt_block_indexes": [0, 1, 2]} if shipped else {})}
    audio = {**tiny_omni.AUDIO, **({**SHIPPED_AUDIO, "output_dim": 128} if shipped else {})}
    return {
        "text_config": {**text, "rope_theta": 10000.0, "rope_scaling": dict(tiny_omni.MROPE)},
        "vision_config": vision,
        "audio_config": audio,
        "tie_word_embeddings": False,
        **tiny_omni.MARKERS,
        **{f"{kind}_token_index": token for kind, token in tiny_omni.PLACEHOLDERS.items()},
        "eos_token_id": tiny_omni.END_OF_TURN,
        "pad_token_id": tiny_omni.END_OF_TEXT,
    }


def thinker_weights(model: torch.nn.Module, kind: str) -> dict[str, np.ndarray]:
    names = {name: tensor.shape for name, tensor in model.thinker.named_parameters()}
    if kind == "random":
        return {name: tiny_omni.weight(name, shape) for name, shape in names.items()}
    shipped = load_file(tiny_omni.SHIPPED / "model.safetensors")
    shipped["lm_head.weight"] = shipped["model.embed_tokens.weight"]
    return {name: shipped[name].float().numpy() for name in names}


def write_whole(directory: Path, kind: str) -> str:
    """Saves the whole model with its files. Returns the checksum of the thinker's weights."""
    directory.mkdir(parents=True)
    config = Qwen2_5OmniConfig(
        thinker_config=thinker_config(kind),
        talker_config=TALKER,
        token2wav_config={"dit_config": DIT, "bigvgan_config": {"upsample_initial_channel": 64}},
    )
    torch.manual_seed(0)  # the talker and the vocoder stay random; nothing here hears them
    model = Qwen2_5OmniForConditionalGeneration(config).eval()
    weights = thinker_weights(model, kind)
    with torch.no_grad():
        for name, tensor in model.thinker.named_parameters():
            tensor.copy_(torch.from_numpy(weights[name]))
    model.save_pretrained(directory)
    speaker = {"bos_token": 1, "cond": torch.zeros(1, 192), "ref_mel": torch.zeros(1, 10, 80)}
    torch.save({"Chelsie": speaker}, directory / "spk_dict.pt")
    tiny_omni.write_files(directory)
    return tiny_omni.checksum(weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--thinker", choices=("shipped", "random"), default="random")
    parser.add_argument("--shapes", type=Path, help="write the names and shapes of the thinker's tensors here")
    arguments = parser.parse_args()
    print(write_whole(arguments.directory, arguments.thinker))
    if arguments.shapes:
        shapes = load_file(arguments.directory / "model.safetensors")
        named = {name[8:]: list(shapes[name].shape) for name in sorted(shapes) if name.startswith("thinker.")}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in named.items())
        arguments.shapes.write_text(f"{{\n{lines}\n}}\n")
