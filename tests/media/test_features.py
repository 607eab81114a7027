"""Log-mel, patches and frame sampling against Hugging Face's classes and Qwen's published recipe."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as hf_image

import avjax
from avjax.media.decode import read_audio
from avjax.media.features import (
    audio_features,
    frame_features,
    image_features,
    patchify,
    smart_resize,
    video_features,
    waveform_features,
)
from avjax.media.frames import sample_frames
from avjax.media.options import CLIP_MEAN, CLIP_STD, MediaOptions
from tests.hf_mel import RATE, hf_log_mel


def assert_mel_equal(got: np.ndarray, waveform: np.ndarray) -> None:
    expected = hf_log_mel(waveform)
    np.testing.assert_array_equal(got, expected)


def noisy_tone(num_samples: int) -> np.ndarray:
    time = np.arange(num_samples) / RATE
    noise = 0.02 * np.random.default_rng(num_samples).normal(size=num_samples)
    return (0.4 * np.sin(2 * np.pi * (300 + 40 * time) * time) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def options(omni_model: avjax.Model) -> MediaOptions:
    return omni_model.processor.options


@pytest.mark.parametrize("seconds", [0.3, 0.7, 2.0, 31.0])
def test_log_mel(options: MediaOptions, seconds: float):
    waveform = noisy_tone(round(seconds * RATE))
    assert_mel_equal(waveform_features(waveform, options, source="tone").mel, waveform)


# Lengths around a frame of 160 samples and around the first window of 400.
@pytest.mark.parametrize("num_samples", [641, 799, 800, 801, 1600, 1759, 16_001])
def test_log_mel_of_broken_frames(options: MediaOptions, num_samples: int):
    waveform = noisy_tone(num_samples)
    assert_mel_equal(waveform_features(waveform, options, source="tone").mel, waveform)


def test_log_mel_when_the_end_is_loudest_or_silent(options: MediaOptions):
    """Whisper floors every frame 8 decades below the loudest one, wherever it is."""
    fading = noisy_tone(RATE) * np.linspace(0, 1, RATE, dtype=np.float32) ** 4
    for waveform in (fading, fading[::-1].copy(), np.concatenate([fading, np.zeros(RATE, np.float32)])):
        assert_mel_equal(waveform_features(waveform, options, source="tone").mel, waveform)


def test_log_mel_is_exact(options: MediaOptions):
    """Held against a transform in float64 of our own; torch's frames are a little off in quiet bins."""
    waveform = noisy_tone(3 * RATE)
    got = waveform_features(waveform, options, source="tone").mel
    padded = np.pad(np.pad(waveform.astype(np.float64), (0, 400)), 200, mode="reflect")
    hann = np.sin(np.pi * np.arange(400) / 400) ** 2
    windows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][: len(got)]
    power = np.abs(np.fft.rfft(windows * hann)) ** 2
    decades = np.log10(np.maximum(power @ slaney_filters(), 1e-10))
    expected = (np.maximum(decades, decades.max() - 8) + 4) / 4
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def slaney_filters() -> np.ndarray:
    """[201, 128]: triangles of equal area between mels that are linear up to 1 kHz, and logarithmic beyond."""
    mels = np.linspace(0, 15 + np.log(8) * 27 / np.log(6.4), 130)
    hz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    bins = np.linspace(0, RATE / 2, 201)[:, None]
    rising, falling = (bins - hz[:-2]) / np.diff(hz)[:-1], (hz[2:] - bins) / np.diff(hz)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (hz[2:] - hz[:-2])


def test_log_mel_of_the_longest_audio(options: MediaOptions):
    """300 s leave no room for padding: the last frame is reflected, as in HF."""
    waveform = np.tile(noisy_tone(30 * RATE), 10)
    assert_mel_equal(waveform_features(waveform, options, source="tone").mel, waveform)


def test_log_mel_of_a_clip(options: MediaOptions, clip: Path):
    waveform = read_audio(clip)
    assert np.abs(waveform).max() > 0.1
    assert_mel_equal(audio_features(clip, options).mel, waveform)


def test_log_mel_of_a_wav(options: MediaOptions, tmp_path: Path):
    waveform = noisy_tone(RATE)
    soundfile.write(tmp_path / "tone.wav", waveform, RATE, subtype="FLOAT")
    assert_mel_equal(audio_features(tmp_path / "tone.wav", options).mel, waveform)


SIDES = st.integers(1, 3000)


@given(
    height=SIDES,
    width=SIDES,
    pixels=st.sampled_from([(56 * 56, 28 * 28 * 1280), (128 * 28 * 28, 768 * 28 * 28), (3136, 3136 * 4)]),
)
@example(height=10, width=1900, pixels=(3136, 28 * 28 * 1280))
@example(height=3, width=3, pixels=(3136, 28 * 28 * 1280))
@settings(max_examples=300)
def test_smart_resize(height: int, width: int, pixels: tuple[int, int]):
    assume(max(height, width) <= 200 * min(height, width))
    bounds = {"factor": 28, "min_pixels": pixels[0], "max_pixels": pixels[1]}
    assert smart_resize(height, width, **bounds) == hf_image.smart_resize(height, width, **bounds)


@pytest.mark.parametrize("size", [(1, 201), (4020, 20)])
def test_smart_resize_refuses_what_hf_refuses(size: tuple[int, int]):
    bounds = {"factor": 28, "min_pixels": 3136, "max_pixels": 28 * 28 * 1280}
    with pytest.raises(ValueError, match="ratio"):
        hf_image.smart_resize(*size, **bounds)
    with pytest.raises(ValueError, match="aspect ratio below 200, got"):
        smart_resize(*size, **bounds)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_image_equal(model: avjax.Model, path: Path, image: np.ndarray) -> None:
    options = model.processor.options.override(image_max_pixels=200 * 28 * 28)
    Image.fromarray(image).save(path)
    got = image_features(path, model.config.vision, options)
    expected = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 200 * 28 * 28})(
        Image.fromarray(image), return_tensors="np"
    )
    assert got.grid == tuple(expected["image_grid_thw"][0])
    assert np.abs(got.patches - expected["pixel_values"]).max() <= 1e-6
    assert got.patches.dtype == np.float32


@given(height=st.integers(8, 500), width=st.integers(8, 500))
@settings(max_examples=15)
def test_image_patches(omni_model: avjax.Model, tmp_path_factory: pytest.TempPathFactory, height: int, width: int):
    assert_image_equal(omni_model, tmp_path_factory.mktemp("image") / "image.png", picture(height, width))


def test_image_patches_of_a_ribbon(omni_model: avjax.Model, tmp_path: Path):
    assert_image_equal(omni_model, tmp_path / "image.png", picture(10, 1900))


def hf_video_patches(pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Patches of [frames, channels, height, width], written down from `Qwen2VLVideoProcessor.patchify` with loops in
    place of its ten-axis permutation: torchvision, which it imports, has no CPU build here."""
    if len(pixels) % 2:
        pixels = torch.cat([pixels, pixels[-1:]])
    steps, rows, columns = len(pixels) // 2, pixels.shape[2] // 14, pixels.shape[3] // 14
    patches = [
        pixels[2 * t : 2 * t + 2, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14].permute(1, 0, 2, 3).reshape(-1)
        for t in range(steps)
        for top in range(0, rows, 2)
        for left in range(0, columns, 2)
        for y in (top, top + 1)
        for x in (left, left + 1)
    ]
    return torch.stack(patches), (steps, rows, columns)


@pytest.mark.parametrize("size", [(1, 28, 28), (2, 56, 28), (5, 28, 84), (7, 84, 56)], ids=str)
def test_video_patches(omni_model: avjax.Model, size: tuple[int, int, int]):
    pixels = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    got, grid = patchify(pixels, omni_model.config.vision)
    expected, expected_grid = hf_video_patches(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert grid == expected_grid
    np.testing.assert_array_equal(got, expected.numpy())


def resized(height: int, width: int, num_frames: int) -> tuple[int, int]:
    """The size of a video frame by the published recipe: at most a frame pair's share of the total budget."""
    low, high, total = 128 * 28 * 28, 768 * 28 * 28, int(128_000 * 28 * 28 * 0.9)
    bound = max(min(high, total / num_frames * 2), int(low * 1.05))
    return hf_image.smart_resize(height, width, factor=28, min_pixels=low, max_pixels=bound)


@pytest.mark.parametrize("size", [(1, 100, 400), (2, 360, 640), (3, 500, 120)], ids=str)
def test_frames(omni_model: avjax.Model, size: tuple[int, int, int]):
    """Resizing and normalising too. HF's video processor resizes with torchvision, ours as HF does images: PIL."""
    frames = np.stack([picture(*size[1:], seed=i) for i in range(size[0])])
    got = frame_features(frames, omni_model.config.vision, omni_model.processor.options, source="frames")
    height, width = resized(*size[1:], size[0])
    small = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in small])).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    expected, grid = hf_video_patches((pixels - mean) / std)
    assert got.grid == grid
    assert np.abs(got.patches - expected.numpy()).max() <= 1e-5
    assert got.seconds_per_grid == 1.0  # 2 frames at 2 fps


def test_many_frames_share_the_pixel_budget(omni_model: avjax.Model):
    options = omni_model.processor.options.override(total_pixels=12 * 200 * 28 * 28, min_pixels=3136)
    got = frame_features(np.zeros((24, 480, 640, 3), np.uint8), omni_model.config.vision, options, source="frames")
    rows, columns = (side // 14 for side in hf_image.smart_resize(480, 640, 28, 3136, 200 * 28 * 28))
    assert got.grid == (12, rows, columns)
    assert 12 * rows * columns / 4 <= 12 * 200


def test_an_own_pixel_bound_holds(omni_model: avjax.Model):
    """The floor of 1.05 times the lower bound is for the shared budget, not for a bound that somebody asked for."""
    options = omni_model.processor.options.override(max_pixels=128 * 28 * 28)
    got = frame_features(np.zeros((2, 480, 640, 3), np.uint8), omni_model.config.vision, options, source="frames")
    rows, columns = (side // 14 for side in hf_image.smart_resize(480, 640, 28, 128 * 28 * 28, 128 * 28 * 28))
    assert got.grid == (1, rows, columns)


def recipe(num_frames: int, rate: float, fps: float, least: int = 4, most: int = 768) -> list[int]:
    """Frame indices by the published rules: a count that is even, between bounds and at most the number of frames."""
    even = lambda count: count - count % 2  # noqa: E731
    wanted = num_frames / rate * fps
    wanted = max(wanted, least + least % 2)
    wanted = min(wanted, even(min(most, num_frames)), num_frames)
    count = 2 * math.floor(wanted / 2)
    assert 2 <= count <= num_frames
    return torch.linspace(0, num_frames - 1, count).round().long().tolist()


@given(
    num_frames=st.one_of(st.integers(2, 3000), st.integers(2, 400_000)),
    rate=st.one_of(st.sampled_from([24.0, 25.0, 30.0, 30000 / 1001, 60.0, 8.0]), st.floats(0.5, 120.0)),
    fps=st.sampled_from([0.5, 1.0, 2.0, 3.7, 8.0]),
)
@settings(max_examples=200)
def test_sampled_frames(num_frames: int, rate: float, fps: float):
    got = sample_frames(num_frames, rate, MediaOptions(fps=fps))
    assert got == recipe(num_frames, rate, fps)
    assert got[0] == 0 and got[-1] == num_frames - 1


@given(num_frames=st.integers(2, 100), least=st.integers(1, 20), most=st.integers(20, 60))
def test_sampled_frames_under_other_bounds(num_frames: int, least: int, most: int):
    got = sample_frames(num_frames, 10.0, MediaOptions(fps=3.0, min_frames=least, max_frames=most))
    assert got == recipe(num_frames, 10.0, 3.0, least, most)


def test_a_video_of_one_frame(omni_model: avjax.Model):
    assert sample_frames(1, 30.0, MediaOptions()) == [0]


def test_generated_clip(omni_model: avjax.Model, clip: Path):
    """4 s at 10 fps: 8 frames at 2 fps."""
    features, sampled_fps = video_features(clip, omni_model.config.vision, omni_model.processor.options)
    height, width = resized(112, 168, 8)
    assert features.grid == (4, height // 14, width // 14)
    assert sampled_fps == 2.0


def counted(path: Path) -> tuple[int, float, int, int, float]:
    """Frames, rate, height, width, and seconds of sound by decoding everything."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        shape = count, float(stream.average_rate), stream.height, stream.width
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return *shape, 0.0
        stream = container.streams.audio[0]
        return *shape, sum(frame.samples for frame in container.decode(stream)) / stream.rate


@pytest.mark.parametrize("name", ["clip.mp4", "silent.mp4"])
def test_real_clip(omni_model: avjax.Model, real_clips: Path, name: str):
    path, options = real_clips / name, omni_model.processor.options
    num_frames, rate, height, width, audio_seconds = counted(path)
    features, sampled_fps = video_features(path, omni_model.config.vision, options)
    indices = recipe(num_frames, rate, 2.0)
    rows, columns = (side // 14 for side in resized(height, width, len(indices)))
    assert features.grid == (math.ceil(len(indices) / 2), rows, columns)
    assert len(features.patches) == np.prod(features.grid)
    assert math.isclose(sampled_fps, len(indices) / num_frames * rate)
    if audio_seconds:
        mel = audio_features(path, options).mel
        assert len(mel) == math.ceil(audio_seconds * 100 - 1e-6)
        assert_mel_equal(mel, read_audio(path))
