"""Activations that a run keeps beside its cells."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.organism import world

SITES = ("resid_post", "attn_in", "mlp_in", "z")
CAPTURE = "capture={sites: [resid_post, attn_in, mlp_in, z], at: last}"


def run(*arguments: object):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


@pytest.mark.exhaustive
def test_shares_are_merged_with_what_they_captured(spec: Path, tmp_path: Path):
    shares = [tmp_path / f"share-{i}" for i in range(2)]
    for i, share in enumerate(shares):
        assert run(spec, CAPTURE, "grid.layers.stride=8", "--shard", f"{i}/2", "--store", share).exit_code == 0
    words = ["runs", "merge", *map(str, shares), "--into", str(tmp_path / "all")]
    assert CliRunner().invoke(app, words).exit_code == 0
    apart = {path.name: path for share in shares for path in (share / "captures").iterdir()}
    merged = {path.name: path for path in (tmp_path / "all" / "captures").iterdir()}
    assert len(merged) == 3 and merged.keys() == apart.keys()
    for name, path in merged.items():
        xr.testing.assert_identical(xr.load_dataset(path, engine="zarr"), xr.load_dataset(apart[name], engine="zarr"))


@pytest.mark.exhaustive
def test_they_are_those_of_each_edit(spec: Path):
    done = run(spec, CAPTURE, "grid.layers.stride=4")
    assert done.exit_code == 0, done.output
    store = spec.parent / "run"
    found = [xr.load_dataset(path, engine="zarr") for path in sorted((store / "captures").iterdir())]
    rows = pd.read_parquet(store / "cells")
    assert sum(data.sizes["cell_index"] for data in found) == len(rows) == 3 * 5
    model = avjax.load("tiny-av")
    for data in found:
        prompt = model.prompt(
            world.PROMPT, video=spec.parent / f"{data.attrs['sample']}.mp4", audio="from_video", opening="I hear"
        )
        for place, cell in zip(data.cell_index.values, data.cell.values, strict=True):
            edits = () if cell == "clean" else (str(cell),)
            expected = avjax.run(model, prompt, *edits, capture=SITES)
            for site in SITES:
                got = data[site].sel(cell_index=place).values
                np.testing.assert_array_equal(got, np.asarray(expected.captures[site])[:, [len(prompt) - 1]])
    assert "0 cells computed" in run(spec, CAPTURE, "grid.layers.stride=4").output


def test_other_captures_are_another_run(spec: Path):
    assert run(spec, "grid.layers.stride=8").exit_code == 0
    refused = run(spec, CAPTURE, "grid.layers.stride=8")
    assert refused.exit_code == 2 and "it holds another run" in refused.output


def test_a_disk_that_fails_leaves_no_half_captures(spec: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: xr.Dataset, place: Path, **_: object) -> None:
        Path(place).mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", full)
        assert run(spec, CAPTURE, "grid.layers.stride=8").exit_code == 74
    assert not [*(spec.parent / "run" / "cells").iterdir()]
    assert run(spec, CAPTURE, "grid.layers.stride=8").exit_code == 0
    left = [path.name for path in (spec.parent / "run" / "captures").iterdir()]
    assert len(left) == 3 and all(name.endswith(".zarr") for name in left)


def test_what_is_no_site_is_refused(spec: Path):
    refused = run(spec, "capture={sites: [pattern]}")
    assert refused.exit_code == 2 and "capture.sites" in refused.output
