"""Qwen2.5-Omni's thinker: audio and vision towers in front of the decoder. The talker is not needed."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from avjax.families import config_defaults as defaults
from avjax.families import inert_keys as keys
from avjax.families.family import Family
from avjax.families.inert_keys import Version
from avjax.families.key_rules import Rule, Table
from avjax.families.qwen2_5 import BUFFERS, DECODER, SPELLINGS, UNEMBED, VISION, read_decoder, read_tied, read_vision
from avjax.families.section import Section
from avjax.families.token_runs import (
    Clips,
    MediaShapes,
    PositionRule,
    TokenRun,
    counted_run,
    grid_run,
    grid_times,
    interleave,
)
from avjax.models.audio import AudioTower, num_audio_tokens
from avjax.models.config import AudioConfig, ModelConfig, TokenIds
from avjax.models.decoder import Decoder
from avjax.models.network import Network
from avjax.models.vision import VisionTower

NAME = "qwen2_5_omni"
THINKER = "qwen2_5_omni_thinker"


class Qwen2_5Omni(Network):
    def __init__(self, cfg: ModelConfig):
        assert cfg.audio is not None
        self.decoder = Decoder(cfg.decoder)
        self.vision = VisionTower(cfg.vision)
        self.audio = AudioTower(cfg.audio)


def read(raw: Mapping[str, Any], version: Version | None, problems: list[str]) -> ModelConfig:
    """The config of a whole checkpoint, or of a thinker alone."""
    model_type = raw["model_type"]
    if model_type == THINKER:
        return _read_thinker(Section(raw, defaults.OMNI_THINKER, "", problems, keys.THINKER), version, model_type)
    outer = Section(raw, {}, "", problems, keys.OMNI)
    thinker = outer.section("thinker_config", defaults.OMNI_THINKER, keys.THINKER)
    outer.finish()
    return _read_thinker(thinker, version, model_type)


def _read_thinker(section: Section, version: Version | None, model_type: str) -> ModelConfig:
    text = section.section("text_config", defaults.OMNI_TEXT, keys.DECODER)
    vision = section.section("vision_config", defaults.OMNI_VISION, keys.VISION)
    audio = section.section("audio_config", defaults.OMNI_AUDIO, keys.AUDIO)
    vision.ignore(["tokens_per_second"])  # the thinker's position_id_per_seconds decides
    config = ModelConfig(
        family=NAME,
        decoder=read_decoder(text, version, tied=read_tied(model_type, version, section, text)),
        vision=read_vision(vision),
        audio=_read_audio(audio),
        tokens=TokenIds(
            image=section.take("image_token_id", "image_token_index"),
            video=section.take("video_token_id", "video_token_index"),
            audio=section.take("audio_token_id", "audio_token_index"),
            vision_bos=section.take("vision_start_token_id", default=151652),
            vision_eos=section.take("vision_end_token_id", default=151653),
            audio_bos=section.take("audio_start_token_id"),
            audio_eos=section.take("audio_end_token_id"),
        ),
        position_units_per_second=section.take("position_id_per_seconds"),
        seconds_per_chunk=section.take("seconds_per_chunk"),
    )
    for part in (section, text, vision, audio):
        part.finish()
    return config


def _read_audio(section: Section) -> AudioConfig:
    section.expect("activation_function", "gelu")
    section.expect("scale_embedding", False)
    # transformers 5 also reads the sizes under the names of the other towers.
    return AudioConfig(
        num_mel_bins=section.take("num_mel_bins"),
        num_layers=section.take("encoder_layers", "num_hidden_layers"),
        num_heads=section.take("encoder_attention_heads", "num_attention_heads"),
        embed_dim=section.take("d_model", "hidden_size"),
        mlp_dim=section.take("encoder_ffn_dim", "intermediate_size"),
        output_dim=section.take("output_dim"),
        n_window=section.take("n_window"),
        max_positions=section.take("max_source_positions"),
    )


def token_runs(
    token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig, rule: PositionRule
) -> Iterator[TokenRun]:
    """Each run starts one past the largest position of the run before it; every version of transformers agrees."""
    del rule  # there is one
    ids, merge, units = config.tokens, config.vision.spatial_merge_size, config.position_units_per_second
    clips = Clips(token_ids, shapes)
    after = 0
    while not clips.done:
        token = clips.token
        if token == ids.vision_bos and clips.peek(1) == ids.audio_bos:
            # The two opening tokens share one position, and so do the two closing ones.
            opening = counted_run("text", after, 1)
            yield from (opening, opening)
            clips.at += 2
            grid, step, seconds = clips.video()
            times = grid_times(grid[0], step, units)
            video = grid_run("video", opening.after, grid, times, seconds, merge)
            audio = counted_run("audio", opening.after, num_audio_tokens(clips.audio()))
            order = interleave(grid, times, len(audio), config)
            chunks = [(video if kind == "video" else audio)[start:stop] for kind, start, stop in order]
            yield from _in_token_order(clips.mixed(video, audio, config), chunks, video, audio, config)
            after = chunks[-1].after
            if (clips.peek(0), clips.peek(1)) != (ids.audio_eos, ids.vision_eos):
                raise ValueError(
                    f"prompt: expected a video with sound to end in tokens {ids.audio_eos} and {ids.vision_eos} "
                    f"at position {clips.at}, got {clips.peek(0)} and {clips.peek(1)}; the prompt is cut off"
                )
            closing = counted_run("text", after, 1)
            yield from (closing, closing)
            clips.at += 2
            after = closing.after
            continue
        if token == ids.audio:
            part = counted_run("audio", after, num_audio_tokens(clips.audio()))
        elif token == ids.image:
            grid = clips.image()
            part = grid_run("image", after, grid, (np.arange(grid[0]) * units).astype(int), None, merge)
        elif token == ids.video:
            grid, step, seconds = clips.video()
            part = grid_run("video", after, grid, grid_times(grid[0], step, units), seconds, merge)
        else:
            part = counted_run("text", after, 1)
        clips.consume(token, len(part), part.kind)
        yield part
        after = part.after
    clips.finish()


def _in_token_order(
    run: np.ndarray, chunks: Sequence[TokenRun], video: TokenRun, audio: TokenRun, config: ModelConfig
) -> Iterator[TokenRun]:
    """The tokens of a video with its sound: what they are by their ids, positions by their place among `chunks`.

    HF's processor orders the tokens by float64 times, its `get_rope_index` numbers them by float32 ones. At a few
    frame rates (2.6 fps after 30 s, say) the two open a chunk one grid step apart.
    """
    positions = np.concatenate([chunk.positions for chunk in chunks], axis=1)
    for start, stop in itertools.pairwise([0, *(np.flatnonzero(np.diff(run)) + 1), len(run)]):
        own = video if run[start] == config.tokens.video else audio
        first = int(np.sum(run[:start] == run[start]))
        yield dataclasses.replace(own[first : first + stop - start], positions=positions[:, start:stop])


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


def key_table(config: ModelConfig) -> Table:
    tied = config.decoder.tied_embeddings
    return Table(
        rules=(*DECODER, *(() if tied else UNEMBED), *VISION, *VISION_ATTENTION, *AUDIO),
        prefix="thinker.",
        skipped=(*OTHER_PARTS, *BUFFERS),
        spellings={**SPELLINGS, "audio_tower.": ("model.audio_tower.",)},
        aliases={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
    )


FAMILY = Family(
    name=NAME,
    model_types=(NAME, THINKER),
    network=Qwen2_5Omni,
    read=read,
    token_runs=token_runs,
    position_rules=("trained",),
    key_table=key_table,
    unread=(*OTHER_PARTS, *BUFFERS),
    requires_step_seconds=True,
)
