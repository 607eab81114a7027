"""`media="qwen-omni-utils"` against what that package made of the same files; see reference_qwen_omni_utils.py."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avjax
from avjax.media import qwen_omni_utils
from avjax.media.features import audio_features, image_features, video_features
from avjax.media.images import read_image
from avjax.media.options import MediaOptions
from avjax.media.sources import sampled_video, sound

FOLDER = Path(__file__).parent / "fixtures" / "qwen_omni_utils"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
ORIGINAL, OURS = MediaOptions(media="qwen-omni-utils"), MediaOptions()
STEP = 2.0**-15  # of a 16-bit sample


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["turned.mov", "large.mov"])
def test_frames_are_equal_to_the_bit(omni_model: avjax.Model, name: str):
    expected = EXPECTED[name]
    features, fps = video_features(FOLDER / name, omni_model.config.vision, ORIGINAL)
    assert list(features.grid) == expected["grid"] and fps == expected["fps"]
    assert digest(features.patches) == expected["patches"]
    default, _ = video_features(FOLDER / name, omni_model.config.vision, OURS)
    if name == "turned.mov":  # we show it upright
        assert default.grid == (features.grid[0], features.grid[2], features.grid[1])
    else:
        assert default.grid == features.grid
        levels = np.abs(default.patches - features.patches).max() * 255 * 0.27
        assert 4 < levels < 16, "Pillow rounds twice"


def test_frames_as_they_are_stored():
    frames = sampled_video(FOLDER / "turned.mov", ORIGINAL)
    assert frames.frames.shape == (4, 24, 36, 3)
    assert frames.seconds == (0.0, 0.4, 0.7, 1.1)
    np.testing.assert_array_equal(
        np.rot90(frames.frames, -1, axes=(1, 2)), sampled_video(FOLDER / "turned.mov", OURS).frames
    )


@pytest.mark.parametrize("name", ["turned.png", "clear.png", "grey-clear.png", "grey16.png", "ribbon.png"])
def test_images_are_equal_to_the_bit(omni_model: avjax.Model, name: str):
    features = image_features(FOLDER / name, omni_model.config.vision, ORIGINAL)
    assert list(features.grid) == EXPECTED[name]["grid"]
    assert digest(features.patches) == EXPECTED[name]["patches"]
    default = image_features(FOLDER / name, omni_model.config.vision, OURS)
    assert name == "clear.png" or digest(default.patches) != EXPECTED[name]["patches"]


def test_16_bit_grey_becomes_white_there_and_not_here():
    assert (read_image(FOLDER / "grey16.png", as_viewers_show=False) == 255).mean() > 0.9
    assert 100 < read_image(FOLDER / "grey16.png").mean() < 150


def test_sound_files_are_equal_to_the_bit():
    expected = np.load(FOLDER / "sounds.npz")["loud.wav"]
    assert np.abs(expected).max() > 0.8
    np.testing.assert_array_equal(sound(FOLDER / "loud.wav", ORIGINAL)[0], expected)


def test_sound_of_a_video_is_rounded_and_clipped():
    """ffmpeg 5.1 and PyAV's libav 62 decode one 16-bit sample in 2,000 differently, by 1; resampling spreads it."""
    expected = np.load(FOLDER / "sounds.npz")["loud.mp4"]
    original, ours = sound(FOLDER / "loud.mp4", ORIGINAL)[0], sound(FOLDER / "loud.mp4", OURS)[0]
    assert original.shape == expected.shape and original.dtype == expected.dtype
    assert np.abs(original - expected).max() <= STEP
    assert np.abs(original - expected).mean() <= STEP / 100
    assert np.abs(ours - expected).max() > 0.02, "ours is not clipped"


def test_what_is_rounded_before_it_is_averaged_and_resampled():
    samples, rate = qwen_omni_utils._read_16_bits(FOLDER / "loud.mp4")  # pyright: ignore[reportPrivateUsage]
    assert rate == 44_100 and samples.shape[1] == 2 and samples.dtype == np.float32
    np.testing.assert_array_equal(samples, np.rint(samples / STEP) * STEP)
    assert samples.max() == 1 - STEP and samples.min() == -1


def test_log_mel_of_loud_sound_differs_between_the_two(omni_model: avjax.Model):
    options = omni_model.processor.options
    here = audio_features(FOLDER / "loud.mp4", options).mel
    there = audio_features(FOLDER / "loud.mp4", options.override(media="qwen-omni-utils")).mel
    assert here.shape == there.shape and np.abs(here - there).max() > 0.1


def test_a_prompt_takes_the_option(omni_model: avjax.Model):
    prompt = omni_model.prompt("What?", video=FOLDER / "turned.mov", audio=FOLDER / "loud.mp4", media="qwen-omni-utils")
    assert digest(prompt.videos[0].patches) == EXPECTED["turned.mov"]["patches"]
    with pytest.raises(ValueError, match="expected media among avjax, qwen-omni-utils, got 'qwen'"):
        omni_model.prompt("What?", media="qwen")
