"""Tables mark means within the noise floor and say once what the mark means."""

import numpy as np
import pytest
import xarray as xr

from avjax.analysis.means import MARK, floor_line, mean_table, row_of
from avjax.cli.analyses import print_means


def swept(shape: tuple[int, ...], floor: float | None = 0.01) -> xr.Dataset:
    """The first cell changes the clean run by less than 0.01, the others by 1, 2 ..."""
    rng = np.random.default_rng(0)
    dims = ("layers", "key")[: len(shape)]
    coords = {"layers": ["0:4", "4:8", "10:14"][: shape[0]], "key": ["audio", "video"]} if shape else {}
    clean = rng.normal(5, 1, 6)
    change = np.arange(float(np.prod(shape, initial=1))).reshape(shape)
    dataset = xr.Dataset(
        {
            "logit_diff": ((*dims, "sample"), clean + change[..., None] + 0.001, {"units": "nats"}),
            "logit_diff_clean": ("sample", clean, {"units": "nats"}),
        },
        {name: coords[name] for name in dims},
    )
    return dataset if floor is None else dataset.assign(logit_diff_floor=((), floor, {"units": "nats"}))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_marks(shape: tuple[int, ...], capsys: pytest.CaptureFixture):
    dataset = swept(shape)
    print_means(dataset, ("logit_diff", "logit_diff_clean"))
    shown = capsys.readouterr().out
    assert f"{float(dataset.logit_diff[(0,) * len(shape)].mean('sample')):.4f}{MARK}" in shown
    assert shown.count(MARK) == 2, "one mean, and the line that explains it"
    line = "~ changes the clean run by no more than the noise floor, 0.01 nats: rounding, not an effect"
    assert shown.splitlines().count(line) == 1
    if shape:
        assert f"{float(dataset.logit_diff[-1].mean()):.0f}" in shown and "10:14" in shown


@pytest.mark.parametrize("floor", [None, np.nan, 1e-9])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_nothing_to_mark(shape: tuple[int, ...], floor: float | None, capsys: pytest.CaptureFixture):
    outputs = []
    for dataset in (swept(shape, floor), swept(shape, None)):
        print_means(dataset, ("logit_diff", "logit_diff_clean"))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and MARK not in outputs[0]


def test_distances_and_missing_means(capsys: pytest.CaptureFixture):
    values = np.array([[1e-6] * 5, [0.3] * 5, [np.nan] * 5])
    dataset = xr.Dataset({"kl": (("cell", "sample"), values, {"units": "nats", "distance": 1}), "kl_floor": 2e-6})
    print_means(dataset, ("kl",))
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in rows[2:5]] == ["0.0000~", "0.3000", "NaN"]
    assert "2e-06 nats" in rows[-1]


def test_the_explanation_is_of_what_is_marked():
    below = xr.DataArray([False, False], dims="cell")
    assert floor_line(below, xr.DataArray(0.1)) == floor_line(None, None) == ""
    assert mean_table(xr.DataArray([1.0, 2.0], dims="cell"), below) == mean_table(xr.DataArray([1.0, 2.0], dims="cell"))


def test_a_row_keeps_its_columns():
    values, below = (
        xr.DataArray([1.0, -0.004, np.nan], dims="factor"),
        xr.DataArray([False, True, False], dims="factor"),
    )
    assert row_of(values, below, 2, 8) == "   1.00   -0.00~    nan "
    assert len(row_of(values, None, 2, 8)) == 24
