"""The user's caches: where they lie, who may write there, and that a command works without them."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import avjax
from avjax.caching import default_directory, programs_name
from avjax.cli import app
from avjax.devices import compilation
from avjax.devices.disk import size, trim
from avjax.models import encoder_cache

CAPTION = """
import collections, json, sys
import jax.monitoring
import avjax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rsplit("/", 1)[-1]]))
directory = avjax.cache()
model = avjax.load("tiny-av")
prompt = model.prompt("Describe what you see and hear.", video=sys.argv[1])
text = avjax.generate(model, prompt, "answer->video@4:8", max_new_tokens=4).text
print(json.dumps({"kept": str(directory), "text": text, "compiled": events["cache_misses"]}))
"""


@pytest.fixture
def directories(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """What `avjax.cache` would turn on; this process keeps its own."""
    asked: list[Path] = []
    monkeypatch.setattr(compilation, "cache_compilations", asked.append)
    monkeypatch.setattr(encoder_cache, "cache_encodings", asked.append)
    monkeypatch.setattr("avjax.caching._say_once", lambda directory: None)
    yield asked


def test_where_they_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, directories: list[Path]):
    monkeypatch.delenv("AVJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "xdg" / "avjax"
    monkeypatch.setenv("AVJAX_CACHE", str(tmp_path / "mine"))
    assert avjax.cache() == tmp_path / "mine"
    assert directories == [tmp_path / "mine" / "encoded"], "jax's own option is set by these tests, and stays"
    assert avjax.cache(tmp_path / "given") == tmp_path / "given", "a given one before the environment's"
    assert directories[1:] == [tmp_path / "given" / programs_name(), tmp_path / "given" / "encoded"]
    for created in (tmp_path / "given", *directories):
        assert created.stat().st_mode & 0o777 == 0o700, "nobody else reads there"
    monkeypatch.setenv("AVJAX_CACHE", "off")
    assert default_directory() is None
    assert avjax.cache() is None


def test_a_relative_xdg_directory_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("AVJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "avjax"


def read_only(directory: Path) -> Path:
    return Path("/proc/avjax")  # root writes wherever else


def writable_for_all(directory: Path) -> Path:
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def of_somebody_else(directory: Path) -> Path:
    directory.mkdir()
    if os.getuid():
        pytest.skip("only root gives a directory away")
    os.chown(directory, 12345, 12345)
    return directory


def below_one_of_everybody(directory: Path) -> Path:
    directory.mkdir()
    directory.chmod(0o777)
    return directory / "cache"


def with_programs_of_others(directory: Path) -> Path:
    (directory / programs_name()).mkdir(parents=True)
    directory.chmod(0o700)
    (directory / programs_name()).chmod(0o777)
    return directory


def of_nobody(directory: Path) -> str:
    return "~nosuchuser/cache"


def no_directory(directory: Path) -> Path:
    directory.write_text("mine")
    return directory


def below_a_file(directory: Path) -> Path:
    directory.write_text("mine")
    return directory / "cache"


UNUSABLE = (
    read_only,
    writable_for_all,
    of_somebody_else,
    below_one_of_everybody,
    with_programs_of_others,
    of_nobody,
    no_directory,
    below_a_file,
)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX")
@pytest.mark.parametrize("unusable", UNUSABLE)
def test_a_directory_that_cannot_be_used_is_named_once(
    unusable, tmp_path: Path, directories: list[Path], caplog: pytest.LogCaptureFixture
):
    directory = unusable(tmp_path / "cache")
    assert avjax.cache(directory) is None
    assert directories == []
    (record,) = caplog.records
    assert str(directory) in record.getMessage() and "nothing is cached there (" in record.getMessage()


def test_a_full_disk(
    tmp_path: Path, directories: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert avjax.cache(tmp_path / "cache") is None and directories == []
    assert "the disk is full" in caplog.records[0].getMessage()


def caption(clip: Path, directory: Path) -> tuple[dict, str]:
    environment = {**os.environ, "AVJAX_CACHE": str(directory)}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-c", CAPTION, str(clip)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.exhaustive
def test_a_second_process_compiles_and_encodes_nothing_and_damage_costs_time_alone(clip: Path, tmp_path: Path):
    directory = tmp_path / "cache"
    first, _ = caption(clip, directory)
    assert first["kept"] == str(directory) and first["compiled"] > 0
    assert size(directory / "encoded", "*.encoded")[0] == 2, "of the picture and of the sound"
    caption(clip, directory)  # reads encoder outputs, which the first did not
    third, output = caption(clip, directory)
    assert third == {**first, "compiled": 0} and "cannot be used" not in output

    for file in [*directory.glob("compiled-*/*-cache"), *(directory / "encoded").iterdir()]:
        file.write_bytes(b"damage")
    damaged, output = caption(clip, directory)
    assert damaged["text"] == first["text"]
    assert output.count("some programs there cannot be used") == 1
    assert output.count("Error reading persistent compilation cache entry") == 1, "in that line"


def test_the_files_used_last_stay(tmp_path: Path):
    for number in range(5):
        file = tmp_path / f"{number}-cache"
        file.write_bytes(b"0" * 100)
        os.utime(file, (1000 + number, 1000))
    (tmp_path / "mine.txt").write_text("0" * 1000)
    os.utime(tmp_path / "0-cache", (2000, 1000))  # read last
    trim(tmp_path, "*-cache", max_bytes=250)
    assert {path.name for path in tmp_path.iterdir()} == {"0-cache", "4-cache", "mine.txt"}
    assert size(tmp_path, "*-cache") == (2, 200)


def test_the_command_shows_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for cpu, where in (("compiled-1", "."), ("compiled-2", "autotuned")):
        (tmp_path / cpu / where).mkdir(parents=True)
        (tmp_path / cpu / where / "a-cache").write_bytes(b"0" * 1_000_000)
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "a.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setenv("AVJAX_CACHE", str(tmp_path))
    shown = CliRunner().invoke(app, ["cache"]).output
    assert str(tmp_path) in shown and "2 compiled programs, 2.0 MB" in shown and "0 encoder outputs" in shown
    assert "removed: 2 compiled programs, 2.0 MB" in CliRunner().invoke(app, ["cache", "--clear"]).output
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["notes.txt"]
    monkeypatch.setenv("AVJAX_CACHE", "off")
    assert "AVJAX_CACHE is off" in CliRunner().invoke(app, ["cache"]).output


def test_no_cache_and_a_directory_exclude_each_other(tmp_path: Path):
    words = ["run", "-m", "tiny-av", "-p", "Hello", "--no-cache", "--cache-dir", str(tmp_path)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "expected no --cache-dir beside it" in refused.output
