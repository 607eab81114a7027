"""Media that are no files: Pillow images, arrays, samples with their rate; and what cannot be meant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import avjax
from avjax.media.errors import MediaError
from avjax.media.features import audio_features, frame_features, image_features, video_features
from avjax.media.options import MediaOptions
from avjax.media.sources import picture, sound

RATE = 16_000
OPTIONS = MediaOptions(audio=(("chunk_length", 300), ("feature_size", 128)), min_pixels=28 * 28, max_pixels=56 * 56)


def pixels(*size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def tone(rate: int = RATE) -> np.ndarray:
    return (0.4 * np.sin(np.arange(rate) * 0.05)).astype(np.float32)


def test_images_are_those_of_a_file(omni_model: avjax.Model, tmp_path: Path):
    vision = omni_model.config.vision
    Image.fromarray(pixels(60, 80, 3)).save(tmp_path / "a.png")
    expected = image_features(tmp_path / "a.png", vision, OPTIONS)
    for image in (Image.open(tmp_path / "a.png"), pixels(60, 80, 3), Image.fromarray(pixels(60, 80, 3))):
        features = image_features(image, vision, OPTIONS)
        assert features.grid == expected.grid and "image" in features.source
        np.testing.assert_array_equal(features.patches, expected.patches)
    grey = image_features(pixels(60, 80), vision, OPTIONS)
    np.testing.assert_array_equal(
        grey.patches, image_features(np.repeat(pixels(60, 80)[..., None], 3, axis=2), vision, OPTIONS).patches
    )


@pytest.mark.parametrize(
    "samples",
    [
        tone(), tone().astype(np.float64), np.rint(tone() * 2**15).astype(np.int16),
        np.rint(tone().astype(np.float64) * 2**31).astype(np.int32), np.stack([tone(), tone()], axis=1),
        np.stack([tone() * 2, tone() * 0]),
    ],
    ids=["float32", "float64", "int16", "int32", "channels last", "channels first"],
)  # fmt: skip
def test_samples_are_floats_of_full_scale_1(samples: np.ndarray):
    waveform, source = sound((samples, RATE), OPTIONS)
    assert waveform.dtype == np.float32 and waveform.flags.c_contiguous and "audio" in source
    step = np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else np.inf
    np.testing.assert_allclose(waveform, tone(), rtol=1e-7, atol=0.51 / step)


@pytest.mark.parametrize(
    "clip",
    [
        (RATE, tone()), (tone(), np.array(RATE)), (np.array(RATE), tone()), (tone().astype(">f4"), RATE),
        (np.ma.masked_invalid(tone()), RATE), {"array": tone(), "sampling_rate": RATE},
    ],
    ids=["as scipy", "rate as an array", "as scipy, as arrays", "big-endian", "without a masked value", "datasets"],
)  # fmt: skip
def test_samples_that_are_plainly_meant(clip: Any):
    np.testing.assert_array_equal(sound(clip, OPTIONS)[0], tone())


def test_other_byte_orders_and_silence():
    samples = np.rint(tone() * 2**15).astype(np.int16)
    np.testing.assert_array_equal(sound((samples.astype(">i2"), RATE), OPTIONS)[0], sound((samples, RATE), OPTIONS)[0])
    assert not sound((np.zeros(RATE, np.int32), RATE), OPTIONS)[0].any()
    grey = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    np.testing.assert_array_equal(picture(grey.astype(">u2"), OPTIONS)[0], picture(grey, OPTIONS)[0])


@pytest.mark.parametrize("rate", [8000, 44_100, np.int64(48_000), 22_050.0])
def test_samples_of_another_rate(tmp_path: Path, rate: float):
    soundfile.write(tmp_path / "tone.wav", tone(int(rate)), int(rate), subtype="FLOAT")
    np.testing.assert_array_equal(
        audio_features((tone(int(rate)), rate), OPTIONS).mel, audio_features(tmp_path / "tone.wav", OPTIONS).mel
    )


def test_frames_are_sampled_by_their_rate(omni_model: avjax.Model):
    vision, frames = omni_model.config.vision, pixels(40, 28, 56, 3)
    features, fps = video_features((frames, 10.0), vision, OPTIONS)
    chosen = np.linspace(0, 39, 8).round().astype(int)
    np.testing.assert_array_equal(
        features.patches, frame_features(frames[chosen], vision, OPTIONS, source="frames").patches
    )
    assert fps == 2.0 and features.step_seconds == tuple(i / 10 for i in chosen[::2])


class Tensor:
    """What another library's array looks like."""

    def __array__(self) -> np.ndarray:
        return pixels(28, 28, 3)


READ = {
    "image": lambda model, clip: image_features(clip, model.config.vision, OPTIONS),
    "video": lambda model, clip: video_features(clip, model.config.vision, OPTIONS),
    "audio": lambda model, clip: audio_features(clip, OPTIONS),
}


@pytest.mark.parametrize(
    ("kind", "clip", "words"),
    [
        ("image", ["a.png", "b.png"], "expected one image .*got a list of 2; pass one of them"),
        ("image", b"\x89PNG", "got bytes"),
        ("image", None, "expected a file, a Pillow image, or an array .*got NoneType"),
        ("image", Tensor(), "got tests.media.test_sources.Tensor; convert it with np.asarray"),
        ("image", pixels(28, 28, 3) / 255, "expected uint8"),
        ("video", ["a.mp4"], "expected one video .*got a list of 1"),
        ("video", pixels(8, 28, 28, 3), "got an array without its rate"),
        ("video", (pixels(8, 28, 28, 3), 0), "expected a rate above 0 beside the array, got 0"),
        ("video", (pixels(8, 28, 28, 3), None), "expected a rate above 0 beside the array, got None"),
        ("video", (pixels(8, 28, 28, 3), True), "expected a rate above 0 beside the array, got True"),
        ("video", (pixels(8, 3, 28, 28), 2.0), r"expected frames as uint8 \[n, height, width, 3\]"),
        ("video", (pixels(8, 28, 28, 3) / 255, 2.0), "got float64"),
        ("video", (pixels(0, 28, 28, 3), 2.0), r"got uint8 \[0, 28, 28, 3\]"),
        ("audio", tone(), "got an array without its rate"),
        ("audio", (tone(), float("nan")), "expected a rate above 0"),
        ("audio", (tone() * 32768, RATE), "expected floats within -1 to 1, got 13107"),
        ("audio", ((tone() * 100).astype(np.int64), RATE), "expected samples as floats within -1 to 1, int16 or int32"),
        ("audio", ((tone() * 100 + 128).astype(np.uint8), RATE), "got uint8"),
        ("audio", (np.zeros((8, 8), np.float32), RATE), "8 x 8, where neither axis is clearly the channels"),
        ("audio", (np.zeros((100, 100), np.float32), RATE), "100 x 100, where neither"),
        ("audio", (np.zeros((2, 2, 99), np.float32), RATE), r"got \[2, 2, 99\]"),
        ("audio", (np.zeros(0, np.float32), RATE), "the audio is empty"),
        ("audio", (np.full(RATE, np.nan, np.float32), RATE), "16000 NaN or infinite"),
        ("audio", (np.rint(tone() * 32767).astype(np.int32), RATE), "got 13107 at most, as of 16-bit samples"),
        ("audio", (np.full(RATE, -32768, np.int32), RATE), "got 32768 at most"),
        ("audio", (tone(), 16), "expected a rate of 1000 to 1000000 Hz beside the samples, got 16;"),
        ("audio", (tone(), 1.6e7), "got 1.6e"),
        ("audio", (tone(), np.array([RATE])), r"expected a rate above 0 beside the array, got an array \[1\]"),
        ("audio", (tone(), tone()), r"got an array \[16000\]"),
        ("audio", (np.ma.masked_greater(tone(), 0.3), RATE), r"got \d+ masked values; fill them"),
        ("video", (np.ma.masked_less(pixels(8, 28, 28, 3), 9), 2.0), "masked values"),
        ("image", np.ma.masked_less(pixels(28, 28, 3), 9), "masked values"),
        ("image", Image.new("RGB", (0, 5)), "expected pixels, got 0 x 5"),
        ("audio", ["a.wav"], "expected one audio .*got a list of 1"),
    ],
)
def test_what_cannot_be_meant_is_said(omni_model: avjax.Model, kind: str, clip: Any, words: str):
    with pytest.raises(MediaError, match=words) as error:
        READ[kind](omni_model, clip)
    assert str(error.value).startswith(kind)


def test_pictures_and_unplayable_animations_are_no_videos(omni_model: avjax.Model, tmp_path: Path):
    Image.fromarray(pixels(60, 80, 3)).save(tmp_path / "a.jpg")
    frames = [Image.fromarray(pixels(32, 32, 3)), Image.new("RGB", (32, 32))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    for name, words in (("a.jpg", "still picture; pass it as image="), ("a.webp", "animated WEBP of 2 frames")):
        with pytest.raises(MediaError, match=rf"{name}: .*{words}"):
            READ["video"](omni_model, tmp_path / name)
