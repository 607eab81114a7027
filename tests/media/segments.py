"""Prompts drawn as sequences of segments, written out by Hugging Face's own processor code."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st
from transformers.models.qwen2_5_omni import processing_qwen2_5_omni as hf

from avjax.families.registry import read_config
from avjax.families.token_runs import Grid, MediaShapes
from avjax.models.config import ModelConfig
from tests.tiny_hf import TinyCheckpoint

MERGE = 2
SECONDS = (0.5, 1.0, 1.37, 2.0, 4.0)  # of a temporal grid step


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of text, an image, a video, a sound, or a video with its own sound."""

    text: tuple[int, ...] = ()
    image: Grid | None = None
    video: Grid | None = None
    seconds: float = 1.0
    mel: int = 0  # frames of the sound; 0 is none


def num_audio_tokens(mel: int) -> int:
    return int(hf._get_feat_extract_output_lengths(np.array(mel)))


def interleaved(segment: Segment, config: ModelConfig) -> list[str]:
    """Kinds of the tokens of a video with its sound, as HF's processor orders them."""
    # The processor cannot be built without torchvision; its method reads nothing but these attributes.
    names = {f"audio_{end}_token": f" audio_{end}" for end in ("bos", "eos")}
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=MERGE), video_token=" video", audio_token=" audio", **names
    )
    processor.get_chunked_index = functools.partial(hf.Qwen2_5OmniProcessor.get_chunked_index, processor)
    text = hf.Qwen2_5OmniProcessor.replace_video_with_audio_token(
        processor,
        {"video_grid_thw": np.array([segment.video]), "video_second_per_grid": [segment.seconds]},
        0,
        {"num_audio_tokens": np.array([num_audio_tokens(segment.mel)])},
        0,
        position_id_per_seconds=config.position_units_per_second,
        seconds_per_chunk=config.seconds_per_chunk,
    )
    return text.split()


def written_out(segments: Sequence[Segment], config: ModelConfig) -> np.ndarray:
    """int32 [T]: every clip's tokens between its opening and closing tokens."""
    return _ids(segments, config, lambda kind, count: [kind] * count, lambda s: interleaved(s, config))


def placeholders(segments: Sequence[Segment], config: ModelConfig) -> np.ndarray:
    """int32 [T]: as a chat template writes them, one token per clip."""
    return _ids(segments, config, lambda kind, count: [kind], lambda s: ["video"])


def _ids(segments: Sequence[Segment], config: ModelConfig, fill, movie) -> np.ndarray:
    tokens: list[int] = []
    for s in segments:
        kinds: list[str] = []
        if s.image is not None:
            kinds = ["vision_bos", *fill("image", int(np.prod(s.image)) // MERGE**2), "vision_eos"]
        elif s.video is not None and s.mel:
            kinds = ["vision_bos", *movie(s), "vision_eos"]
        elif s.video is not None:
            kinds = ["vision_bos", *fill("video", int(np.prod(s.video)) // MERGE**2), "vision_eos"]
        elif s.mel:
            kinds = ["audio_bos", *fill("audio", num_audio_tokens(s.mel)), "audio_eos"]
        tokens += [*s.text, *(getattr(config.tokens, kind) for kind in kinds)]
    return np.array(tokens, np.int32)


def shapes(segments: Sequence[Segment]) -> MediaShapes:
    videos = [s for s in segments if s.video is not None]
    return MediaShapes(
        images=[s.image for s in segments if s.image is not None],
        videos=[s.video for s in videos],
        seconds_per_grid=[s.seconds for s in videos],
        audio_frames=[s.mel for s in segments if s.mel],
    )


def grids(values: Sequence[Grid]) -> torch.Tensor | None:
    """As HF takes them: None when there are none."""
    return torch.tensor(values, dtype=torch.long) if values else None


def read_model_config(tiny: TinyCheckpoint) -> ModelConfig:
    return read_config(json.loads((Path(tiny.directory) / "config.json").read_text()))


def sides(largest: int = 8) -> st.SearchStrategy[int]:
    return st.integers(1, largest // MERGE).map(lambda n: n * MERGE)


def words() -> st.SearchStrategy[Segment]:
    return st.lists(st.integers(0, 200), min_size=1, max_size=12).map(lambda ids: Segment(text=tuple(ids)))


def images() -> st.SearchStrategy[Segment]:
    return st.builds(lambda h, w: Segment(image=(1, h, w)), sides(20), sides(20))


def videos(
    sound: st.SearchStrategy[int], seconds: st.SearchStrategy[float] | None = None
) -> st.SearchStrategy[Segment]:
    return st.builds(
        lambda t, h, w, step, mel: Segment(video=(t, h, w), seconds=step, mel=mel),
        st.integers(1, 12),
        sides(),
        sides(),
        st.sampled_from(SECONDS) if seconds is None else seconds,
        sound,
    )


def mel_lengths() -> st.SearchStrategy[int]:
    return st.integers(3, 1200)  # 3 frames are the fewest that give a token


def sounds() -> st.SearchStrategy[Segment]:
    return mel_lengths().map(lambda n: Segment(mel=n))


def sequences(*kinds: st.SearchStrategy[Segment]) -> st.SearchStrategy[list[Segment]]:
    """Clips of these kinds in any order, next to each other or with text between; text ends the prompt, as it does
    in every chat template."""
    parts = st.lists(st.one_of(words(), *kinds), max_size=6)
    return st.builds(lambda first, last: [*itertools.chain(first), last], parts, words())
