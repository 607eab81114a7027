"""Decoding in processes of their own: the same features, and a clip by name when its process dies."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import avjax
from avjax.media import features
from avjax.media import isolated as isolated_module
from avjax.media.corruption import AudioCorruption, MuteAudio, ShiftAudio
from avjax.media.decode import sound_offset_seconds
from avjax.media.errors import MediaError
from avjax.media.isolated import IsolatedReader
from avjax.media.options import MediaOptions

FAULTY = "tests.media.faulty_worker"
OMNI = MediaOptions(audio=(("chunk_length", 300), ("feature_size", 128)), min_pixels=28 * 28, max_pixels=56 * 56)


def children() -> set[int]:
    """Processes of this one that still are, or that nobody has waited for."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(file.parent.name)] = int(file.read_text().rsplit(")", 1)[1].split()[1])
    return {process for process, parent in parents.items() if parent == os.getpid()}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def reader():
    with IsolatedReader(60) as reader:
        yield reader


def test_features_are_those_of_this_process(
    reader: IsolatedReader, omni_model: avjax.Model, clip: Path, tmp_path: Path
):
    vision = omni_model.config.vision
    isolated, fps = reader.video(clip, vision, OMNI)
    here, expected_fps = features.video_features(clip, vision, OMNI)
    assert (isolated.grid, isolated.step_seconds, isolated.source, fps) == (
        here.grid, here.step_seconds, str(clip), expected_fps,
    )  # fmt: skip
    np.testing.assert_array_equal(isolated.patches, here.patches)
    assert isolated.patches.flags.writeable

    corrupt = [ShiftAudio(0.5)]
    heard, expected = reader.audio(clip, OMNI, corrupt), features.audio_features(clip, OMNI, corrupt)
    np.testing.assert_array_equal(heard.mel, expected.mel)
    assert heard.source == expected.source

    Image.new("RGB", (60, 80), "green").save(tmp_path / "green.png")
    for image in (tmp_path / "green.png", np.zeros((30, 40, 3), np.uint8)):
        np.testing.assert_array_equal(
            reader.image(image, vision, OMNI).patches, features.image_features(image, vision, OMNI).patches
        )
    tone = (np.sin(np.arange(16_000) * 0.1).astype(np.float32), 16_000)
    np.testing.assert_array_equal(reader.audio(tone, OMNI).mel, features.audio_features(tone, OMNI).mel)


def test_errors_are_those_of_this_process(reader: IsolatedReader, tmp_path: Path):
    (tmp_path / "notes.mp4").write_text("This is text. " * 100)
    for path in (tmp_path / "absent.mp4", tmp_path / "notes.mp4"):
        with pytest.raises(MediaError) as here:
            features.audio_features(path, OMNI)
        with pytest.raises(MediaError) as isolated:
            reader.audio(path, OMNI)
        assert str(isolated.value) == str(here.value)


def test_what_a_file_holds(reader: IsolatedReader, clip: Path, tmp_path: Path):
    assert (reader.media_kind(clip), reader.has_sound(clip)) == ("video", True)
    assert reader.sound_offset_seconds(clip) == sound_offset_seconds(clip)
    with pytest.raises(MediaError, match=r"absent\.mp4: no such file"):
        reader.media_kind(tmp_path / "absent.mp4")


class OwnCorruption(AudioCorruption):
    """One that workers do not have."""

    def __call__(self, clip: np.ndarray, source: str) -> tuple[np.ndarray, str]:
        return clip * 0, source


def test_own_corruptions(reader: IsolatedReader, clip: Path):
    np.testing.assert_array_equal(
        reader.audio(clip, OMNI, [OwnCorruption()]).mel, reader.audio(clip, OMNI, [MuteAudio()]).mel
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("crash", ["SIGSEGV", "re-encode"]),
        ("out_of_memory", ["SIGKILL", "memory"]),
        ("leave", ["status 7"]),
        ("fail", ["_LocalError: of a class"]),
    ],
)
def test_a_death_names_its_clip_and_the_next_clip_is_read(clip: Path, tmp_path: Path, fault: str, words: list[str]):
    shutil.copy(clip, tmp_path / f"{fault}.mp4")
    before = children(), open_files()
    with IsolatedReader(60, module=FAULTY) as reader:
        with pytest.raises(MediaError, match=f"{fault}.mp4") as error:
            reader.audio(tmp_path / f"{fault}.mp4", OMNI)
        assert all(word in str(error.value) for word in words)
        assert len(reader.audio(clip, OMNI).mel)
    assert (children(), open_files()) == before


@pytest.mark.parametrize("fault", ["hang", "hang_alone"])
def test_a_clip_that_never_ends_is_ended(clip: Path, tmp_path: Path, fault: str):
    shutil.copy(clip, tmp_path / f"{fault}.mp4")
    before = children(), open_files()
    with IsolatedReader(1.5, module=FAULTY) as reader:
        began = time.monotonic()
        with pytest.raises(MediaError, match=rf"{fault}\.mp4: .* after 1\.5 s .*decode_seconds"):
            reader.audio(tmp_path / f"{fault}.mp4", OMNI)
        assert time.monotonic() - began < 30
    assert (children(), open_files()) == before


def test_the_limit_covers_a_request_that_nobody_takes():
    frames = np.zeros((64, 256, 256, 3), np.uint8)  # more than a pipe holds
    with IsolatedReader(1.5, module=FAULTY) as reader:
        os.kill(int(sound_process(reader)), signal.SIGSTOP)
        with pytest.raises(MediaError, match=r"video: .* after 1\.5 s"):
            reader._read("video", (frames, 10.0))  # pyright: ignore[reportPrivateUsage]


def test_the_start_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sleepy_worker.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(isolated_module, "START_SECONDS", 0.5)
    before = children(), open_files()
    words = r"clip\.mp4: .*did not start within 0\.5 s"
    with IsolatedReader(60, module="sleepy_worker") as reader, pytest.raises(MediaError, match=words):
        reader.audio("clip.mp4", OMNI)
    assert (children(), open_files()) == before


def test_what_libraries_print_does_not_disturb(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    shutil.copy(clip, tmp_path / "talk.mp4")
    with IsolatedReader(60, module=FAULTY) as reader:
        assert len(reader.audio(tmp_path / "talk.mp4", OMNI).mel)
    printed = capfd.readouterr()
    assert "remark" not in printed.out and "remark" in printed.err and "another one" in printed.err


def sound_process(reader: IsolatedReader) -> str:
    return reader._read("sound", "process", OMNI)[0]  # pyright: ignore[reportPrivateUsage]


@pytest.mark.exhaustive
def test_processes_are_kept_for_the_next_clip_and_not_beyond():
    reader = IsolatedReader(60, module=FAULTY)
    with reader:
        assert len({sound_process(reader) for _ in range(3)}) == 1
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(lambda _: sound_process(reader), range(8)))
    before = children()
    first, second = sound_process(reader), sound_process(reader)
    assert first != second and children() == before


def test_leaving_ends_what_is_being_decoded():
    with ThreadPoolExecutor(1) as pool:
        with IsolatedReader(600, module=FAULTY) as reader:
            pending = pool.submit(reader.audio, "hang", OMNI)
            while not reader._busy:  # pyright: ignore[reportPrivateUsage]
                time.sleep(0.01)
        assert isinstance(pending.exception(timeout=30), MediaError)


def test_a_process_that_does_not_start_says_so():
    with IsolatedReader(60, module="tests.no_such_module") as reader, pytest.raises(MediaError, match="did not start"):
        reader.audio("clip.mp4", OMNI)


def test_workers_start_without_jax_and_torch():
    code = "import sys, avjax.media.worker; print(*{'jax', 'torch', 'transformers', 'flax'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == []


def test_a_worker_ends_with_its_parent():
    code = f"""
    import threading, time
    from avjax.media.isolated import IsolatedReader
    from avjax.media.options import MediaOptions
    reader = IsolatedReader(600, module={FAULTY!r})
    threading.Thread(target=reader.audio, args=("hang", MediaOptions()), daemon=True).start()
    while not reader._busy:
        time.sleep(0.01)
    print(*(worker.process.pid for worker in reader._busy), flush=True)
    time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, signal.SIGINT)  # as Ctrl-C does to both
    os.kill(worker, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(worker, 0)  # it is there
    parent.kill()
    parent.wait()
    parent.stdout.close()
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for _ in range(300):
            if "Z" in Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]:
                break
            time.sleep(0.1)
            os.kill(worker, 0)
        else:
            pytest.fail("the worker outlives its parent")


def test_limits_are_times():
    with pytest.raises(ValueError, match="decode_seconds: expected a time above 0 s"):
        IsolatedReader(0)
