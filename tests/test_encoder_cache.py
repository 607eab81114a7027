"""Encoder outputs on disk: the same to the bit, computed once, and never a damaged one."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import avjax
from avjax import model as models
from avjax.organism import world


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_process_encodes_nothing(directory: Path, clip: Path, calls: list[str], dtype: str):
    first = embeddings(avjax.load("tiny-av", dtype=dtype), clip)
    assert sorted(calls) == ["encode_audio", "encode_vision"] and len([*directory.iterdir()]) == 2
    second = embeddings(avjax.load("tiny-av", dtype=dtype), clip)  # a model of its own, as another process has
    assert len(calls) == 2 and second.dtype == first.dtype
    np.testing.assert_array_equal(second.view(np.uint8), first.view(np.uint8))
    avjax.cache_encodings(None)
    np.testing.assert_array_equal(embeddings(avjax.load("tiny-av", dtype=dtype), clip), first)
    assert len(calls) == 4


def test_other_parameters_are_another_encoder(directory: Path, clip: Path, calls: list[str]):
    model = avjax.load("tiny-av")
    first = embeddings(model, clip)
    halved = dataclasses.replace(model, network=jax.tree.map(lambda leaf: leaf / 2, model.network))
    assert not np.array_equal(embeddings(halved, clip), first)
    assert len(calls) == 4 and len([*directory.iterdir()]) == 4


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
