"""What the families of Qwen2.5 share: their decoder, their vision tower, and how these are named on disk."""

from avjax.families import inert_keys as keys
from avjax.families.inert_keys import Version
from avjax.families.key_rules import Rule
from avjax.families.rope import DEFAULT_SECTION, Rope, read_rope
from avjax.families.section import Section
from avjax.models.config import DecoderConfig, VisionConfig

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


def read_tied(model_type: str, version: Version | None, model: Section, text: Section) -> bool:
    """Whether the embeddings are tied; where both sections say, the version that wrote them knows which one counts."""
    declared = {"model": model.raw.get("tie_word_embeddings"), "text": text.raw.get("tie_word_embeddings")}
    for section in (model, text):
        section.ignore(["tie_word_embeddings"])
    if "text_config" not in model.raw or model.raw["text_config"] is None:
        declared["text"] = declared["model"]  # one flat section is both
    return keys.is_tied(model_type, version, declared)


def read_decoder(section: Section, version: Version | None, tied: bool) -> DecoderConfig:
    section.expect("hidden_act", "silu")
    section.expect("use_sliding_window", False)
    layers, embed, heads = (section.take(k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    # HF fills layer_types in from the number of layers, so its default says nothing about this checkpoint.
    kinds = set(section.raw.get("layer_types") or ["full_attention"])
    section.ignore(["layer_types"])
    if kinds != {"full_attention"}:
        section.problems.append(f"{section.path}layer_types: expected 'full_attention' only, got {sorted(kinds)}")
    head_dim = section.take("head_dim", default=embed // heads)
    rope = read_rope(section, version)
    if len(rope.section) != 3 or sum(rope.section) * 2 != head_dim:
        section.problems.append(
            f"{section.path}mrope_section: expected three numbers that add up to head_dim / 2 = {head_dim // 2}, "
            f"got {list(rope.section)}"
        )
        rope = Rope(rope.theta, DEFAULT_SECTION)  # what follows is refused all the same
    return DecoderConfig(
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=section.take("num_key_value_heads", default=heads),
        head_dim=head_dim,
        embed_dim=embed,
        mlp_dim=section.take("intermediate_size"),
        vocab_size=section.take("vocab_size"),
        norm_eps=section.take("rms_norm_eps"),
        rope_theta=rope.theta,
        mrope_section=rope.section,  # pyright: ignore[reportArgumentType]
        tied_embeddings=tied,
    )


def read_vision(section: Section) -> VisionConfig:
    section.expect("hidden_act", "silu")
    rope = section.take("rope_parameters", default={})
    if rope.get("rope_type", "axial") != "axial":
        section.problems.append(f"{section.path}rope_parameters: expected rope_type 'axial', got {rope!r}")
    return VisionConfig(
        num_layers=section.take("depth", "num_hidden_layers"),
        num_heads=section.take("num_heads", "num_attention_heads"),
        embed_dim=section.take("hidden_size"),
        mlp_dim=section.take("intermediate_size"),
        output_dim=section.take("out_hidden_size"),
        in_channels=section.take("in_channels"),
        patch_size=_side(section, "patch_size"),
        temporal_patch_size=_side(section, "temporal_patch_size"),
        spatial_merge_size=section.take("spatial_merge_size"),
        window_size=section.take("window_size"),
        full_attention_layers=tuple(section.take("fullatt_block_indexes")),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        norm_eps=1e-6,  # fixed in HF's vision blocks, whatever the decoder uses
    )


def _side(section: Section, name: str) -> int:
    """A size that HF allows to be a list of equal numbers."""
    value = section.take(name)
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        section.problems.append(f"{section.path}{name}: expected equal numbers, got {list(value)}")
    return value[0]
