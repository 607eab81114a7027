"""Stores under SIGKILL, and under several processes at once."""

import collections
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avjax.runs.store import Store
from tests.runs import worker

NUM_KILLS, NUM_PROCESSES = 20, 4


def started(store: Path, told: Path, *most: int) -> subprocess.Popen[bytes]:
    """A worker that has begun."""
    command = [sys.executable, "-m", "tests.runs.worker", str(store), str(told), *map(str, most)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    return process


def contents(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.mark.exhaustive
def test_killed_at_any_moment_it_goes_on_to_the_same_store(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert started(whole, tmp_path / "told").wait() == 0
    rng = np.random.default_rng(0)
    blocks = {block.name for block in worker.run().blocks()}
    for i in range(NUM_KILLS):
        before = set(Store(killed).parts())
        told = tmp_path / f"told-{i}"
        most = int(rng.integers(1, 8))
        process = started(killed, told, most)
        # Some are killed as they begin, some when they have computed what they may, most in between.
        while i % 5 and (not told.exists() or (i % 5 == 1 and len(told.read_text().split()) <= most)):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.wait()
        assert not before & set(told.read_text().split() if told.exists() else []), "computed twice"
    reached = len(Store(killed).parts())
    assert 0 < reached < len(blocks)
    assert started(killed, tmp_path / "told-last").wait() == 0
    assert len((tmp_path / "told-last").read_text().split()) == len(blocks) - reached
    assert contents(killed) == contents(whole)
    rows = pd.read_parquet(killed / "cells")
    assert len(rows) == rows.cell_key.nunique() == 2005


@pytest.mark.exhaustive
def test_four_processes_compute_each_cell_once(tmp_path: Path):
    store, told = tmp_path / "run", tmp_path / "told"
    processes = [started(store, told) for _ in range(NUM_PROCESSES)]
    assert [process.wait() for process in processes] == [0] * NUM_PROCESSES
    counts = collections.Counter(told.read_text().split())
    assert set(counts.values()) == {1} and counts.keys() == {block.name for block in worker.run().blocks()}
    rows = pd.read_parquet(store / "cells")
    assert len(rows) == rows.cell_key.nunique() == 2005
    assert sorted(path.name for path in store.iterdir()) == ["cells", "run.json"]
