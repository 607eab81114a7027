"""The published checkpoints' configurations in the hub's own spelling, with their hyperparameters.

Sizes as the hub's pages and `tests/versions/hub` have them; each version reads these and writes them its own way.
"""

from typing import Any

from tests.hub_configs import HUB_OMNI, HUB_VL

Config = dict[str, Any]

# hidden, layers, heads, key-value heads, mlp, vocabulary, tied
DECODERS: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "vl-3b": (2048, 36, 16, 2, 11008, 151936, True),
    "vl-7b": (3584, 28, 28, 4, 18944, 152064, False),
    "vl-32b": (5120, 64, 40, 8, 27648, 152064, False),
    "vl-72b": (8192, 80, 64, 8, 29568, 152064, False),
    "omni-3b": (2048, 36, 16, 2, 11008, 151936, False),
    "omni-7b": (3584, 28, 28, 4, 18944, 152064, False),
}


def _decoder(name: str) -> Config:
    hidden, layers, heads, kv_heads, mlp, vocabulary, tied = DECODERS[name]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rope_theta": 1000000.0,
    }


def _vl(name: str) -> Config:
    decoder = _decoder(name)
    mlp = 3456 if name in ("vl-32b", "vl-72b") else 3420
    vision = {**HUB_VL["vision_config"], "out_hidden_size": decoder["hidden_size"], "intermediate_size": mlp}
    return {**HUB_VL, **decoder, "vision_config": vision}


def _omni(name: str) -> Config:
    thinker, decoder = HUB_OMNI["thinker_config"], _decoder(name)
    sections = {
        "text_config": {**thinker["text_config"], **decoder},
        "vision_config": {**thinker["vision_config"], "out_hidden_size": decoder["hidden_size"]},
        "audio_config": {**thinker["audio_config"], "output_dim": decoder["hidden_size"]},
    }
    return {**HUB_OMNI, "thinker_config": {**thinker, **sections}}


PUBLISHED: dict[str, Config] = {name: (_vl if name.startswith("vl") else _omni)(name) for name in DECODERS}
