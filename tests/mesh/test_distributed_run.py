"""`avjax run --distributed` in processes as Slurm starts them: one store, the cells of one device."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.mesh.test_processes import clips, finished, free_port, start  # noqa: F401

pytestmark = pytest.mark.exhaustive
SPEC = """\
model: tiny-av
prompt: Describe what you see and hear.
opening: I hear
clips: [{video: clip-0.mp4}, {video: broken.mp4}, {video: clip-1.mp4}, {video: clip-2.mp4}]
grid: {edit: knockout, query: answer, key: {axis: [audio, video]}, layers: {width: 4}}
metrics: [{metric: kl}, {metric: caption, max_new_tokens: 4}]
block_cells: 5
"""
FAILED, UNWRITTEN = 3, 74
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


def together(*words: object, second: tuple[str, ...] = ()) -> tuple[list[int], list[str]]:
    """Exit statuses and words of two processes of two devices, as Slurm starts them.

    Args:
      second: options of the second process alone.
    """
    job = free_port()
    launched = [
        start(
            *(*AVJAX, "run", *words, "--distributed", *(second if number else ())),
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
    return [process.returncode for process in launched], said


# Each process has two slices' samples to itself; both work on every cell.
@pytest.mark.parametrize("mesh", ["{data: 2, model: 2}", "{variant: 2, model: 2}"])
def test_processes_fill_one_store(spec: Path, alone: pd.DataFrame, mesh: str):
    store = spec.parent / f"store {mesh}"
    codes, said = together(spec, f"mesh={mesh}", "--store", store)
    assert codes == [FAILED, FAILED], said
    assert "failed: broken" in said[0]
    found = cells(store)
    assert [*found.index] == [*alone.index]
    assert len(found) == 3 * (2 * 8 + 1)  # clips x (keys x windows, and the unedited run)
    np.testing.assert_allclose(found["kl"], alone["kl"], rtol=0, atol=1e-5)
    for column in ("sample", "cell", "caption", "edges"):
        assert found[column].tolist() == alone[column].tolist(), column
    assert sorted(path.name for path in store.iterdir()) == ["cells", "failed", "run.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_what_fails_in_one_process_ends_all(spec: Path):
    """None waits for one that is gone."""
    words = (spec, "mesh={variant: 2, model: 2}", "--store", spec.parent / "unlogged")
    codes, said = together(*words, second=("--log-json", "/dev/full"))
    assert codes == [UNWRITTEN, UNWRITTEN], said
    assert all("--log-json /dev/full: it cannot be written" in " ".join(one.split()) for one in said)


def test_without_a_launcher_it_is_refused(spec: Path):
    process = start(*AVJAX, "run", spec, "--distributed", "--store", spec.parent / "none")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert "--distributed: expected processes that a launcher has started" in said
