"""`python -m tests.media` finds no difference on the real clips, and finds one where there is one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from avjax.media import decode
from tests.media import folder_check

pytestmark = pytest.mark.skipif(
    shutil.which("ffprobe") is None or shutil.which("ffmpeg") is None, reason="ffmpeg and ffprobe are not installed"
)


@pytest.mark.exhaustive
def test_real_clips(real_clips: Path):
    files = folder_check.media_files(real_clips)
    assert files
    different = [str(line) for path in files for line in folder_check.differences(path)]
    assert not different, "\n".join(different)


@pytest.mark.exhaustive
def test_a_difference_is_told(clip: Path, monkeypatch: pytest.MonkeyPatch):
    assert not list(folder_check.differences(clip))
    monkeypatch.setattr(folder_check, "read_audio", lambda path, sync: decode.read_audio(path, sync=sync)[800:])
    monkeypatch.setattr(folder_check, "media_kind", lambda path: "audio")
    assert {line.what for line in folder_check.differences(clip)} == {
        "kind",
        "samples (clock)",
        "samples (published)",
    }


def test_one_frame_of_many_is_told(clip: Path, monkeypatch: pytest.MonkeyPatch):
    def with_one_wrong(path: Path, choose: Any) -> Any:
        frames, info = decode.read_video(path, choose)
        frames = frames.copy()
        frames[1] += 3
        return frames, info

    monkeypatch.setattr(folder_check, "read_video", with_one_wrong)
    assert [line.what.split(" of ")[0] for line in folder_check.differences(clip)] == ["mean difference"]


def test_a_quiet_sound_that_is_lost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise = 0.00045 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(tmp_path / "quiet.wav", noise, 16_000, subtype="FLOAT")
    assert not list(folder_check.differences(tmp_path / "quiet.wav"))
    monkeypatch.setattr(folder_check, "read_audio", lambda path, sync: 0 * decode.read_audio(path, sync=sync))
    assert len(list(folder_check.differences(tmp_path / "quiet.wav"))) == 2


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.bmp", "clear.png", "turned.jpg"])
def test_pixels_of_a_picture_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    pixels = np.stack([across, down, across + down], -1).astype(np.uint8) * 2
    if name.startswith("clear"):
        pixels = np.concatenate([pixels, 3 * pixels[..., :1]], -1)
    exif = Image.Exif()
    exif[0x112] = 6 if name.startswith("turned") else 1
    Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    assert not list(folder_check.differences(tmp_path / name))
    monkeypatch.setattr(folder_check, "read_image", lambda path: decode.read_image(path)[:, ::-1])
    assert [line.what for line in folder_check.differences(tmp_path / name)] == ["mean difference of the picture"]


def test_text_that_is_taken_for_a_medium_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("readme.nfo", "x.png", "notes.txt"):
        (tmp_path / name).write_text("hello")
    assert len(folder_check.media_files(tmp_path)) == 3
    for path in folder_check.media_files(tmp_path):
        assert not list(folder_check.differences(path))
    monkeypatch.setattr(folder_check, "media_kind", lambda path: "video")
    for path in folder_check.media_files(tmp_path):
        assert [line.what for line in folder_check.differences(path)] == ["kind"]
