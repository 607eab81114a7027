"""The tiny models' architecture, tokenizer and first weights, in the published Hugging Face form."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.checkpoint.loading import assemble_model
from avjax.families.registry import abstract_network, read_config
from avjax.model import Model
from avjax.models.parameters import fill, parameter_paths
from avjax.organism.pictures import SIDE
from avjax.organism.world import KINDS, QUESTIONS, ask, caption
from sweeps.train_tiny.files import CORPUS, write_preprocessor, write_tokenizer

NUM_LAYERS, EMBED, HEADS, KV_HEADS, MLP = 8, 128, 8, 2, 256
TOWER, TOWER_LAYERS, TOWER_HEADS = 80, 3, 4


def corpus() -> str:
    """Every caption, often enough that each of their words becomes one token."""
    lines = [caption(i, j) for i in range(len(KINDS)) for j in range(len(KINDS))]
    return "\n".join([*lines, *lines, CORPUS, *map(ask, QUESTIONS)])


def hf_config(ids: dict[str, int]) -> dict[str, Any]:
    """`config.json` of the thinker: 8 layers of width 128, 8 heads over 2."""
    return {
        "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "dtype": "bfloat16",
        "text_config": {
            "vocab_size": ids["vocab_size"],
            "hidden_size": EMBED,
            "intermediate_size": MLP,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": TOWER_LAYERS,
            "hidden_size": TOWER,
            "intermediate_size": 2 * TOWER,
            "num_heads": TOWER_HEADS,
            "out_hidden_size": EMBED,
            "fullatt_block_indexes": list(range(TOWER_LAYERS)),
        },
        "audio_config": {
            "encoder_layers": TOWER_LAYERS,
            "encoder_attention_heads": TOWER_HEADS,
            "encoder_ffn_dim": 2 * TOWER,
            "d_model": TOWER,
            "output_dim": EMBED,
        },
        "tie_word_embeddings": True,
        "image_token_id": ids["image"],
        "video_token_id": ids["video"],
        "vision_start_token_id": ids["vision_bos"],
        "vision_end_token_id": ids["vision_eos"],
        "audio_token_id": ids["audio"],
        "audio_start_token_id": ids["audio_bos"],
        "audio_end_token_id": ids["audio_eos"],
    }


def untrained(directory: Path, seed: int) -> Model:
    """A model before training; its tokenizer, preprocessor and config files are written to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(directory, corpus=corpus())
    write_preprocessor(directory, media_options={"min_pixels": 28 * 28, "max_pixels": SIDE * SIDE})
    raw, stop = hf_config(ids), {"eos_token_id": [ids["im_end"], ids["endoftext"]]}
    (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps(stop) + "\n")
    config = read_config(raw)
    abstract, rng = abstract_network(config), np.random.default_rng(seed)
    arrays = {path: _first(path, leaf.shape, rng) for path, leaf in parameter_paths(abstract).items()}
    return assemble_model(fill(abstract, arrays), config, directory)


def _first(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    """Norms of 1, biases of 0, and kernels of standard deviation 1 / sqrt(inputs)."""
    if path.endswith("scale"):
        return jnp.ones(shape)
    if path.endswith("bias"):
        return jnp.zeros(shape)
    values = rng.normal(size=shape).astype(np.float32)
    if path.endswith("embedding"):
        return jnp.asarray(0.02 * values)
    return jnp.asarray(values / np.sqrt(_num_inputs(path, shape)))


def _num_inputs(path: str, shape: tuple[int, ...]) -> int:
    """How many values feed one output of a kernel; stacked layers lead."""
    if path.endswith(("attn.q.kernel", "attn.k.kernel", "attn.v.kernel")):
        return shape[1]
    if path.endswith("qkv.kernel"):
        return shape[2]
    own = shape[1:] if ".layers." in path else shape
    return int(np.prod(own[:-1]))
