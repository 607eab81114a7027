"""Two processes of two CPU devices each, on meshes of every kind, against one device."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avjax.organism import world

pytestmark = pytest.mark.exhaustive
ROOT = Path(__file__).parents[2]
MESHES = ("4,1,1", "2,1,2", "1,2,2", "1,1,4")
TOLERANCE = 1e-5  # of the largest value of a variable


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*processes: subprocess.Popen[str]) -> list[str]:
    said = [process.communicate(timeout=900)[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips")
    for i in range(3):
        world.clip("test", i, "counterfactual").write(directory / f"clip-{i}.mp4")
    return directory


@pytest.fixture(scope="module")
def found(clips: Path) -> dict[str, list[dict[str, Any]]]:
    """Results of one device; and by mesh those of both processes."""
    port, out = free_port(), [clips / f"{name}.pickle" for name in ("one", "first", "second")]
    finished(start("-m", "tests.mesh.worker", clips, out[0]))
    finished(*(start("-m", "tests.mesh.worker", clips, out[i + 1], i, 2, port, *MESHES) for i in range(2)))
    one, *both = (pickle.loads(path.read_bytes()) for path in out)
    return {"one": one} | {mesh: [process[i] for process in both] for i, mesh in enumerate(MESHES)}


@pytest.mark.parametrize("mesh", MESHES)
def test_results_are_those_of_one_device(found: dict[str, list[dict[str, Any]]], mesh: str):
    (expected,) = found["one"]
    for got in found[mesh]:
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            if name.endswith("_floor"):  # each mesh's own rounding
                assert 0 <= got[name] < 1e-3, f"{mesh}: {name}"
            elif isinstance(values, np.ndarray) and values.dtype.kind == "f":
                bound = TOLERANCE * max(1.0, np.abs(values).max())
                np.testing.assert_allclose(got[name], values, rtol=0, atol=bound, err_msg=f"{mesh}: {name}")
            else:  # tokens, captions, counts, names
                np.testing.assert_array_equal(got[name], values, err_msg=f"{mesh}: {name}")


def test_both_processes_have_all_results(found: dict[str, list[dict[str, Any]]]):
    for mesh in MESHES:
        first, second = found[mesh]
        for name, values in first.items():
            np.testing.assert_array_equal(second[name], values, err_msg=f"{mesh}: {name}")


def test_edits_show(found: dict[str, list[dict[str, Any]]]):
    """What is compared above is not all zero or all the same."""
    (one,) = found["one"]
    for name in ("edges kl", "edges log_prob", "sites log_likelihood"):
        assert np.ptp(one[name]) > 0.1, name
    assert len(one["tokens"]) > 1


ENCODED_ONCE = """
import sys, avjax
from avjax import model
from avjax.devices.mesh import mesh_of_sizes
calls, encode = [], model.encode_vision
model.encode_vision = lambda *arguments: calls.append(1) or encode(*arguments)
found = avjax.load("tiny-av", mesh=mesh_of_sizes(data=2))
clips = {name: found.prompt("What?", video=name, audio="from_video") for name in sys.argv[1:]}
for _ in range(2):
    avjax.sweep(found, clips, "last->video@4:8", avjax.metrics.KL(), progress=False)
    print(len(calls))
"""


def test_each_slice_encodes_a_clip_once(clips: Path):
    files = [clips / f"clip-{i}.mp4" for i in range(2)]
    (said,) = finished(start("-c", ENCODED_ONCE, *files, JAX_NUM_CPU_DEVICES="2"))
    assert said.split() == ["2", "2"]
