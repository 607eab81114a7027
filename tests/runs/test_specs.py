"""The specifications of the paper's experiments, on clips that `sweeps.clips` writes."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from avjax.cli import app
from avjax.runs.spec.spec import Spec
from sweeps import clips as script

SPECS = sorted((Path(script.__file__).parent / "specs").glob("*.yaml"))


def written(directory: Path, *options: str) -> Path:
    """The table of two clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["clips", str(directory / "clips"), "--count", "2", *options])
        script.main()
    return directory / "clips" / "clips.csv"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("specs"))


def run(*arguments: object):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def test_the_table_says_what_clips_hold(clips: Path):
    table = pd.read_csv(clips)
    assert [*table.columns] == ["video", "picture", "sound", "suggested"] and len(table) == 2
    assert (table.sound != table.suggested).all() and all((clips.parent / name).exists() for name in table.video)


@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_a_specification_runs(spec: Path, clips: Path, tmp_path: Path):
    spec = clips.parent / spec.name
    first = spec.read_text().splitlines()[0]
    assert first.startswith("# ") and Spec.read(spec).store == spec.stem
    few = ["metrics=[{metric: caption, max_new_tokens: 3}]"] if spec.stem == "captions" else []
    done = run(spec, *few, "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    cells = pd.read_parquet(tmp_path / "store" / "cells")
    assert cells["sample"].nunique() == 2 and len(cells) > 4
    edited = cells[cells.cell != "clean"]
    assert (edited[["edges", "positions"]].sum(axis=1) > 0).any()


@pytest.mark.exhaustive
def test_factual_clips_have_specifications(tmp_path: Path):
    clips = written(tmp_path, "--condition", "factual")
    table = pd.read_csv(clips)
    assert (table.sound == table.suggested).all()
    done = run(clips.parent / "factual.yaml")
    assert done.exit_code == 0, done.output
    cells = pd.read_parquet(clips.parent / "factual" / "cells")
    assert cells["sample"].nunique() == 2 and cells.log_prob.notna().all()
    assert (cells[cells.cell != "clean"].kl > 0).any()
