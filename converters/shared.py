"""Key-table parts that several families share."""

from converters.rules import Rule

_LAYER = "model.layers.{l}"
_BLOCK = "visual.blocks.{l}"

DECODER = (
    Rule("model.embed_tokens.weight", "decoder.embed.embedding", "V D -> V D"),
    Rule(f"{_LAYER}.input_layernorm.weight", "decoder.layers.attn_norm.scale", "D -> D"),
    Rule(f"{_LAYER}.self_attn.q_proj.weight", "decoder.layers.attn.q.kernel", "(N H) D -> D N H"),
    Rule(f"{_LAYER}.self_attn.q_proj.bias", "decoder.layers.attn.q.bias", "(N H) -> N H"),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", "decoder.layers.attn.k.kernel", "(K H) D -> D K H"),
    Rule(f"{_LAYER}.self_attn.k_proj.bias", "decoder.layers.attn.k.bias", "(K H) -> K H"),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", "decoder.layers.attn.v.kernel", "(K H) D -> D K H"),
    Rule(f"{_LAYER}.self_attn.v_proj.bias", "decoder.layers.attn.v.bias", "(K H) -> K H"),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "decoder.layers.attn.o.kernel", "D (N H) -> N H D"),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "decoder.layers.mlp_norm.scale", "D -> D"),
    Rule(f"{_LAYER}.mlp.gate_proj.weight", "decoder.layers.mlp.gate.kernel", "F D -> D F"),
    Rule(f"{_LAYER}.mlp.up_proj.weight", "decoder.layers.mlp.up.kernel", "F D -> D F"),
    Rule(f"{_LAYER}.mlp.down_proj.weight", "decoder.layers.mlp.down.kernel", "D F -> F D"),
    Rule("model.norm.weight", "decoder.final_norm.scale", "D -> D"),
)

UNEMBED = (Rule("lm_head.weight", "decoder.unembed.embedding", "V D -> V D"),)

# Published prefixes, and what others write instead: transformers' own modules since 4.52 as a state dict that was
# saved past `save_pretrained` has them, and before 4.52 was released; a base model alone.
SPELLINGS = {
    "model.": ("model.language_model.", "language_model.model.", "language_model."),
    "visual.": ("model.visual.",),
    "lm_head.": ("language_model.lm_head.", "model.lm_head."),
}

# Rotary frequencies that old versions kept beside the weights: every version computes them from the config instead.
BUFFERS = (r"(?:.*\.)?rotary_(?:pos_)?emb\.(?:original_)?inv_freq",)

VISION = (
    Rule("visual.patch_embed.proj.weight", "vision.patch_embed.kernel", "D C T h w -> C T h w D"),
    Rule(f"{_BLOCK}.norm1.weight", "vision.layers.attn_norm.scale", "D -> D"),
    Rule(f"{_BLOCK}.attn.proj.weight", "vision.layers.attn.out.kernel", "D (N H) -> N H D"),
    Rule(f"{_BLOCK}.attn.proj.bias", "vision.layers.attn.out.bias", "D -> D"),
    Rule(f"{_BLOCK}.norm2.weight", "vision.layers.mlp_norm.scale", "D -> D"),
    Rule(f"{_BLOCK}.mlp.gate_proj.weight", "vision.layers.mlp.gate.kernel", "F D -> D F"),
    Rule(f"{_BLOCK}.mlp.gate_proj.bias", "vision.layers.mlp.gate.bias", "F -> F"),
    Rule(f"{_BLOCK}.mlp.up_proj.weight", "vision.layers.mlp.up.kernel", "F D -> D F"),
    Rule(f"{_BLOCK}.mlp.up_proj.bias", "vision.layers.mlp.up.bias", "F -> F"),
    Rule(f"{_BLOCK}.mlp.down_proj.weight", "vision.layers.mlp.down.kernel", "D F -> F D"),
    Rule(f"{_BLOCK}.mlp.down_proj.bias", "vision.layers.mlp.down.bias", "D -> D"),
    Rule("visual.merger.ln_q.weight", "vision.merger.norm.scale", "D -> D"),
    Rule("visual.merger.mlp.0.weight", "vision.merger.fc1.kernel", "F D -> D F"),
    Rule("visual.merger.mlp.0.bias", "vision.merger.fc1.bias", "F -> F"),
    Rule("visual.merger.mlp.2.weight", "vision.merger.fc2.kernel", "F D -> D F"),
    Rule("visual.merger.mlp.2.bias", "vision.merger.fc2.bias", "F -> F"),
)
