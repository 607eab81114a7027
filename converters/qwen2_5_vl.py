"""Qwen2.5-VL's key table; its vision blocks keep q, k and v in one tensor."""

from avjax.config import ModelConfig
from converters.rules import Rule, Table
from converters.shared import BUFFERS, DECODER, SPELLINGS, UNEMBED, VISION

VISION_ATTENTION = (
    Rule("visual.blocks.{l}.attn.qkv.weight", "vision.layers.attn.qkv.kernel", "(C N H) D -> C D N H"),
    Rule("visual.blocks.{l}.attn.qkv.bias", "vision.layers.attn.qkv.bias", "(C N H) -> C N H"),
)


def table(config: ModelConfig) -> Table:
    tied = config.decoder.tied_embeddings
    return Table(
        rules=(*DECODER, *(() if tied else UNEMBED), *VISION, *VISION_ATTENTION),
        skipped=BUFFERS,
        spellings=SPELLINGS,
        aliases={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
    )
