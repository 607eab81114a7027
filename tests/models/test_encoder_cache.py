"""Encoder outputs on disk: the same to the bit, computed once, and never a damaged one."""

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import avjax
from avjax import model as models
from avjax.models import encoder_cache, numerics
from avjax.organism import world

SCRIPT = """
import sys
import avjax, numpy as np
from avjax import model as models

def refuse(*_):
    raise AssertionError("an encoder ran")

models.encode_audio = models.encode_vision = refuse
avjax.cache_encodings(sys.argv[1])
model = avjax.load("tiny-av")
prompt = model.prompt("Describe this.", video=sys.argv[2], audio="from_video")
np.save(sys.argv[3], np.asarray(model.encode(prompt).embeddings))
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    avjax.cache_encodings(tmp_path / "encoded")
    yield tmp_path / "encoded"
    avjax.cache_encodings(None)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    world.clip("test", 0, "factual").write(tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the encoders that ran."""
    ran: list[str] = []
    for name in ("encode_audio", "encode_vision"):
        real = getattr(models, name)
        monkeypatch.setattr(models, name, lambda *a, name=name, real=real: (ran.append(name), real(*a))[1])
    return ran


def embeddings(model: avjax.Model, clip: Path) -> np.ndarray:
    prompt = model.prompt("Describe this.", video=clip, audio="from_video")
    return np.asarray(model.encode(prompt).embeddings)


@pytest.mark.exhaustive
def test_another_process_encodes_nothing(directory: Path, clip: Path, tmp_path: Path):
    first = embeddings(avjax.load("tiny-av"), clip)
    out = tmp_path / "found.npy"
    subprocess.run([sys.executable, "-c", SCRIPT, str(directory), str(clip), str(out)], check=True)
    np.testing.assert_array_equal(np.load(out).view(np.uint8), first.view(np.uint8))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_model_encodes_nothing(directory: Path, clip: Path, calls: list[str], dtype: str):
    first = embeddings(avjax.load("tiny-av", dtype=dtype), clip)
    assert sorted(calls) == ["encode_audio", "encode_vision"] and len([*directory.iterdir()]) == 2
    second = embeddings(avjax.load("tiny-av", dtype=dtype), clip)
    assert len(calls) == 2 and second.dtype == first.dtype
    np.testing.assert_array_equal(second.view(np.uint8), first.view(np.uint8))
    avjax.cache_encodings(None)
    np.testing.assert_array_equal(embeddings(avjax.load("tiny-av", dtype=dtype), clip), first)
    assert len(calls) == 4


@pytest.mark.exhaustive
def test_other_parameters_are_another_encoder(directory: Path, clip: Path, calls: list[str]):
    model = avjax.load("tiny-av")
    first = embeddings(model, clip)
    halved = dataclasses.replace(model, network=jax.tree.map(lambda leaf: leaf / 2, model.network))
    assert not np.array_equal(embeddings(halved, clip), first)
    assert len(calls) == 4 and len([*directory.iterdir()]) == 4


def test_the_same_parameters_under_another_configuration_are_another_encoder(
    directory: Path, clip: Path, calls: list[str]
):
    first, model = embeddings(avjax.load("tiny-av"), clip), avjax.load("tiny-av")
    network = copy.deepcopy(model.network)
    network.audio.cfg = dataclasses.replace(network.audio.cfg, n_window=network.audio.cfg.n_window // 2)
    found = embeddings(dataclasses.replace(model, network=network), clip)
    assert calls.count("encode_audio") == 2 and calls.count("encode_vision") == 1
    assert not np.array_equal(found, first)


def test_other_numerics_are_another_encoder(
    directory: Path, clip: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
):
    embeddings(avjax.load("tiny-av"), clip)
    monkeypatch.setattr(numerics, "VERSION", numerics.VERSION + 1)
    embeddings(avjax.load("tiny-av"), clip)
    assert len(calls) == 4


def test_what_is_computed_in_another_dtype_is_kept_apart(directory: Path):
    model = avjax.load("tiny-av")
    for dtype, value in (("float32", 1.0), ("bfloat16", 2.0), ("float32", 3.0)):
        made = jax.numpy.full(2, value)
        encoding = encoder_cache.cached_encoding(
            model.host, "audio", model.network.audio, np.dtype(dtype), b"clip", lambda m=made: m
        )
        assert encoding[0] == {"float32": 1.0, "bfloat16": 2.0}[dtype]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:20] + b"x" + data[21:], lambda _: b""])
def test_damage_is_computed_again(directory: Path, clip: Path, calls: list[str], damage):
    first = embeddings(avjax.load("tiny-av"), clip)
    for path in directory.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(embeddings(avjax.load("tiny-av"), clip), first)
    assert len(calls) == 4
    embeddings(avjax.load("tiny-av"), clip)
    assert len(calls) == 4, "it was written again"


def test_the_oldest_go_first(tmp_path: Path, clip: Path, calls: list[str]):
    directory = tmp_path / "small"
    avjax.cache_encodings(directory)
    embeddings(avjax.load("tiny-av"), clip)
    sizes = [path.stat().st_size for path in directory.iterdir()]
    for path in directory.iterdir():
        os.utime(path, (1, 1))
    avjax.cache_encodings(directory, max_bytes=sum(sizes))
    world.clip("test", 1, "factual").write(tmp_path / "other.mp4")
    embeddings(avjax.load("tiny-av"), tmp_path / "other.mp4")
    avjax.cache_encodings(None)
    assert sum(path.stat().st_size for path in directory.iterdir()) <= sum(sizes)
    assert all(path.stat().st_mtime > 1 for path in directory.iterdir())


@pytest.mark.exhaustive
def test_other_files_of_the_directory_stay(directory: Path, clip: Path, calls: list[str]):
    directory.mkdir(exist_ok=True)
    theirs = [directory / name for name in ("notes.txt", "0" * 32, "clip.mp4")]
    for path in theirs:
        path.write_bytes(b"x" * 1000)
        os.utime(path, (1, 1))
    (directory / "folder").mkdir()
    (directory / f".{'0' * 32}.encoded").write_bytes(b"x")  # of a process that was killed
    avjax.cache_encodings(directory, max_bytes=500)
    embeddings(avjax.load("tiny-av"), clip)
    assert len(calls) == 2
    assert {path.name for path in directory.iterdir()} == {*(path.name for path in theirs), "folder"}
