"""Rotary positions of prompts, exactly: of Qwen2.5-Omni against Hugging Face's `get_rope_index`; of Qwen2.5-VL by the
rule that the weights were trained with against a reading of it token by token, and by the rule of transformers 5.3
against Hugging Face's.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from avjax.families.token_runs import MediaShapes, PositionRule
from avjax.media.options import MediaOptions
from avjax.models.config import ModelConfig
from avjax.prompts.layout import token_layout
from avjax.prompts.processor import Processor
from avjax.prompts.prompt import AudioFeatures, Prompt, VisionFeatures
from tests.media import segments as seg
from tests.media.segments import Segment
from tests.tiny_hf import TinyCheckpoint, write_checkpoint

TEXT = Segment(text=(5, 6, 7))
SILENT = st.just(0)


def assembled(
    token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig, positions: PositionRule = "trained"
) -> Prompt:
    """A prompt whose features have the right sizes and hold nothing."""
    nothing = np.zeros((0, 0), np.float32)
    processor = Processor(Path("no-tokenizer-here"), config, MediaOptions())
    return processor.assemble(
        token_ids,
        images=tuple(VisionFeatures(patches=nothing, grid=g, seconds_per_grid=None, source="") for g in shapes.images),
        videos=tuple(
            VisionFeatures(patches=nothing, grid=g, seconds_per_grid=s, source="")
            for g, s in zip(shapes.videos, shapes.seconds_per_grid, strict=True)
        ),
        audio=tuple(AudioFeatures(mel=np.zeros((n, 128), np.float32), source="") for n in shapes.audio_frames),
        positions=positions,
    )


def assert_omni_equal(tiny: TinyCheckpoint, segments: list[Segment]) -> None:
    config = seg.read_model_config(tiny)
    token_ids, shapes = seg.written_out(segments, config), seg.shapes(segments)
    expected, delta = tiny.torch_model.get_rope_index(
        torch.tensor(token_ids[None].astype(np.int64)),
        seg.grids(shapes.images),
        seg.grids(shapes.videos),
        attention_mask=torch.ones((1, len(token_ids)), dtype=torch.long),
        use_audio_in_video=any(s.video is not None and s.mel for s in segments),
        audio_seqlens=torch.tensor(shapes.audio_frames, dtype=torch.long) if shapes.audio_frames else None,
        second_per_grids=torch.tensor(shapes.seconds_per_grid) if shapes.seconds_per_grid else None,
    )
    assert_prompt_equal(assembled(token_ids, shapes, config), expected[:, 0], delta)


def assert_vl_equal(tiny: TinyCheckpoint, segments: list[Segment]) -> None:
    config = seg.read_model_config(tiny)
    token_ids, shapes = seg.written_out(segments, config), seg.shapes(segments)
    types = (token_ids == config.tokens.image) + 2 * (token_ids == config.tokens.video)
    expected, _ = tiny.torch_model.model.get_rope_index(
        torch.tensor(token_ids[None].astype(np.int64)),
        torch.tensor(types[None]),
        seg.grids(shapes.images),
        seg.grids(shapes.videos),
        torch.tensor(shapes.seconds_per_grid) if shapes.seconds_per_grid else None,
        attention_mask=torch.ones((1, len(token_ids)), dtype=torch.long),
    )
    prompt = assembled(token_ids, shapes, config, "transformers-5.3")
    np.testing.assert_array_equal(prompt.positions, expected[:, 0].numpy())
    # HF's `generate` goes on from the last position, see tests/engine/test_generation_vl.py; its delta is not read.
    assert prompt.next_position() == int(expected[:, 0, -1].max()) + 1


def trained_positions(token_ids: np.ndarray, shapes: MediaShapes, config: ModelConfig) -> np.ndarray:
    """Qwen2.5-VL's rule as its own fine-tuning code states it: each run of text and each clip starts one past the
    largest position before it; t is the step's seconds in units, truncated.
    """
    images, videos = iter(shapes.images), iter(zip(shapes.videos, shapes.seconds_per_grid, strict=True))
    rows: list[tuple[int, int, int]] = []
    while len(rows) < len(token_ids):
        start = max(map(max, rows), default=-1) + 1
        token = token_ids[len(rows)]
        if token not in (config.tokens.image, config.tokens.video):
            rows.append((start, start, start))
            continue
        (t, h, w), seconds = (next(images), 0.0) if token == config.tokens.image else next(videos)
        for step in range(t):
            time = int(torch.tensor(step) * torch.tensor(seconds) * config.position_units_per_second)
            rows += [(start + time, start + i, start + j) for i in range(h // 2) for j in range(w // 2)]
    return np.array(rows).T


def assert_vl_trained(tiny: TinyCheckpoint, segments: list[Segment]) -> None:
    config = seg.read_model_config(tiny)
    token_ids, shapes = seg.written_out(segments, config), seg.shapes(segments)
    prompt = assembled(token_ids, shapes, config)
    np.testing.assert_array_equal(prompt.positions, trained_positions(token_ids, shapes, config))


def assert_prompt_equal(prompt: Prompt, positions: torch.Tensor, delta: torch.Tensor) -> None:
    np.testing.assert_array_equal(prompt.positions, positions.numpy())
    # HF decodes the first generated token at its index plus the delta.
    assert prompt.next_position() == len(prompt) + int(delta)


@given(segments=seg.sequences(seg.images(), seg.videos(SILENT), seg.sounds()))
@example(segments=[Segment(image=(1, 4, 6)), Segment(mel=70), Segment(video=(3, 4, 2), seconds=1.37), TEXT])
@example(segments=[TEXT])
def test_omni_separate_clips(omni: TinyCheckpoint, segments: list[Segment]):
    assert_omni_equal(omni, segments)


# HF counts a silent video beside a video with sound as one more of the latter and then reads past it, so the two
# are not mixed here. Images and separate sounds are.
@given(segments=seg.sequences(seg.images(), seg.videos(seg.mel_lengths()), seg.sounds()))
@example(segments=[TEXT, Segment(video=(2, 4, 4), mel=31), Segment(image=(1, 2, 2)), Segment(mel=200), TEXT])
@example(segments=[Segment(video=(6, 4, 4), seconds=4.0, mel=3), TEXT])  # the picture goes on after the sound
@example(segments=[Segment(video=(1, 4, 4), seconds=0.5, mel=1200), TEXT])  # the sound goes on after the picture
def test_omni_sound_in_video(omni: TinyCheckpoint, segments: list[Segment]):
    assert_omni_equal(omni, segments)


# At these rates float32 and float64 disagree on which chunk a grid step opens. HF orders the tokens with the one and
# numbers them with the other.
@pytest.mark.parametrize("fps", [1.3, 2.6, 3.7])
def test_omni_at_rates_that_round_differently(omni: TinyCheckpoint, fps: float):
    assert_omni_equal(omni, [TEXT, Segment(video=(80, 2, 4), seconds=2 / fps, mel=6000), TEXT])


@given(segments=seg.sequences(seg.images(), seg.videos(SILENT)))
def test_vl(vl: TinyCheckpoint, segments: list[Segment]):
    # HF tells clips apart by the text between them; every clip brings its opening and closing token.
    assert_vl_equal(vl, segments)


@given(segments=seg.sequences(seg.images(), seg.videos(SILENT)))
@example(segments=[TEXT, Segment(video=(40, 4, 6), seconds=1.0), TEXT, Segment(image=(1, 4, 6)), TEXT])
def test_vl_as_trained(vl: TinyCheckpoint, segments: list[Segment]):
    assert_vl_trained(vl, segments)


def test_text_after_a_long_video(vl: TinyCheckpoint):
    """40 s of video: what follows starts after its last step, or, by the other rule, after its larger side."""
    config = seg.read_model_config(vl)
    segments = [Segment(video=(40, 4, 24), seconds=1.0), TEXT]
    token_ids, shapes = seg.written_out(segments, config), seg.shapes(segments)
    closing = 1 + 40 * 24
    for rule, start in (("trained", 1 + 39 * config.position_units_per_second + 1), ("transformers-5.3", 1 + 12)):
        assert (assembled(token_ids, shapes, config, rule).positions[:, closing] == start).all()


def test_rules_are_refused_by_name(omni: TinyCheckpoint, vl: TinyCheckpoint):
    config = seg.read_model_config(omni)
    with pytest.raises(ValueError, match=r"positions='transformers-5.3': every version .* numbers qwen2_5_omni alike"):
        token_layout(np.array([5, 6]), MediaShapes(), config, "transformers-5.3")
    with pytest.raises(ValueError, match=r"positions: expected 'trained' or 'transformers-5.3', got 'newest'"):
        token_layout(np.array([5, 6]), MediaShapes(), seg.read_model_config(vl), "newest")  # pyright: ignore


@given(seconds=st.floats(0.05, 8.0), steps=st.integers(1, 60))
def test_any_seconds_per_grid(omni: TinyCheckpoint, vl: TinyCheckpoint, seconds: float, steps: int):
    segments = [TEXT, Segment(video=(steps, 2, 4), seconds=seconds), TEXT]
    assert_omni_equal(omni, segments)
    assert_vl_equal(vl, segments)
    assert_vl_trained(vl, segments)


@pytest.mark.parametrize(("units", "chunk"), [(13, 2), (7, 1), (40, 3)])
def test_omni_off_default_units(tmp_path: Path, units: int, chunk: int):
    tiny = write_checkpoint(tmp_path / "tiny", "qwen2_5_omni", position_id_per_seconds=units, seconds_per_chunk=chunk)
    movie = Segment(video=(9, 4, 6), seconds=1.37, mel=933)
    assert_omni_equal(tiny, [TEXT, movie, Segment(image=(1, 4, 2)), TEXT])
    assert_omni_equal(tiny, [TEXT, Segment(video=(9, 4, 6), seconds=1.37), Segment(mel=50), TEXT])


@pytest.mark.parametrize("units", [1, 7, 25])
def test_vl_off_default_units(tmp_path: Path, units: int):
    tiny = write_checkpoint(tmp_path / "tiny", "qwen2_5_vl", vision_config={"tokens_per_second": units})
    assert_vl_equal(tiny, [TEXT, Segment(video=(9, 4, 6), seconds=1.37), TEXT, Segment(image=(1, 4, 2)), TEXT])
    for fps in (1.3, 2.1, 2.6, 3.7):  # in float32 the product depends on its order; the default, 4, would not show it
        assert_vl_equal(tiny, [TEXT, Segment(video=(200, 2, 2), seconds=2 / fps), TEXT])
        assert_vl_trained(tiny, [TEXT, Segment(video=(200, 2, 2), seconds=2 / fps), TEXT])


def test_units_change_positions(omni: TinyCheckpoint, tmp_path: Path):
    """The comparison above would be empty if HF ignored the key."""
    tiny = write_checkpoint(tmp_path / "tiny", "qwen2_5_omni", position_id_per_seconds=13)
    segments = [Segment(video=(3, 2, 2), seconds=1.0), TEXT]
    ends = [
        assembled(seg.written_out(segments, config), seg.shapes(segments), config).next_position()
        for config in map(seg.read_model_config, (omni, tiny))
    ]
    # One opening token, then t of the last step; a closing token and the text follow.
    assert ends == [1 + 2 * 25 + 1 + 1 + 3, 1 + 2 * 13 + 1 + 1 + 3]
