"""`avjax run SPEC`, `avjax runs` and `avjax schema`."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from avjax.cli import app, runs
from avjax.cli.runs import RESUME
from avjax.runs import prepare
from avjax.runs.spec.spec import Spec
from avjax.runs.store import Store

COMMAND = [sys.executable, "-c", "from avjax.cli import app; app()"]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_run_from_file_to_table(spec: Path):
    planned = run("run", spec, "--dry-run")
    assert planned.exit_code == 0 and "16 cells x 3 samples" in planned.stdout
    assert not (spec.parent / "run").exists()

    done = run("run", spec)
    assert done.exit_code == 0 and "51 cells computed, 0 clips failed" in done.output
    assert "0 cells computed" in run("run", spec).output

    store = spec.parent / "run"
    shown = json.loads(run("runs", "show", store, "--json").stdout)
    assert shown | {"store": ""} == {
        "store": "", "checkpoint": "tiny-av", "samples": 3, "cells": 51, "done": 51, "failed": 0, "failures": [],
        "tokens": {"text": [36, 36], "audio": [51, 51], "video": [18, 18], "image": [0, 0]},
    }  # fmt: skip
    assert [row["done"] for row in json.loads(run("runs", "ls", spec.parent, "--json").stdout)] == [51]
    (spec.parent / "other").mkdir()
    (spec.parent / "other" / "run.json").write_text("{}")
    listed = run("runs", "ls", spec.parent)
    assert listed.exit_code == 0 and "tiny-av" in listed.stdout and "not listed" in listed.stderr

    for name in ("t.csv", "t.parquet", "t.nc"):
        assert run("runs", "export", store, spec.parent / name).exit_code == 0
    rows = pd.read_parquet(spec.parent / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(spec.parent / "t.csv"), rows, check_dtype=False, rtol=1e-6)
    with xr.open_dataset(spec.parent / "t.nc") as opened:  # lazily: values are read when they are used
        first = opened.isel(sample=0)
        assert first.cell.values.ravel().tolist() == opened.cell.values.ravel().tolist()
        assert opened.logit_diff.size == 48 == (rows.cell != "clean").sum()
        assert np.isfinite(opened.logit_diff.mean("sample")).all()
    again = run("runs", "export", store, spec.parent / "t.csv")
    assert again.exit_code == 2 and "it already exists" in again.output
    assert "expected .csv" in run("runs", "export", store, spec.parent / "t.xlsx").output


def test_shares_are_merged(spec: Path, tmp_path: Path):
    for i in range(2):
        assert run("run", spec, "--shard", f"{i}/2", "--store", tmp_path / f"share-{i}").exit_code == 0
    merged = run("runs", "merge", tmp_path / "share-0", tmp_path / "share-1", "--into", tmp_path / "all")
    assert merged.exit_code == 0 and "12 parts added" in merged.stdout
    assert json.loads(run("runs", "show", tmp_path / "all", "--json").stdout)["done"] == 51
    assert "0 cells computed" in run("run", spec, "--store", tmp_path / "all").output
    assert run("run", spec, "grid.layers.width=2", "--shard", "0/9", "--store", tmp_path / "other").exit_code == 0
    wrong = run("runs", "merge", tmp_path / "share-0", tmp_path / "other", "--into", tmp_path / "mixed")
    assert wrong.exit_code == 2 and "a store of the same run, got one that differs in grid (here " in wrong.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid.layers.widht=2"], "grid.layers.widht: expected no such key"),
        (["--shard", "2/2"], "expected I/N with I within 0 to N - 1"),
        (["grid.key=3.5"], "grid.key: expected tokens"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str, spec: Path):
    found = run("run", spec, *arguments)
    assert found.exit_code == 2 and message in " ".join(found.output.split())


def test_other_words_are_analyses():
    assert run("run", "knockout", "--help").exit_code == 0
    assert run("run", "no-such").exit_code == 2


def test_damage_is_repaired_on_request(spec: Path):
    assert run("run", spec).exit_code == 0
    part = next((spec.parent / "run" / "cells").iterdir())
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    shown = run("runs", "show", spec.parent / "run")
    assert shown.exit_code == 2 and "--repair" in shown.output
    mended = run("run", spec, "--repair")
    assert mended.exit_code == 0 and "put aside" in mended.output and part.read_bytes() == whole


def test_the_schema_is_printed():
    assert json.loads(run("schema").stdout) == Spec.model_json_schema()


@pytest.mark.exhaustive
def test_sigterm_finishes_the_block_and_says_resume(spec: Path, monkeypatch: pytest.MonkeyPatch):
    """The signal comes as the first part appears, and the next block is begun only when it has been taken note of."""
    stopping, written, asked = runs._stopping, Store.write, []

    @contextlib.contextmanager
    def noted() -> Iterator[Any]:
        with stopping() as stop:
            asked.append(stop)
            yield stop

    def write(self: Store, *arguments: Any) -> Any:
        part = written(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        while not asked[0]():
            time.sleep(0.001)
        return part

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "_stopping", noted)
        patched.setattr(Store, "write", write)
        stopped = run("run", spec, "block_cells=1")
    assert stopped.exit_code == RESUME and "run it again to continue" in stopped.output
    assert "stopping after this block of cells" in stopped.output and signal.getsignal(signal.SIGTERM) is before
    store = spec.parent / "run"
    assert len(parts(store)) == 1 and sorted(path.name for path in store.iterdir()) == ["cells", "run.json"]
    assert run("run", spec, "block_cells=1").exit_code == 0
    assert len(parts(store)) == 48


def test_sigterm_while_a_model_is_loaded_says_resume(spec: Path, monkeypatch: pytest.MonkeyPatch):
    def load(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "load", load)
        stopped = run("run", spec)
    assert stopped.exit_code == RESUME and "before anything was computed; run it again" in stopped.output
    assert signal.getsignal(signal.SIGTERM) is before and not (spec.parent / "run").exists()


def test_killed_on_a_real_model_it_goes_on_to_the_same_cells(spec: Path, tmp_path: Path):
    """SIGKILL after a drawn number of parts; what was kept is never written again."""
    rng, cache = random.Random(0), tmp_path / "cache"
    command = ["run", str(spec), "block_cells=3", "--cache-dir", str(cache), "--store"]
    subprocess.run([*COMMAND, *command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=300)
    whole = pd.read_parquet(tmp_path / "whole" / "cells").sort_values("cell_key", ignore_index=True)
    store = tmp_path / "killed"
    kept: dict[str, tuple[int, int]] = {}
    for _ in range(3):
        wanted = len(kept) + rng.randint(1, 3)
        limited = [sys.executable, "-m", "tests.runs.limited", str(wanted + 1), *command, str(store)]
        process = subprocess.Popen(limited, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(parts(store)) < wanted:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        now = parts(store)
        assert kept.items() <= now.items(), "a part was written again"
        kept = now
    assert 3 <= len(kept) <= 12
    subprocess.run([*COMMAND, *command, str(store)], check=True, capture_output=True, timeout=300)
    assert kept.items() <= parts(store).items()
    found = pd.read_parquet(store / "cells").sort_values("cell_key", ignore_index=True)
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
    assert sorted(path.name for path in store.iterdir()) == ["cells", "run.json"]
    assert all(name.endswith(".parquet") for name in parts(store))


def parts(store: Path) -> dict[str, tuple[int, int]]:
    """Names of finished parts, with the files that they are and when these were written."""
    found = (store / "cells").glob("*.parquet") if (store / "cells").exists() else ()
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}
