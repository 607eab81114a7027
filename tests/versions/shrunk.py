"""Hyperparameters of the shrunk models, in the spelling that every version of transformers reads."""

from typing import Any

from tests.versions import inputs

Config = dict[str, Any]

TEXT: Config = {
    "vocab_size": inputs.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "max_window_layers": 2,
    "rope_theta": 10000.0,
}
VISION: Config = {
    "depth": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_heads": 1,
    "out_hidden_size": 16,
    "patch_size": inputs.PATCH,
    "spatial_merge_size": inputs.MERGE,
    "temporal_patch_size": inputs.TEMPORAL,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
AUDIO: Config = {
    "num_mel_bins": inputs.MEL_BINS,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "d_model": 8,
    "output_dim": 16,
    "max_source_positions": 100,
    "n_window": 20,
}
MARKERS: Config = {
    "vision_start_token_id": inputs.IDS["vision_start"],
    "vision_end_token_id": inputs.IDS["vision_end"],
}

VL: Config = {
    **TEXT,
    **MARKERS,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "image_token_id": inputs.IDS["image"],
    "video_token_id": inputs.IDS["video"],
    "vision_config": {**VISION, "tokens_per_second": 2},
}
THINKER: Config = {
    **MARKERS,
    "audio_token_index": inputs.IDS["audio"],
    "image_token_index": inputs.IDS["image"],
    "video_token_index": inputs.IDS["video"],
    "audio_start_token_id": inputs.IDS["audio_start"],
    "audio_end_token_id": inputs.IDS["audio_end"],
    "position_id_per_seconds": 5,
    "text_config": {**TEXT, "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}},
    "vision_config": VISION,
    "audio_config": AUDIO,
}
TALKER: Config = {
    **TEXT,
    "vocab_size": 16,
    "embedding_size": 16,
    "head_dim": 8,
    "hidden_size": 16,
    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
    "tts_codec_pad_token_id": 10,
    "tts_codec_start_token_id": 11,
    "tts_codec_end_token_id": 12,
    "tts_codec_mask_token_id": 13,
    "pad_token_id": 0,  # 5.0 reads it without having a default
}
TOKEN2WAV: Config = {
    "dit_config": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
        "ff_mult": 1,
        "emb_dim": 8,
        "num_embeds": 9,
        "mel_dim": 4,
        "block_size": 2,
        "look_ahead_layers": [0],
        "look_backward_layers": [0],
        "enc_emb_dim": 4,
        "enc_dim": 4,
        "enc_channels": [4, 4, 4],
        "enc_kernel_sizes": [3, 3, 1],
        "enc_dilations": [1, 2, 1],
        "enc_attention_channels": 4,
        "enc_res2net_scale": 2,
        "enc_se_channels": 4,
    },
    "bigvgan_config": {
        "mel_dim": 4,
        "upsample_initial_channel": 4,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
    },
}
OMNI: Config = {"thinker_config": THINKER, "talker_config": TALKER, "token2wav_config": TOKEN2WAV}
