"""Qwen2.5-Omni's key table: the thinker, with or without the `thinker.` that a whole checkpoint puts before it."""

from avjax.config import ModelConfig
from converters.rules import Rule, Table
from converters.shared import BUFFERS, DECODER, SPELLINGS, UNEMBED, VISION

# A whole checkpoint's other parts, which say the thinker's words aloud, and the audio tower's table of sinusoids,
# which every version computes.
OTHER_PARTS = (r"talker\..*", r"token2wav\..*", r"(?:.*\.)?audio_tower\.positional_embedding\.positional_embedding")

_AUDIO = "audio_tower.layers.{l}"

VISION_ATTENTION = (
    Rule("visual.blocks.{l}.attn.{q|k|v}.weight", "vision.layers.attn.qkv.kernel", "(N H) D -> D N H"),
    Rule("visual.blocks.{l}.attn.{q|k|v}.bias", "vision.layers.attn.qkv.bias", "(N H) -> N H"),
)

AUDIO = (
    Rule("audio_tower.conv1.weight", "audio.conv1.kernel", "D C W -> W C D"),
    Rule("audio_tower.conv1.bias", "audio.conv1.bias", "D -> D"),
    Rule("audio_tower.conv2.weight", "audio.conv2.kernel", "D C W -> W C D"),
    Rule("audio_tower.conv2.bias", "audio.conv2.bias", "D -> D"),
    Rule("audio_tower.audio_bos_eos_token.weight", "audio.bos_eos.embedding", "V D -> V D"),
    Rule(f"{_AUDIO}.self_attn_layer_norm.weight", "audio.layers.attn_norm.scale", "D -> D"),
    Rule(f"{_AUDIO}.self_attn_layer_norm.bias", "audio.layers.attn_norm.bias", "D -> D"),
    Rule(f"{_AUDIO}.self_attn.q_proj.weight", "audio.layers.attn.q.kernel", "(N H) D -> D N H"),
    Rule(f"{_AUDIO}.self_attn.q_proj.bias", "audio.layers.attn.q.bias", "(N H) -> N H"),
    Rule(f"{_AUDIO}.self_attn.k_proj.weight", "audio.layers.attn.k.kernel", "(N H) D -> D N H"),
    Rule(f"{_AUDIO}.self_attn.v_proj.weight", "audio.layers.attn.v.kernel", "(N H) D -> D N H"),
    Rule(f"{_AUDIO}.self_attn.v_proj.bias", "audio.layers.attn.v.bias", "(N H) -> N H"),
    Rule(f"{_AUDIO}.self_attn.out_proj.weight", "audio.layers.attn.out.kernel", "D (N H) -> N H D"),
    Rule(f"{_AUDIO}.self_attn.out_proj.bias", "audio.layers.attn.out.bias", "D -> D"),
    Rule(f"{_AUDIO}.final_layer_norm.weight", "audio.layers.mlp_norm.scale", "D -> D"),
    Rule(f"{_AUDIO}.final_layer_norm.bias", "audio.layers.mlp_norm.bias", "D -> D"),
    Rule(f"{_AUDIO}.fc1.weight", "audio.layers.fc1.kernel", "F D -> D F"),
    Rule(f"{_AUDIO}.fc1.bias", "audio.layers.fc1.bias", "F -> F"),
    Rule(f"{_AUDIO}.fc2.weight", "audio.layers.fc2.kernel", "D F -> F D"),
    Rule(f"{_AUDIO}.fc2.bias", "audio.layers.fc2.bias", "D -> D"),
    Rule("audio_tower.ln_post.weight", "audio.final_norm.scale", "D -> D"),
    Rule("audio_tower.ln_post.bias", "audio.final_norm.bias", "D -> D"),
    Rule("audio_tower.proj.weight", "audio.proj.kernel", "F D -> D F"),
    Rule("audio_tower.proj.bias", "audio.proj.bias", "F -> F"),
)


def table(config: ModelConfig) -> Table:
    tied = config.decoder.tied_embeddings
    return Table(
        rules=(*DECODER, *(() if tied else UNEMBED), *VISION, *VISION_ATTENTION, *AUDIO),
        prefix="thinker.",
        skipped=(*OTHER_PARTS, *BUFFERS),
        spellings={**SPELLINGS, "audio_tower.": ("model.audio_tower.",)},
        aliases={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
    )
