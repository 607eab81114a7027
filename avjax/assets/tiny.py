"""A tiny random checkpoint, made on the spot: every part of Qwen2.5-Omni or Qwen2.5-VL in the published format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.config import Family, read_config
from avjax.loading import assemble_model
from avjax.model import Model
from avjax.parameters import FAMILIES, fill, parameter_paths

# The corpus that the tokenizer learns its merges from; only the words matter.
CORPUS = """
Describe what you see and hear in this video. A man is speaking while music plays in the background. A dog barks and a
car passes by on the street. The water flows over the rocks and birds are singing. A red square moves across a dark
screen while a steady tone sounds. You are a helpful assistant. system user assistant. Is the sound louder on the left
or on the right? The woman laughs, then a door closes. Rain falls on the roof, thunder follows. An engine starts.
"""

MARKERS = {
    "qwen2_5_omni": {
        "audio": "<|AUDIO|>",
        "audio_bos": "<|audio_bos|>",
        "audio_eos": "<|audio_eos|>",
        "vision_bos": "<|vision_bos|>",
        "vision_eos": "<|vision_eos|>",
        "image": "<|IMAGE|>",
        "video": "<|VIDEO|>",
    },
    "qwen2_5_vl": {
        "vision_bos": "<|vision_start|>",
        "vision_eos": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    },
}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_TEXT_TOKENS = 500  # at most; the corpus allows fewer

CHAT_TEMPLATE = """\
{%- if messages[0].role != "system" %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == "text" %}{{ part.text }}
{%- elif part.type == "audio" %}AUDIO_BOSAUDIOAUDIO_EOS
{%- else %}VISION_BOS{{ "IMAGE" if part.type == "image" else "VIDEO" }}VISION_EOS
{%- endif %}
{%- endfor %}
{%- endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_tokenizer(directory: Path, family: Family = "qwen2_5_omni", corpus: str = CORPUS) -> dict[str, int]:
    """Writes a byte-level tokenizer with the family's control tokens and chat template.

    Returns:
      The id of each control token, by name, and `vocab_size`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    markers = MARKERS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TEXT_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus.splitlines(), trainer)
    special = [*CONTROL, *markers.values()]
    tokenizer.add_special_tokens(special)
    template = CHAT_TEMPLATE
    for name in ("audio_bos", "audio_eos", "vision_bos", "vision_eos", "audio", "image", "video"):
        template = template.replace(name.upper(), markers.get(name, ""))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        chat_template=template,
    )
    fast.save_pretrained(directory)
    names = {"endoftext": CONTROL[0], "im_start": CONTROL[1], "im_end": CONTROL[2], **markers}
    vocabulary = tokenizer.get_vocab()
    ids = {name: vocabulary[token] for name, token in names.items()}
    return {**ids, "vocab_size": tokenizer.get_vocab_size()}


def write_preprocessor(
    directory: Path, *, num_mel_bins: int = 128, media_options: dict[str, Any] | None = None
) -> None:
    """Writes `preprocessor_config.json` as the published checkpoints have it, and media options of the model's own."""
    from avjax.media.options import CLIP_MEAN, CLIP_STD

    options: dict[str, Any] = {
        "chunk_length": 300,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": num_mel_bins,
        "hop_length": 160,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": CLIP_STD,
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "n_fft": 400,
        "patch_size": 14,
        "sampling_rate": 16000,
        "temporal_patch_size": 2,
    }
    if media_options:
        options["media_options"] = media_options
    (directory / "preprocessor_config.json").write_text(json.dumps(options, indent=2) + "\n")


def hf_config(ids: dict[str, int], family: Family = "qwen2_5_omni") -> dict[str, Any]:
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


def tiny_model(directory: Path, *, family: Family = "qwen2_5_omni", seed: int = 0) -> Model:
    """A model with random weights; its tokenizer and config are written to `directory`."""
    ids = write_tokenizer(directory, family)
    write_preprocessor(directory)
    return model_from_seed(directory, hf_config(ids, family), ids, _random, seed)


Initialiser = Callable[[str, tuple[int, ...], np.random.Generator], jax.Array]


def model_from_seed(
    directory: Path, raw: dict[str, Any], ids: dict[str, int], initialise: Initialiser, seed: int
) -> Model:
    """A model of a config with drawn weights; the config files are written beside its tokenizer.

    Args:
      raw: `config.json`.
      ids: of control tokens, by name.
      initialise: a parameter from its path and shape.
    """
    (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    stop = {"eos_token_id": [ids["im_end"], ids["endoftext"]]}
    (directory / "generation_config.json").write_text(json.dumps(stop) + "\n")
    config = read_config(raw)
    abstract = jax.eval_shape(lambda: FAMILIES[config.family](config))
    rng = np.random.default_rng(seed)
    arrays = {path: initialise(path, leaf.shape, rng) for path, leaf in parameter_paths(abstract).items()}
    return assemble_model(fill(abstract, arrays), config, directory)


def _random(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    """Weights of a scale at which attention is neither uniform nor saturated, so that edits show."""
    values = rng.normal(size=shape).astype(np.float32)
    if path.endswith("scale"):
        return jnp.asarray(1 + 0.1 * values)
    if path.endswith("bias"):
        return jnp.asarray(0.1 * values)
    return jnp.asarray(0.2 * values)
