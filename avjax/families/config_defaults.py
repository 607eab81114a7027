"""What Hugging Face's configuration classes have where a checkpoint's file has nothing.

Of transformers 5.24, keys that no model reads left out; a test holds them against the version that is installed. They
stand here because those classes import torch where it is installed, for seconds.
"""

from typing import Any

OMNI_THINKER: dict[str, Any] = {
    "audio_end_token_id": 151648,
    "audio_start_token_id": 151647,
    "audio_token_index": 151646,
    "image_token_index": 151655,
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
    "tie_word_embeddings": False,
    "video_token_index": 151656,
}
OMNI_TEXT: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
OMNI_VISION: dict[str, Any] = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "in_channels": 3,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
}
OMNI_AUDIO: dict[str, Any] = {
    "activation_function": "gelu",
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "max_source_positions": 1500,
    "n_window": 100,
    "num_mel_bins": 128,
    "output_dim": 3584,
    "scale_embedding": False,
}
VL: dict[str, Any] = {
    "image_token_id": 151655,
    "tie_word_embeddings": False,
    "video_token_id": 151656,
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
VL_TEXT: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "max_position_embeddings": 32768,
    "max_window_layers": 80,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "use_sliding_window": False,
    "vocab_size": 152064,
}
VL_VISION: dict[str, Any] = {**OMNI_VISION, "tokens_per_second": 4}
