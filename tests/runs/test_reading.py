"""Stores as other programs read them: the README's lines in pandas, polars and duckdb, and datasets in Zarr."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pytest
import xarray as xr
from typer.testing import CliRunner

from avjax.cli import app
from avjax.runs.reading import read
from avjax.runs.store import Store

pytestmark = pytest.mark.exhaustive

README = Path(__file__).parents[2] / "README.md"
CAPTION = "{metric: caption, max_new_tokens: 3}"


@pytest.fixture
def store(spec: Path) -> Path:
    more = "metrics=[{metric: logit_diff, a: '{sound}', b: '{suggested}'}, {metric: top_k, k: 2}, " + CAPTION + "]"
    done = CliRunner().invoke(app, ["run", str(spec), more])
    assert done.exit_code == 0, done.output
    return spec.parent / "run"


def test_three_readers_agree(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(store.parent)
    (code,) = re.findall(r"```py\n(.*?)```", README.read_text(), re.DOTALL)
    names = {"pandas": pandas, "polars": polars, "duckdb": duckdb}
    first, second, third = (eval(line, names) for line in map(str.strip, code.splitlines()) if line)
    expected = first.to_dict()
    assert len(expected) == 17 and np.ptp(list(expected.values())) > 0.1
    for got in (dict(second.iter_rows()), dict(zip(third["cell"], third["logit_diff"], strict=True))):
        assert got.keys() == expected.keys()
        np.testing.assert_allclose([got[cell] for cell in expected], [*expected.values()], rtol=1e-5)


def test_a_dataset_goes_to_zarr_and_back(store: Path):
    out = store.parent / "cells.zarr"
    made = CliRunner().invoke(app, ["runs", "export", str(store), str(out)])
    assert made.exit_code == 0, made.output
    found, expected = xr.load_dataset(out, engine="zarr"), read(Store(store))
    assert found.caption.dtype.kind == "U"  # of one width; a sweep has objects
    assert found.caption.values.tolist() == expected.caption.values.tolist()
    assert found.attrs == expected.attrs and found.logit_diff.attrs == expected.logit_diff.attrs
    assert found.cell.values.tolist() == expected.cell.values.tolist()
    numbers = [name for name, array in expected.data_vars.items() if array.dtype.kind != "O"]
    xr.testing.assert_equal(found[numbers].drop_vars("cell"), expected[numbers].drop_vars("cell"))
    assert [found[name].dtype for name in numbers] == [expected[name].dtype for name in numbers]
    again = CliRunner().invoke(app, ["runs", "export", str(store), str(out)])
    assert again.exit_code == 2 and "it already exists" in again.output
