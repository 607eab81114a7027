"""Media that a prompt cannot take: one clear error each, with the file or the rule and a next step."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import avjax
from tests.clip import write_clip
from tests.tiny_hf import TinyCheckpoint

RATE = 16_000


def tone(path: Path, seconds: float) -> Path:
    soundfile.write(path, (0.3 * np.sin(np.arange(round(seconds * RATE)) * 0.2)).astype(np.float32), RATE)
    return path


def assert_refused(model: avjax.Model, *words: str, text: str = "What?", **media) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        model.prompt(text, **media)
    assert type(refused.value).__module__.split(".")[0] in ("avjax", "builtins"), "a library's error came through"
    for word in words:
        assert word in str(refused.value)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import av

    path = tmp_path_factory.mktemp("silent") / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for _ in range(6):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("argument", ["video", "audio", "image"])
def test_missing_file(omni_model: avjax.Model, tmp_path: Path, argument: str):
    path = tmp_path / "absent"
    assert_refused(omni_model, str(path), "check the path", **{argument: path})
    assert_refused(omni_model, str(path), "check the path", **{argument: str(path)})


@pytest.mark.parametrize("argument", ["video", "audio", "image"])
def test_text_with_a_media_name(omni_model: avjax.Model, tmp_path: Path, argument: str):
    path = tmp_path / "notes.mp4"
    path.write_text("This is text, whatever its name says.\n" * 40)
    assert_refused(omni_model, str(path), **{argument: path})


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_video(omni_model: avjax.Model, clip: Path, tmp_path: Path, share: float):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: int(share * clip.stat().st_size)])
    assert_refused(omni_model, str(path), "re-encode", video=path)
    assert_refused(omni_model, str(path), "re-encode", video=path, audio="from_video")


def test_video_without_sound(omni_model: avjax.Model, silent: Path):
    assert_refused(omni_model, str(silent), "audio stream", "audio=None", video=silent, audio="from_video")
    assert omni_model.prompt("What?", video=silent).counts()["video"] > 0


def test_real_video_without_sound(omni_model: avjax.Model, real_clips: Path):
    path = real_clips / "silent.mp4"
    assert_refused(omni_model, str(path), "audio=None", video=path, audio="from_video", max_frames=4)


def test_sound_as_video_and_picture_as_sound(omni_model: avjax.Model, silent: Path, tmp_path: Path):
    assert_refused(omni_model, "tone.wav", "audio=", video=tone(tmp_path / "tone.wav", 1.0))
    assert_refused(omni_model, str(silent), "audio stream", audio=silent)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "picture.png")
    assert_refused(omni_model, "picture.png", audio=tmp_path / "picture.png")


def test_sound_of_a_video_that_was_not_given(omni_model: avjax.Model):
    assert_refused(omni_model, "audio='from_video'", "video=", audio="from_video")


def test_sound_too_long(omni_model: avjax.Model, tmp_path: Path):
    assert_refused(omni_model, "long.wav", "300.1 s", "at most 300 s", audio=tone(tmp_path / "long.wav", 300.1))


@pytest.mark.parametrize("num_samples", [1, 160, 320])
def test_sound_too_short(omni_model: avjax.Model, tmp_path: Path, num_samples: int):
    """Up to two mel frames make no token."""
    assert_refused(omni_model, "short.wav", "no token", audio=tone(tmp_path / "short.wav", num_samples / RATE))


def test_shortest_sound(omni_model: avjax.Model, tmp_path: Path):
    assert omni_model.prompt("What?", audio=tone(tmp_path / "short.wav", 321 / RATE)).counts()["audio"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_not_finite(omni_model: avjax.Model, tmp_path: Path, value: float):
    soundfile.write(tmp_path / "broken.wav", np.full(RATE, value, np.float32), RATE, subtype="FLOAT")
    assert_refused(omni_model, "broken.wav", "16000 NaN or infinite", audio=tmp_path / "broken.wav")


def test_empty_sound(omni_model: avjax.Model, tmp_path: Path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    assert_refused(omni_model, "empty.wav", "empty", audio=tmp_path / "empty.wav")


def test_ribbon(omni_model: avjax.Model, tmp_path: Path):
    Image.fromarray(np.zeros((2, 500, 3), np.uint8)).save(tmp_path / "ribbon.png")
    assert_refused(
        omni_model, "ribbon.png", "aspect ratio below 200, got 2 x 500", "crop", image=tmp_path / "ribbon.png"
    )


def test_sound_for_a_family_without_ears(vl_model: avjax.Model, clip: Path, tmp_path: Path):
    path = tone(tmp_path / "tone.wav", 1.0)
    assert_refused(vl_model, str(path), "qwen2_5_vl", "audio=None", audio=path)
    assert_refused(vl_model, "qwen2_5_vl", "audio=None", video=clip, audio="from_video")


@pytest.mark.parametrize("token", ["<|VIDEO|>", "<|IMAGE|>", "<|AUDIO|>"])
def test_control_token_in_the_text(omni_model: avjax.Model, token: str):
    assert_refused(omni_model, "control tokens", "remove", text=f"Look: {token}")


def test_control_token_in_the_text_beside_a_clip(omni_model: avjax.Model, silent: Path):
    assert_refused(omni_model, "control tokens", "remove", text="Look: <|VIDEO|>", video=silent)


def test_vl_control_token_in_the_text(vl_model: avjax.Model):
    assert_refused(vl_model, "control tokens", "remove", text="Look: <|video_pad|>")


def test_no_tokenizer(omni: TinyCheckpoint, tmp_path: Path):
    shutil.copytree(omni.directory, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    model = avjax.load(tmp_path / "bare")
    assert_refused(model, str(tmp_path / "bare"), "tokenizer", "prompt_from_hf")
    assert model.decode_text([1, 2]) is None


def test_no_chat_template(omni: TinyCheckpoint, tmp_path: Path):
    shutil.copytree(omni.directory, tmp_path / "plain", ignore=shutil.ignore_patterns("chat_template*"))
    config = tmp_path / "plain" / "tokenizer_config.json"
    assert "chat_template" not in config.read_text()
    assert_refused(avjax.load(tmp_path / "plain"), str(tmp_path / "plain"), "chat_template.jinja")


def test_unknown_media_option(omni_model: avjax.Model):
    with pytest.raises(TypeError, match=re.escape("got frames_per_second")):
        omni_model.prompt("What?", frames_per_second=2)


@pytest.mark.parametrize(
    "option",
    [
        {"fps": 0.0},
        {"fps": -1.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"max_frames": 0},
        {"max_frames": 1, "min_frames": 1},
        {"min_frames": 30, "max_frames": 20},
        {"min_pixels": 0},
        {"max_pixels": 50_176},  # below the default min_pixels, which a small picture would then be grown to
        {"image_max_pixels": 56},
    ],
    ids=str,
)
def test_media_options_out_of_range(omni_model: avjax.Model, tmp_path: Path, option: dict[str, float]):
    write_clip(tmp_path / "clip.mp4", seconds=1.0, height=64, width=64)
    assert_refused(omni_model, next(iter(option)), video=tmp_path / "clip.mp4", **option)
