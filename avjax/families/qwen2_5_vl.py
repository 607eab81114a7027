"""Qwen2.5-VL: vision tower and decoder, without audio; positions count its own units per second."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avjax.families import config_defaults as defaults
from avjax.families import inert_keys as keys
from avjax.families.family import Family
from avjax.families.inert_keys import Version
from avjax.families.key_rules import Rule, Table
from avjax.families.qwen2_5 import BUFFERS, DECODER, SPELLINGS, UNEMBED, VISION, read_decoder, read_tied, read_vision
from avjax.families.rope import KEYS as ROPE_KEYS
from avjax.families.rope import read_rope
from avjax.families.section import Section
from avjax.families.token_runs import Clips, MediaShapes, PositionRule, TokenRun, counted_run, grid_run, grid_times
from avjax.models.config import ModelConfig, TokenIds
from avjax.models.decoder import Decoder
from avjax.models.network import Network
from avjax.models.vision import VisionTower

NAME = "qwen2_5_vl"


class Qwen2_5VL(Network):
    def __init__(self, cfg: ModelConfig):
        self.decoder = Decoder(cfg.decoder)
        self.vision = VisionTower(cfg.vision)
        self.audio = None


def read(raw: Mapping[str, Any], version: Version | None, problems: list[str]) -> ModelConfig:
    section = Section(raw, defaults.VL, "", problems, keys.VL)
    vision = section.section("vision_config", defaults.VL_VISION, keys.VISION)
    if raw.get("text_config") is not None:
        text = section.section("text_config", defaults.VL_TEXT, keys.DECODER)
        _compare_copies(section, text, version)
    else:
        # Until 4.51 the decoder's keys were at the top level, as they still are in the hub's checkpoints.
        outer_keys = defaults.VL.keys() - defaults.VL_TEXT.keys()
        own = {k: v for k, v in raw.items() if k not in outer_keys | {"vision_config", "tie_word_embeddings"}}
        text = Section(own, defaults.VL_TEXT, "", problems, keys.DECODER)
        section.ignore([*own, "text_config"])
    config = ModelConfig(
        family=NAME,
        decoder=read_decoder(text, version, tied=read_tied(NAME, version, section, text)),
        vision=read_vision(vision),
        audio=None,
        tokens=TokenIds(
            image=section.take("image_token_id"),
            video=section.take("video_token_id"),
            vision_bos=section.take("vision_start_token_id"),
            vision_eos=section.take("vision_end_token_id"),
        ),
        position_units_per_second=vision.take("tokens_per_second"),
        seconds_per_chunk=None,
    )
    decoder = config.decoder
    # Qwen2.5-VL's attention divides hidden_size among its heads, whatever head_dim says.
    if decoder.embed_dim and decoder.head_dim != decoder.embed_dim // decoder.num_heads:
        problems.append(
            f"{text.path}head_dim: expected hidden_size / num_attention_heads = "
            f"{decoder.embed_dim // decoder.num_heads}, got {decoder.head_dim}"
        )
    for part in (section, text, vision):
        part.finish()
    return config


def _compare_copies(outer: Section, text: Section, version: Version | None) -> None:
    """The decoder's keys above `text_config`, as 4.52 to 4.57 repeat them; where they differ, one copy counts.

    Every version that knows `text_config` reads it alone. A file that does not say that it is from such a version may
    have been meant for an older one, which reads the other copy: then they must agree.
    """
    copies = [key for key in keys.DECODER_SIZES if outer.raw.get(key) is not None]
    outer.ignore(keys.DECODER_SIZES | keys.DECODER_LENGTHS)
    if version is not None and version >= keys.NESTED_VL:
        return
    ropes = [read_rope(Section(s.raw, {}, s.path, [], frozenset()), version) for s in (outer, text)]
    for key in sorted(copies):
        value, inside = outer.raw[key], text.raw.get(key, text.defaults.get(key))
        if (ropes[0] != ropes[1]) if key in ROPE_KEYS else (value != inside):
            outer.problems.append(
                f"{key}: expected the value in text_config, {inside!r}, got {value!r}; remove the wrong one"
            )


def token_runs(
    token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig, rule: PositionRule
) -> Iterator[TokenRun]:
    """Text after a clip starts one past its largest position; by the other rule, past its larger side."""
    ids, merge, units = config.tokens, config.vision.spatial_merge_size, config.position_units_per_second
    clips = Clips(token_ids, shapes)
    after = 0
    while not clips.done:
        token = clips.token
        if token in (ids.image, ids.video):
            if token == ids.image:
                grid = clips.image()
                part = grid_run("image", after, grid, np.arange(grid[0]), None, merge)
            else:
                grid, step, seconds = clips.video()
                times = (grid_times if rule == "trained" else _times_of_5_3)(grid[0], step, units)
                part = grid_run("video", after, grid, times, seconds, merge)
            after = part.after if rule == "trained" else after + max(grid[1], grid[2]) // merge
        else:
            part = counted_run("text", after, 1)
            after += 1
        clips.consume(token, len(part), part.kind)
        yield part
    clips.finish()


def _times_of_5_3(steps: int, seconds_per_grid: float, units_per_second: float) -> np.ndarray:
    # These versions multiply units by seconds first; float32 rounding depends on the order.
    interval = np.float32(units_per_second) * np.float32(seconds_per_grid)
    return (np.arange(steps, dtype=np.float32) * interval).astype(int)


# Vision blocks keep q, k and v in one tensor.
VISION_ATTENTION = (
    Rule("visual.blocks.{l}.attn.qkv.weight", "vision.layers.attn.qkv.kernel", "(C N H) D -> C D N H"),
    Rule("visual.blocks.{l}.attn.qkv.bias", "vision.layers.attn.qkv.bias", "(C N H) -> C N H"),
)


def key_table(config: ModelConfig) -> Table:
    tied = config.decoder.tied_embeddings
    return Table(
        rules=(*DECODER, *(() if tied else UNEMBED), *VISION, *VISION_ATTENTION),
        skipped=BUFFERS,
        spellings=SPELLINGS,
        aliases={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
    )


FAMILY = Family(
    name=NAME,
    model_types=(NAME,),
    network=Qwen2_5VL,
    read=read,
    token_runs=token_runs,
    position_rules=("trained", "transformers-5.3"),
    key_table=key_table,
    unread=BUFFERS,
    sampled_frame_times=True,
    continues_from_last=True,  # only under "transformers-5.3" is the last position not the largest; HF counts so there
)
