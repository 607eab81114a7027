"""Logits of whole prompts with media against Hugging Face, to 1e-4: HF runs its own towers, layout and positions."""

import numpy as np
import pytest

import avjax
from avjax.media.decode import SAMPLE_RATE
from avjax.media.features import frame_features, waveform_features
from avjax.prompts.prompt import AudioFeatures, VisionFeatures
from converters.verify import hf_batch, media_prompt
from tests.tiny_hf import TinyCheckpoint

TOLERANCE = 1e-4


def video(model: avjax.Model, frames: int, height: int = 56, width: int = 84) -> VisionFeatures:
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), np.uint8)
    options = model.processor.options.override(min_pixels=28 * 28, max_pixels=84 * 84)
    return frame_features(pixels, model.config.vision, options, source="random frames")


def image(model: avjax.Model, height: int, width: int) -> VisionFeatures:
    one = video(model, 1, height, width)
    return VisionFeatures(patches=one.patches, grid=one.grid, seconds_per_grid=None, source="random image")


def sound(model: avjax.Model, seconds: float) -> AudioFeatures:
    waveform = np.random.default_rng(0).normal(size=round(seconds * SAMPLE_RATE)).astype(np.float32)
    return waveform_features(0.1 * waveform, model.processor.options, source="noise")


CASES = {
    "text": lambda m: media_prompt(m),
    "image": lambda m: media_prompt(m, images=(image(m, 70, 45),)),
    "two images": lambda m: media_prompt(m, images=(image(m, 28, 84), image(m, 84, 56))),
    "video": lambda m: media_prompt(m, videos=(video(m, 6),)),
    "video of one frame": lambda m: media_prompt(m, videos=(video(m, 1),)),
    "video of odd frames": lambda m: media_prompt(m, videos=(video(m, 5, 40, 80),)),
}
AUDIO_CASES = {
    **{f"audio of {s} s": lambda m, s=s: media_prompt(m, audio=(sound(m, s),)) for s in (0.3, 0.7, 2.0, 31.0)},
    "two sounds": lambda m: media_prompt(m, audio=(sound(m, 0.7), sound(m, 2.5))),
    "audio and a separate image": lambda m: media_prompt(m, images=(image(m, 56, 56),), audio=(sound(m, 2.0),)),
    "audio and a separate video": lambda m: media_prompt(m, videos=(video(m, 4),), audio=(sound(m, 3.0),)),
    "audio in video": lambda m: media_prompt(m, videos=(video(m, 10),), audio=(sound(m, 5.0),), audio_in_video=True),
    "long audio in video": lambda m: media_prompt(
        m, videos=(video(m, 2),), audio=(sound(m, 5.3),), audio_in_video=True
    ),
    "short audio in video": lambda m: media_prompt(
        m, videos=(video(m, 9),), audio=(sound(m, 0.7),), audio_in_video=True
    ),
}


def difference(model: avjax.Model, tiny: TinyCheckpoint, prompt: avjax.Prompt) -> float:
    expected = tiny.torch_model(**hf_batch(prompt, model)).logits[0].numpy()
    got = np.asarray(avjax.run(model, prompt, at="all").logits)
    assert got.shape == expected.shape
    assert expected.std() > 0.3
    return float(np.abs(got - expected).max())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*CASES, *AUDIO_CASES])
def test_qwen2_5_omni(name: str, omni: TinyCheckpoint, omni_model: avjax.Model):
    prompt = {**CASES, **AUDIO_CASES}[name](omni_model)
    assert difference(omni_model, omni, prompt) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_qwen2_5_vl(name: str, vl: TinyCheckpoint, vl_model: avjax.Model):
    assert difference(vl_model, vl, CASES[name](vl_model)) <= TOLERANCE
