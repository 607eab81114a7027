"""`python -m tests.media` finds no difference on the real clips, and finds one where there is one."""

import shutil
from pathlib import Path

import pytest

from avjax.media import decode
from tests.media import folder_check

pytestmark = pytest.mark.skipif(
    shutil.which("ffprobe") is None or shutil.which("ffmpeg") is None, reason="ffmpeg and ffprobe are not installed"
)


def test_real_clips(real_clips: Path):
    files = folder_check.media_files(real_clips)
    assert files
    different = [str(line) for path in files for line in folder_check.differences(path)]
    assert not different, "\n".join(different)


def test_a_difference_is_told(clip: Path, monkeypatch: pytest.MonkeyPatch):
    assert not list(folder_check.differences(clip))
    monkeypatch.setattr(folder_check, "read_audio", lambda path, sync: decode.read_audio(path, sync=sync)[800:])
    monkeypatch.setattr(folder_check, "media_kind", lambda path: "audio")
    assert {line.what for line in folder_check.differences(clip)} == {
        "kind",
        "samples (clock)",
        "samples (published)",
    }
