"""The checkpoints that every version saves."""

import dataclasses
from typing import Any

from tests.versions.shrunk import OMNI, THINKER, VL

WHOLE = "5GB"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint to save: its class, the keywords of its configuration, and the largest shard."""

    kind: str
    config: dict[str, Any]
    shard_size: str = WHOLE


def thinker(*, outer: bool | None, text: bool | None) -> dict[str, Any]:
    """The thinker's keywords with `tie_word_embeddings` in its own section and in the decoder's, where given."""
    raw = dict(THINKER)
    if outer is not None:
        raw["tie_word_embeddings"] = outer
    if text is not None:
        raw["text_config"] = {**raw["text_config"], "tie_word_embeddings": text}
    return raw


CHECKPOINTS = {
    "vl": Saved("vl", VL),
    "vl-tied-shards": Saved("vl", {**VL, "tie_word_embeddings": True}, "10KB"),
    "thinker": Saved("thinker", thinker(outer=False, text=False)),
    "thinker-tied": Saved("thinker", thinker(outer=True, text=True)),
    "thinker-tied-text": Saved("thinker", thinker(outer=False, text=True)),
    "omni-shards": Saved("omni", OMNI, "16KB"),
}
