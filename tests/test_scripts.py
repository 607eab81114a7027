"""Every analysis script in `sweeps` runs to its end on a few clips and leaves its dataset."""

import importlib
import sys
from pathlib import Path

import pytest
import xarray as xr

SCRIPTS: dict[str, tuple[list[str], str]] = {
    "attention": ([], "per_key"),
    "attribute": (["--top", "2"], "exact"),
    "compare": ([], "rank"),
    "gates": (["--steps", "2"], "held_out"),
    "knockout": ([], "logit_diff"),
    "lens": ([], "rank"),
    "pathways": ([], "logit_diff"),
    "scale": ([], "logit_diff"),
    "sinks": (["--threshold", "3"], "mds"),
    "trace": ([], "ie_clean"),
}


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(f"sweeps.{name}").main()


def test_every_script_is_here():
    scripts = {path.stem for path in (Path(__file__).parent.parent / "sweeps").glob("*.py")} - {"__init__", "clips"}
    assert scripts == {*SCRIPTS, "probe"}
    for path in (Path(__file__).parent.parent / "sweeps").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 50, path


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    options, variable = SCRIPTS[name]
    run(name, ["--clips", "2", *options, "--out", str(tmp_path / "found.nc")], monkeypatch)
    with xr.open_dataset(tmp_path / "found.nc") as found:
        assert found[variable].size > 1 and found[variable].attrs["units"]
    assert capsys.readouterr().out.strip()


@pytest.mark.exhaustive
def test_the_probe_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    options = ["--clips", "96", "--pooling", "mean", "--strengths", "0.1", "--seeds", "1", "--out", str(tmp_path)]
    run("probe", options, monkeypatch)
    with xr.open_dataset(tmp_path / "results.nc") as found:
        assert found["accuracy"].sizes["layer"] == 8
    assert "selectivity" in capsys.readouterr().out
