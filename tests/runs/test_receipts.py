"""A finished run says so without a model; whatever has changed since is looked at anew."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import avjax
from avjax.checkpoint.builtin import builtin_directory
from avjax.cli import app
from avjax.organism import world
from avjax.runs.receipts import Receipt, state
from avjax.runs.store import Store

SPEC = {
    "model": "tiny-av",
    "prompt": "Describe what you see and hear.",
    "clips": "clips.csv",
    "grid": {"edit": "steer", "where": "audio", "vector": "vector.npy", "layers": {"axis": [1, 2]}},
    "metrics": [{"metric": "kl"}],
    "store": "run",
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips")
    for number in range(2):
        world.clip("test", number, "counterfactual").write(directory / f"clip-{number}.mp4")
    return directory


@pytest.fixture
def spec(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for clip in clips.iterdir():
        (tmp_path / clip.name).write_bytes(clip.read_bytes())
    (tmp_path / "clips.csv").write_text("video\nclip-0.mp4\nclip-1.mp4\n")
    np.save(tmp_path / "vector.npy", np.ones(128, np.float32))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    monkeypatch.setenv("AVJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(avjax, "cache", lambda directory: None)  # this process keeps its own
    return tmp_path / "spec.json"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that runs load."""
    from avjax.runs import prepare

    names, load = [], prepare.load
    monkeypatch.setattr(prepare, "load", lambda path, **settings: names.append(path) or load(path, **settings))
    return names


def run(spec: Path, *words: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["run", str(spec), *map(str, words)])
    assert result.exit_code == status, result.output
    return result.output


def test_it_says_so_without_a_model(spec: Path, loaded: list[str]):
    assert "6 cells computed" in run(spec)
    assert "0 cells computed, 0 clips failed" in run(spec)
    assert loaded == ["tiny-av"]
    run(spec, "grid.layers.axis=[1]", "--store", spec.parent / "other")
    assert len(loaded) == 2, "of another command it knows nothing"
    run(spec, "--no-cache")
    assert len(loaded) == 3
    run(spec, "--log-json", spec.parent / "log")
    assert len(loaded) == 4, "events are told"


@pytest.mark.exhaustive
@pytest.mark.parametrize("changed", ["clip-1.mp4", "clips.csv", "vector.npy", "run/run.json"])
def test_a_file_that_was_touched_is_read_again(spec: Path, loaded: list[str], changed: str):
    run(spec)
    file = spec.parent / changed
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    assert "0 cells computed" in run(spec), "since its bytes are the same"
    assert len(loaded) == 2
    run(spec)
    assert len(loaded) == 2, "and the next receipt knows"


def test_a_clip_with_other_bytes_is_refused_as_ever(spec: Path):
    run(spec)
    (spec.parent / "clip-0.mp4").write_bytes((spec.parent / "clip-1.mp4").read_bytes())
    assert "it holds another run" in " ".join(run(spec, status=2).split())


@pytest.mark.exhaustive
def test_missing_and_damaged_parts_are_noticed(spec: Path, loaded: list[str]):
    run(spec)
    part, other = sorted((spec.parent / "run" / "cells").iterdir())
    part.unlink()
    assert "3 cells computed" in run(spec)
    other.write_bytes(other.read_bytes()[:-1] + b"0")
    assert "expected undamaged parts" in run(spec, status=2)


@pytest.mark.exhaustive
def test_a_file_more_in_the_checkpoint_is_looked_at(spec: Path, loaded: list[str]):
    shutil.copytree(builtin_directory("tiny-av"), spec.parent / "model")
    words = [f"model={spec.parent / 'model'}"]
    run(spec, *words)
    run(spec, *words)
    assert len(loaded) == 1
    (spec.parent / "model" / "more.json").write_text("{}")
    assert "it holds another run" in " ".join(run(spec, *words, status=2).split())


def test_a_part_of_another_run_is_refused_as_ever(spec: Path):
    run(spec)
    run(spec, "grid.layers.axis=[3]", "--store", spec.parent / "other")
    for part in (spec.parent / "other" / "cells").iterdir():
        shutil.copy(part, spec.parent / "run" / "cells")
    assert "expected undamaged parts of this run" in " ".join(run(spec, status=2).split())


@pytest.mark.exhaustive
def test_a_run_with_failures_has_no_receipt(spec: Path, loaded: list[str]):
    (spec.parent / "clip-1.mp4").write_text("no film")
    for _ in range(2):
        assert "1 clips failed" in run(spec, status=3)
    assert len(loaded) == 2


@pytest.mark.exhaustive
def test_a_share_knows_of_its_own_parts(spec: Path, loaded: list[str]):
    for _ in range(2):
        run(spec, "--shard", "0/2")
    assert len(loaded) == 1
    run(spec, "--shard", "1/2")
    run(spec, "--shard", "0/2")
    assert len(loaded) == 2


def test_it_needs_no_jax(spec: Path):
    run(spec)
    code = "import sys, avjax.cli as c\ntry: c.app()\nfinally: print({'jax', 'numpy', 'pyarrow'} & set(sys.modules))"
    words = [sys.executable, "-c", code, "run", str(spec)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.returncode == 0 and done.stdout.strip() == "set()", done.stderr
    assert "0 cells computed" in done.stderr


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": 1, "parts": [], "store": "x"}', '{"files": {}}'])
def test_a_damaged_receipt_counts_for_nothing(tmp_path: Path, damage: str):
    receipt = Receipt(tmp_path, ["spec.yaml"])
    receipt.path.parent.mkdir()
    receipt.path.write_text(damage)
    assert receipt.store() is None


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "run" / "cells").mkdir(parents=True)
    receipt = Receipt(tmp_path / "cache", ["spec.yaml"])
    receipt.write(Store(tmp_path / "run"), tmp_path, state([]), [], [])
    assert receipt.store() is None


def test_a_repeated_run_computes_its_encoders(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is done again is not read from a cache."""
    from avjax import model

    encoded, encode = [], model.encode_vision
    monkeypatch.setattr(model, "encode_vision", lambda *given: encoded.append(1) or encode(*given))
    monkeypatch.setattr(avjax, "cache", lambda directory: avjax.cache_encodings(tmp_path / "encoded"))
    try:
        run(spec)
        run(spec, "--store", tmp_path / "read")
        assert len(encoded) == 2, "of two clips, once"
        repeated = CliRunner().invoke(app, ["run", "--repeat", str(tmp_path / "run")])
    finally:
        avjax.cache_encodings(None)
    assert repeated.exit_code == 0 and "6 bit-identical" in repeated.stdout and len(encoded) == 4
