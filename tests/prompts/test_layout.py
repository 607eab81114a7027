"""Written-out placeholders against Hugging Face's processor, and what is refused."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

from avjax.families.token_runs import MediaShapes
from avjax.models.audio import num_audio_tokens
from avjax.models.config import ModelConfig
from avjax.prompts.layout import expand_placeholders, token_layout
from avjax.prompts.selectors import MODALITIES
from tests.media import segments as seg
from tests.media.segments import Segment
from tests.tiny_hf import TinyCheckpoint

TEXT = Segment(text=(5, 6, 7))
ANY_RATE = st.one_of(st.sampled_from(seg.SECONDS), st.floats(0.05, 8.0), st.sampled_from([2 / 1.3, 2 / 2.6]))


@pytest.fixture(scope="module")
def omni_config(omni: TinyCheckpoint) -> ModelConfig:
    return seg.read_model_config(omni)


@pytest.fixture(scope="module")
def vl_config(vl: TinyCheckpoint) -> ModelConfig:
    return seg.read_model_config(vl)


def assert_written_out(segments: list[Segment], config: ModelConfig, audio_in_video: bool) -> None:
    expected = seg.written_out(segments, config)
    got = expand_placeholders(
        seg.placeholders(segments, config), seg.shapes(segments), config, audio_in_video=audio_in_video
    )
    np.testing.assert_array_equal(got, expected)
    kinds = token_layout(expected, seg.shapes(segments), config).kinds
    for kind in ("audio", "video", "image"):
        token = getattr(config.tokens, kind)
        np.testing.assert_array_equal(kinds == MODALITIES.index(kind), expected == (-1 if token is None else token))


@given(mel=st.integers(1, 30_000))
def test_number_of_audio_tokens(mel: int):
    assert num_audio_tokens(mel) == seg.num_audio_tokens(mel)


@given(segments=seg.sequences(seg.images(), seg.videos(st.just(0)), seg.sounds()))
def test_separate_clips(omni_config: ModelConfig, segments: list[Segment]):
    assert_written_out(segments, omni_config, audio_in_video=False)


@given(segments=seg.sequences(seg.images(), seg.videos(seg.mel_lengths(), ANY_RATE), seg.sounds()))
def test_sound_in_video(omni_config: ModelConfig, segments: list[Segment]):
    assert_written_out(segments, omni_config, audio_in_video=True)


@given(segments=seg.sequences(seg.images(), seg.videos(st.just(0))))
def test_vl(vl_config: ModelConfig, segments: list[Segment]):
    assert_written_out(segments, vl_config, audio_in_video=False)


@pytest.mark.parametrize("fps", [0.431, 1.3, 2.6, 3.7])
def test_long_clip_at_rates_that_round_differently(omni_config: ModelConfig, fps: float):
    assert_written_out([Segment(video=(80, 2, 4), seconds=2 / fps, mel=6000), TEXT], omni_config, audio_in_video=True)


@given(units=st.integers(1, 60), seconds_per_chunk=st.sampled_from([1, 2, 3]), mel=seg.mel_lengths())
def test_chunks_of_other_lengths(omni_config: ModelConfig, units: int, seconds_per_chunk: int, mel: int):
    config = dataclasses.replace(
        omni_config, position_units_per_second=units, seconds_per_chunk=float(seconds_per_chunk)
    )
    assert_written_out([Segment(video=(7, 4, 2), seconds=1.37, mel=mel), TEXT], config, audio_in_video=True)


@given(steps=st.integers(1, 20), seconds=ANY_RATE, mel=seg.mel_lengths())
def test_chunks_hold_two_seconds(omni_config: ModelConfig, steps: int, seconds: float, mel: int):
    """What a run holds, straight from `get_chunked_index`: the order alone would not tell where a chunk ends."""
    chunked = functools.partial(Qwen2_5OmniProcessor.get_chunked_index, SimpleNamespace())
    audio = chunked(np.arange(num_audio_tokens(mel)), 50)
    video = chunked(np.repeat(np.arange(steps) * seconds * 25, 2), 50)
    segment = Segment(video=(steps, 2, 4), seconds=seconds, mel=mel)
    tokens = seg.placeholders([segment], omni_config)
    got = expand_placeholders(tokens, seg.shapes([segment]), omni_config, audio_in_video=True)[2:-2]
    ids, at = omni_config.tokens, 0
    for j in range(max(len(audio), len(video))):
        for token, spans in ((ids.video, video), (ids.audio, audio)):
            count = int(np.ptp(spans[j])) if j < len(spans) else 0
            assert (got[at : at + count] == token).all()
            at += count
    assert at == len(got)


def test_clip_time_and_grid_step(omni_config: ModelConfig):
    """4 s: two steps of 2 x 2 tokens a chunk at 1 s each, 50 audio tokens a chunk at 40 ms each."""
    segment = Segment(video=(4, 4, 4), seconds=1.0, mel=400)
    tokens = seg.written_out([segment, TEXT], omni_config)
    layout = token_layout(tokens, seg.shapes([segment]), omni_config)
    video, audio = (layout.kinds == MODALITIES.index(kind) for kind in ("video", "audio"))
    np.testing.assert_array_equal(layout.seconds[video], np.repeat([0, 1, 2, 3], 4))
    np.testing.assert_array_equal(layout.frames[video], np.repeat([0, 1, 2, 3], 4))
    np.testing.assert_allclose(layout.seconds[audio], np.arange(100) * 0.04, atol=1e-6)
    assert np.isnan(layout.seconds[~(video | audio)]).all()
    assert (layout.frames[~video] == -1).all()


REFUSALS = {
    "too many placeholders": ([Segment(image=(1, 4, 4))] * 2, MediaShapes(images=[(1, 4, 4)]), "more media"),
    "a video too many": ([Segment(video=(1, 4, 4))], MediaShapes(), "more media"),
    "a sound too many": ([Segment(mel=30)] * 2, MediaShapes(audio_frames=[30]), "more media"),
    "an image left out": ([TEXT], MediaShapes(images=[(1, 4, 4)]), "left out a clip"),
    "a video left out": ([TEXT], MediaShapes(videos=[(1, 4, 4)], seconds_per_grid=[1.0]), "left out a clip"),
    "a sound left out": ([TEXT], MediaShapes(audio_frames=[30]), "left out a clip"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_placeholders_must_match_clips(omni_config: ModelConfig, name: str):
    segments, shapes, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        expand_placeholders(seg.placeholders(segments, omni_config), shapes, omni_config, audio_in_video=False)


def test_sound_in_video_needs_a_sound_per_video(omni_config: ModelConfig):
    tokens = seg.placeholders([Segment(video=(1, 4, 4), mel=30)] * 2, omni_config)
    shapes = MediaShapes(videos=[(1, 4, 4)] * 2, seconds_per_grid=[1.0] * 2, audio_frames=[30])
    with pytest.raises(ValueError, match="more media"):
        expand_placeholders(tokens, shapes, omni_config, audio_in_video=True)


CLIP = Segment(video=(3, 4, 4), mel=120)
MISMATCHES = {
    "one image token too few": ([Segment(image=(1, 4, 4))], MediaShapes(images=[(1, 4, 6)])),
    "sound shorter than its tokens": ([Segment(mel=120), TEXT], MediaShapes(audio_frames=[100])),
    "sound longer than its tokens": ([Segment(mel=120), TEXT], MediaShapes(audio_frames=[200])),
    "image without features": ([Segment(image=(1, 4, 4))], MediaShapes()),
    "features without tokens": ([TEXT], MediaShapes(images=[(1, 4, 4)])),
    "shorter sound in the video": (
        [CLIP, TEXT],
        MediaShapes(videos=[(3, 4, 4)], seconds_per_grid=[1.0], audio_frames=[100]),
    ),
    "longer video with the sound": (
        [CLIP, TEXT],
        MediaShapes(videos=[(4, 4, 4)], seconds_per_grid=[1.0], audio_frames=[120]),
    ),
    "no sound in the video": ([CLIP, TEXT], MediaShapes(videos=[(3, 4, 4)], seconds_per_grid=[1.0])),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_tokens_must_add_up_to_the_clips(omni_config: ModelConfig, name: str):
    segments, shapes = MISMATCHES[name]
    with pytest.raises(ValueError, match="prompt: "):
        token_layout(seg.written_out(segments, omni_config), shapes, omni_config)


def test_cut_off_inside_a_clip(omni_config: ModelConfig):
    tokens = seg.written_out([CLIP], omni_config)
    for stop in range(3, len(tokens)):
        with pytest.raises(ValueError, match="prompt: expected"):
            token_layout(tokens[:stop], seg.shapes([CLIP]), omni_config)
