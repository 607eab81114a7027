"""A tiny checkpoint's tokenizer and preprocessor files, in the published Hugging Face form."""

import json
from pathlib import Path
from typing import Any

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


def write_tokenizer(directory: Path, family: str = "qwen2_5_omni", corpus: str = CORPUS) -> dict[str, int]:
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
        extra_special_tokens={f"{name}_token": token for name, token in markers.items()},
        chat_template=template,
    )
    fast.save_pretrained(directory)
    _name_published_class(directory / "tokenizer_config.json")
    names = {"endoftext": CONTROL[0], "im_start": CONTROL[1], "im_end": CONTROL[2], **markers}
    vocabulary = tokenizer.get_vocab()
    ids = {name: vocabulary[token] for name, token in names.items()}
    return {**ids, "vocab_size": tokenizer.get_vocab_size()}


def _name_published_class(path: Path) -> None:
    """A class that older releases of transformers know too."""
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    if not settings.get("extra_special_tokens"):  # an empty list, which transformers 4 cannot read
        settings.pop("extra_special_tokens", None)
    path.write_text(json.dumps(settings, indent=2) + "\n")


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
