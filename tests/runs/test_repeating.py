"""`avjax run --repeat`: what a run keeps of how it was made, and how a second one differs."""

import io
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import avjax
from avjax.checkpoint.builtin import builtin_directory
from avjax.cli import app
from avjax.cli.runs import DIFFERENT, FAILED
from avjax.provenance import git_state, licence
from avjax.runs.compare import _apart, compare
from avjax.runs.rows import decoded
from avjax.runs.store import Store, _checksum
from tests.engine.test_knockout_compiles import prompt_of


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def store(spec: Path) -> Path:
    done = run("run", spec)
    assert done.exit_code == 0, done.output
    return spec.parent / "run"


def change(store: Path, column: str, row: int, value: object) -> None:
    """One value of a store's largest part, written as avjax would."""
    part = max(sorted((store / "cells").iterdir()), key=lambda part: len(decoded(part.read_bytes())))
    table = decoded(part.read_bytes())
    values = table[column].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    keep(part, changed)


def keep(part: Path, table: pa.Table) -> None:
    """A table in place of a part."""
    written = io.BytesIO()
    pq.write_table(table, written)
    part.unlink()
    name = f"{part.name.split('.')[0]}.{_checksum(written.getvalue())}.parquet"
    part.with_name(name).write_bytes(written.getvalue())


@pytest.mark.exhaustive
def test_what_a_run_keeps_of_how_it_was_made(spec: Path):
    for words in (("init", "-q"), ("add", spec.name)):
        subprocess.run(["git", "-C", spec.parent, *words], check=True)
    author = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "-C", spec.parent, *author, "commit", "-qm", "spec"], check=True)
    head = subprocess.check_output(["git", "-C", spec.parent, "rev-parse", "HEAD"], text=True).strip()
    spec.write_text(spec.read_text() + "\n")
    assert run("run", spec, "seed=7").exit_code == 0
    found = json.loads((spec.parent / "run" / "run.json").read_text())
    made = found["provenance"]
    assert made["git"] == {"commit": head, "dirty": True}
    assert (made["licence"], made["seed"], made["devices"]) == ("apache-2.0", 7, 1)
    assert made["version_jax"] and made["python"] and made["device"].startswith("cpu")
    assert len(found["identity"]["checkpoint"]) == 32
    assert found["spec"]["dtype"] == "float32" and found["spec"]["seed"] == 7, "what was left to defaults is there too"
    assert Path(found["directory"]) == spec.parent


def test_where_there_is_no_commit_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    assert git_state(tmp_path) is None, "a repository before its first commit"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None, "no git"


def test_where_a_licence_is_read(tmp_path: Path):
    assert licence(tmp_path) is None
    (tmp_path / "LICENSE").write_text("\n  Apache License\nVersion 2.0\n")
    assert licence(tmp_path) == "Apache License"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    assert licence(tmp_path) == "qwen-research"
    (tmp_path / "avjax.json").write_text('{"licence": "mit"}')
    assert licence(tmp_path) == "mit"


def test_a_run_is_repeated_to_the_bit(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # paths are relative to the specification, wherever one stands
    again = run("run", "--repeat", store / "run.json", "--store", tmp_path / "second")
    assert again.exit_code == 0, again.output
    assert "51 cells in both runs, 51 bit-identical" in again.stdout
    assert compare(Store(store), Store(tmp_path / "second")).within(0.0)


@pytest.mark.exhaustive
def test_cells_that_differ_are_named(store: Path, tmp_path: Path):
    change(store, "logit_diff", 3, 12.5)
    again = run("run", "--repeat", store)
    assert again.exit_code == DIFFERENT
    assert "51 cells in both runs, 50 bit-identical" in again.stdout and "12.5" in again.stdout
    assert run("run", "--repeat", store, "--tolerance", "100").exit_code == 0

    shutil.copytree(store, tmp_path / "less")
    sorted((tmp_path / "less" / "cells").iterdir())[1].unlink()
    found = compare(Store(store), Store(tmp_path / "less"))
    assert found.missing > 0 and found.added == 0 and not found.within(1e9)
    assert found.cells + found.missing == 51


@pytest.mark.exhaustive
def test_a_share_is_compared_with_the_same_share(store: Path):
    shares = [run("run", "--repeat", store, "--shard", f"{i}/3") for i in range(3)]
    assert [share.exit_code for share in shares] == [0, 0, 0], shares[0].output
    assert all("17 cells in both runs, 17 bit-identical" in share.stdout for share in shares)
    assert all(f"{store}: 17 cells computed" in share.output for share in shares), "not a directory that is gone"
    change(store, "cell_index", 3, 99)  # a cell less, of one share
    codes = [run("run", "--repeat", store, "--shard", f"{i}/3").exit_code for i in range(3)]
    assert sorted(codes) == [0, 0, DIFFERENT]


@pytest.mark.parametrize(
    ("before", "after", "absolute", "relative"),
    [
        (0.0, -0.0, 0.0, 0.0),  # other bits, no difference
        (2**60, 2**60 + 1, 1.0, 2.0**-60),
        ([math.nan, math.inf, 1.0], [math.nan, math.inf, 1.5], 0.5, 0.5),
        ([1000.0, 1.0], [1001.0, 1.0], 1.0, 1e-3),
        (math.inf, -math.inf, math.inf, math.inf),
        (1.0, math.nan, math.nan, math.inf),
        ("a dog", "a cat", math.nan, math.inf),
    ],
)
def test_how_far_values_are_apart(before: Any, after: Any, absolute: float, relative: float):
    assert _apart(before, after) == pytest.approx((absolute, relative), nan_ok=True, abs=0.0)
    assert _apart(before, before) is None and _apart(after, after) is None


def test_large_integers_are_compared_as_they_are_though_cells_are_missing(store: Path, tmp_path: Path):
    """As floats, which a table with gaps would make of them, the two would be one."""
    for part in (store / "cells").iterdir():
        table = decoded(part.read_bytes())
        place = table.schema.get_field_index("logit_diff")
        field = table.schema.field(place).with_type(pa.int64())
        keep(part, table.set_column(place, field, pa.array([2**60] * len(table), pa.int64())))
    shutil.copytree(store, tmp_path / "other")
    change(tmp_path / "other", "logit_diff", 2, 2**60 + 1)
    min((tmp_path / "other" / "cells").iterdir(), key=lambda part: len(decoded(part.read_bytes()))).unlink()
    found = compare(Store(store), Store(tmp_path / "other"))
    assert found.missing and [one.absolute for one in found.differing] == [1.0]


def test_a_metric_that_one_run_has_alone_is_named(store: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(store, other)
    for part in (other / "cells").iterdir():
        keep(part, decoded(part.read_bytes()).drop_columns(["logit_diff"]))
    found = compare(Store(store), Store(other))
    assert found.unshared == ("logit_diff",) and not found.missing and not found.within(1e9)
    assert "the metric logit_diff (only in the earlier run)" in found.about
    assert "the metric logit_diff (only in the new run)" in compare(Store(other), Store(store)).about


def test_what_has_changed_is_said(store: Path):
    file = store / "run.json"
    found = json.loads(file.read_text())
    found["provenance"]["version_jax"] = "0.1"
    file.write_text(json.dumps(found))
    said = run("run", "--repeat", store).stdout
    assert f'differs: version_jax (now "{jax.__version__}", then "0.1")' in said


def test_a_clip_that_has_changed_is_said(store: Path):
    (store.parent / "clip-0.mp4").unlink()
    shutil.copyfile(store.parent / "clip-1.mp4", store.parent / "clip-0.mp4")
    again = run("run", "--repeat", store)
    assert again.exit_code == DIFFERENT
    assert "differs: the clip or words of clip-0" in again.stdout and "34 bit-identical" in again.stdout


@pytest.mark.exhaustive
def test_a_checkpoint_that_has_changed_is_said(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that was named from elsewhere is found."""
    built_in = builtin_directory("tiny-av")
    assert built_in is not None
    shutil.copytree(built_in, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert run("run", spec, "model=mine").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = run("run", "--repeat", spec.parent / "run")
    assert again.exit_code == 0 and "differs" not in again.output, again.output
    (tmp_path / "mine" / "notes.txt").write_text("another file")
    assert "differs: checkpoint (files in" in run("run", "--repeat", spec.parent / "run").stdout


@pytest.mark.exhaustive
def test_clips_that_fail_again_keep_nothing_from_being_compared(spec: Path):
    (spec.parent / "broken.mp4").write_text("no film")
    table = (spec.parent / "clips.csv").read_text()
    (spec.parent / "clips.csv").unlink()  # a link
    (spec.parent / "clips.csv").write_text(f"{table.strip()}\nbroken.mp4,ticking,barking\n")
    assert run("run", spec).exit_code == FAILED
    again = run("run", "--repeat", spec.parent / "run")
    assert again.exit_code == FAILED and "51 cells in both runs, 51 bit-identical" in again.stdout
    change(spec.parent / "run", "logit_diff", 0, 12.5)
    assert run("run", "--repeat", spec.parent / "run").exit_code == DIFFERENT


@pytest.mark.exhaustive
def test_what_cannot_be_repeated_is_refused(store: Path, omni_model: avjax.Model, tmp_path: Path):
    avjax.sweep(omni_model, prompt_of(omni_model, 70), "last->video@3", avjax.metrics.KL(), store=tmp_path / "swept")
    refused = run("run", "--repeat", tmp_path / "swept")
    assert refused.exit_code == 2 and "expected a run of a specification, got one of avjax.sweep" in refused.output
    (store.parent / "clip-0.mp4").unlink()
    missing = run("run", "--repeat", store)
    assert missing.exit_code == 2 and "these are missing" in missing.output and "clip-0.mp4" in missing.output
    assert "add them, or correct their names" in " ".join(missing.output.split())
    assert run("run", "--repeat", tmp_path / "none").exit_code == 2
    itself = run("run", "--repeat", store, "--store", f"{store}/../run")
    assert itself.exit_code == 2 and "expected a store other than the run's own" in " ".join(itself.output.split())


@pytest.mark.exhaustive
def test_a_run_is_repeated_on_another_mesh(store: Path, spec: Path):
    placed = spec.parent / "placed"
    assert run("run", spec, "mesh.model=1", "--store", placed).exit_code == 0
    for words in (["mesh=null"], ["mesh.data=-1", "memory_bytes=1000000000"]):
        again = run("run", "--repeat", placed, *words)
        assert again.exit_code == 0 and "51 cells in both runs" in again.stdout, again.output
    refused = run("run", "--repeat", placed, "mesh=null", "grid.layers.width=2")
    assert (
        refused.exit_code == 2
        and "of only mesh, memory_bytes or decode_seconds, got grid.layers.width=2" in " ".join(refused.output.split())
    )
    assert "whose product is 1" in " ".join(run("run", "--repeat", store, "mesh.model=2").output.split())


@pytest.mark.exhaustive
def test_what_is_compared_in_vain_is_not_computed(store: Path, tmp_path: Path):
    def refused() -> str:
        again = run("run", "--repeat", store, "--store", tmp_path / "second")
        assert again.exit_code == 2 and not (tmp_path / "second").exists()
        return " ".join(again.output.split())

    part = sorted((store / "cells").iterdir())[0]
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    said = refused()
    assert "--repair` computes their cells again" in said and part.name in said.replace(" ", "")
    for one in (store / "cells").iterdir():
        one.unlink()
    assert "expected cells to compare with, got none yet" in refused()
    file = store / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"directory": str(tmp_path / "gone")}))
    assert 'write its new path into "directory" of run.json' in refused()
