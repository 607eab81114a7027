"""Which keys of an HF `config.json` no version of transformers reads in which section, and which copy of a key counts.

Settled from the modelling code of transformers 4.49 to 5.24; `tests.versions` holds five of them to it: each reads a
checkpoint with every key below set to something odd, and computes the same logits.
"""

import re
from collections.abc import Mapping
from typing import Any

Version = tuple[int, int]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# In every section: training, initialisation, bookkeeping, and defaults of generation, which `GenerationDefaults` reads.
COMMON = _words(
    """
    _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset attn_implementation
    _attn_implementation_internal architectures dtype torch_dtype transformers_version model_type base_model_tp_plan
    initializer_range init_std ignore_index use_cache use_return_dict return_dict output_hidden_states
    output_attentions output_scores return_dict_in_generate torchscript use_bfloat16 tf_legacy_loss pruned_heads
    gradient_checkpointing chunk_size_feed_forward num_labels
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id user_token_id vision_token_id
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task id2label label2id
    tokenizer_class prefix task_specific_params problem_type
    dropout attention_dropout activation_dropout unsloth_fixed unsloth_version
    """
)

DECODER_SIZES = _words(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size
    hidden_act rms_norm_eps rope_theta rope_scaling rope_parameters use_sliding_window layer_types
    """
)
# Lengths at which a decoder was trained; without `use_sliding_window` a window is none. (Until 4.51 the masks of VL
# ended at one all the same, which 4.52 mended; published windows are longer than any prompt here.)
DECODER_LENGTHS = _words("max_position_embeddings max_window_layers sliding_window")
# The section above the decoder places media, and reads these there.
MARKERS = _words(
    """
    image_token_id video_token_id audio_token_id image_token_index video_token_index audio_token_index
    vision_start_token_id vision_end_token_id audio_start_token_id audio_end_token_id
    """
)
DECODER = COMMON | DECODER_LENGTHS | MARKERS

# Neither tower has words to tie, and transformers 4 writes its general default of `tie_word_embeddings` (true) into
# both. The other names are Qwen2-VL's, which Qwen2.5's towers do not read: they read hidden_size, in_channels and
# patch_size.
VISION = COMMON | _words(
    "tie_word_embeddings embed_dim in_chans spatial_patch_size mlp_ratio max_position_embeddings vocab_size"
)
AUDIO = COMMON | _words("tie_word_embeddings encoder_layerdrop max_position_embeddings vocab_size")

# The thinker and the outermost section of Omni hold other sections, and read none of what those read. Training
# frameworks write `hidden_size` there for their own use.
THINKER = COMMON | DECODER_SIZES | DECODER_LENGTHS
OMNI = (
    THINKER
    | MARKERS
    | _words(
        """
        enable_audio_output enable_talker talker_config token2wav_config tie_word_embeddings
        position_id_per_seconds seconds_per_chunk
        """
    )
)
VL = COMMON | _words("audio_token_id")

# Where each version looks to decide whether the embeddings are tied, from the first that looks there on: in the
# section of the model ("model"), in the decoder's ("text"), in either, or nowhere (it never ties).
# - Omni: no output embeddings were declared until 4.54, so nothing was tied; a whole checkpoint is tied since 4.56,
#   when every part of a model began to be; since 5.0 the thinker's own key counts.
# - VL: one flat section until 4.51; since 4.52 the decoder's; since 5.0 the model's; since 5.16 the decoder's too,
#   because older files have it only there.
TIED: Mapping[str, tuple[tuple[Version, tuple[str, ...]], ...]] = {
    "qwen2_5_omni": (((0, 0), ()), ((4, 56), ("text",)), ((5, 0), ("model",))),
    "qwen2_5_omni_thinker": (((0, 0), ()), ((4, 54), ("text",)), ((5, 0), ("model",))),
    "qwen2_5_vl": (((0, 0), ("model",)), ((4, 52), ("text",)), ((5, 0), ("model",)), ((5, 16), ("model", "text"))),
}
NESTED_VL: Version = (4, 52)  # the first version that reads `text_config`


def writer(raw: Mapping[str, Any]) -> Version | None:
    """The version of transformers that wrote a config, where it says so."""
    match = re.match(r"(\d+)\.(\d+)", str(raw.get("transformers_version") or ""))
    return (int(match[1]), int(match[2])) if match else None


def is_tied(model_type: str, version: Version | None, declared: Mapping[str, bool | None]) -> bool:
    """Whether the version that wrote a config ties the output embeddings to the input ones.

    Args:
      version: None follows the newest rule.
      declared: `tie_word_embeddings` in the sections "model" and "text"; None where it is absent.
    """
    rules = [places for since, places in TIED[model_type] if version is None or since <= version]
    return any(declared[place] for place in rules[-1])
