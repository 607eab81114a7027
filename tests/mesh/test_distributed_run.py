"""`avjax run --distributed` in processes as Slurm starts them: one store, the cells of one device."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.mesh.test_processes import clips, finished, free_port, start  # noqa: F401

SPEC = """\
model: tiny-av
prompt: Describe what you see and hear.
opening: I hear
clips: [{video: clip-0.mp4}, {video: broken.mp4}, {video: clip-1.mp4}, {video: clip-2.mp4}]
grid: {edit: knockout, query: answer, key: {axis: [audio, video]}, layers: {width: 4}}
metrics: [{metric: kl}, {metric: caption, max_new_tokens: 4}]
block_cells: 5
"""
FAILED = 3
AVJAX = ("-c", "from avjax.cli import app; app()")


@pytest.fixture(scope="module")
def spec(clips: Path) -> Path:  # noqa: F811
    (clips / "broken.mp4").write_text("no film")
    path = clips / "spec.yaml"
    path.write_text(SPEC)
    return path


def cells(store: Path) -> pd.DataFrame:
    return pd.read_parquet(store / "cells").set_index("cell_key").sort_index()


@pytest.fixture(scope="module")
def alone(spec: Path) -> pd.DataFrame:
    process = start(*AVJAX, "run", spec, "--store", spec.parent / "alone")
    process.communicate(timeout=900)
    assert process.returncode == FAILED
    return cells(spec.parent / "alone")


# Each process has two slices' samples to itself; both work on every cell.
@pytest.mark.parametrize("mesh", ["{data: 2, model: 2}", "{variant: 2, model: 2}"])
def test_processes_fill_one_store(spec: Path, alone: pd.DataFrame, mesh: str):
    store = spec.parent / f"store {mesh}"
    job = free_port()
    launched = [
        start(
            *(*AVJAX, "run", spec, f"mesh={mesh}", "--distributed", "--store", store),
            SLURM_JOB_ID="1",
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(number),
            SLURM_LOCALID=str(number),
            JAX_COORDINATOR_PORT=str(job),
            JAX_COORDINATOR_ADDRESS=f"localhost:{job}",
            JAX_NUM_CPU_DEVICES="2",
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=900)[0] for process in launched]
    assert [process.returncode for process in launched] == [FAILED, FAILED], said
    assert "failed: broken" in said[0]
    found = cells(store)
    assert [*found.index] == [*alone.index]
    assert len(found) == 3 * (2 * 8 + 1)  # clips x (keys x windows, and the unedited run)
    np.testing.assert_allclose(found["kl"], alone["kl"], rtol=0, atol=1e-5)
    for column in ("sample", "cell", "caption", "edges"):
        assert found[column].tolist() == alone[column].tolist(), column
    assert sorted(path.name for path in store.iterdir()) == ["cells", "failed", "run.json"]


def test_without_a_launcher_it_is_refused(spec: Path):
    process = start(*AVJAX, "run", spec, "--distributed", "--store", spec.parent / "none")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert "--distributed: expected processes that a launcher has started" in said
