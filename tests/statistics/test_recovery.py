"""A recovery is a share of a gap: where rounding could have made the gap it is missing, and how often that is is said.

On tiny-av in float32 and bfloat16: clips of which nothing was corrupted, clips whose picture, which decides what is
said to be heard, turns black, and clips with noise over it.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import avjax
from avjax.analysis import trace
from avjax.analysis.rounding import float32_logits, noise_floor, smallest_gap
from avjax.metrics import Logits
from avjax.organism.conflict import Conflict, conflict, opened

pytestmark = pytest.mark.exhaustive

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module", params=DTYPES)
def model(request: pytest.FixtureRequest) -> avjax.Model:
    return avjax.load("tiny-av", dtype=request.param)


@pytest.fixture(scope="module")
def clashing(model: avjax.Model) -> Conflict:
    return conflict(model, 3)


def traced(model: avjax.Model, clashing: Conflict, corrupt: dict[Any, avjax.Prompt], **options: Any) -> xr.Dataset:
    answers = clashing.suggested, clashing.heard
    settings = {"groups": ["audio", "video"], "width": 4, "stride": 4, "progress": False}
    return trace(model, clashing.prompts, corrupt, *answers, **(settings | options))


@pytest.fixture(scope="module")
def blank(model: avjax.Model, clashing: Conflict) -> xr.Dataset:
    clips = {name: dataclasses.replace(c, frames=np.zeros_like(c.frames)) for name, c in clashing.clips.items()}
    return traced(model, clashing, opened(model, clips))


def test_what_was_never_corrupted_has_no_recovery(model: avjax.Model, clashing: Conflict):
    found = traced(model, clashing, dict(clashing.prompts))
    gap = abs(found["logit_diff_of_clean"] - found["logit_diff_of_corrupt"])
    assert found["recovery"].isnull().all() and (gap < found["min_gap"]).all()
    assert found.attrs["recovery_missing"] == "3 of 3 samples"


def test_a_planted_effect_stays(blank: xr.Dataset):
    gap = abs(blank["logit_diff_of_clean"] - blank["logit_diff_of_corrupt"])
    assert blank["recovery"].notnull().all() and (gap > 5 * blank["min_gap"]).all()
    np.testing.assert_allclose(blank["recovery"].sel(group="video").isel(layers=0), 1, atol=0.3)
    assert blank.attrs["recovery_missing"] == "0 of 3 samples"
    assert blank["min_gap"].attrs["units"] == "nats" and "8 x the noise floor" in blank.attrs["min_gap"]


def test_a_guard_of_ones_own(model: avjax.Model, clashing: Conflict, blank: xr.Dataset):
    gaps = abs(blank["logit_diff_of_clean"] - blank["logit_diff_of_corrupt"]).values
    clips = {name: dataclasses.replace(c, frames=np.zeros_like(c.frames)) for name, c in clashing.clips.items()}
    between = float(np.mean(np.sort(gaps)[:2]))
    found = traced(model, clashing, opened(model, clips), min_gap=between)
    missing = found["recovery"].isnull().all(["group", "site", "layers"]).values
    np.testing.assert_array_equal(missing, gaps < between)
    assert found.attrs["recovery_missing"] == "1 of 3 samples" and found.attrs["min_gap"].endswith("nats, as given")
    for wrong in (0, -1.0, np.inf, np.nan, "much", True):
        with pytest.raises(ValueError, match="min_gap: expected a number of nats above 0"):
            traced(model, clashing, opened(model, clips), min_gap=wrong)


@given(
    share=st.floats(0, 1),
    floor=st.floats(1e-6, 1),
    times=st.floats(1, 20),
    errors=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_rounding_moves_a_recovery_by_a_quarter_at_most(share: float, floor: float, times: float, errors: tuple):
    """Whatever it does to the change that a patch makes and to the gap, within the floor."""
    measured = times * smallest_gap(floor)
    true_gap = measured - errors[0] * floor
    recovered = (share * true_gap + errors[1] * floor) / measured
    assert abs(recovered - share) <= 0.25 + 1e-9


def test_bfloat16_recoveries_are_those_of_float32():
    """Where bfloat16 gives one: also of weak noise, whose gap is near what rounding does."""
    recoveries = {}
    for dtype in DTYPES:
        model = avjax.load("tiny-av", dtype=dtype)
        clashing = conflict(model, 3)
        weak = {}
        for size, (name, clip) in zip((2, 6, 30), clashing.clips.items(), strict=True):
            noise = np.random.default_rng(0).integers(-size, size + 1, clip.frames.shape)
            frames = np.clip(clip.frames.astype(int) + noise, 0, 255).astype(clip.frames.dtype)
            weak[name] = dataclasses.replace(clip, frames=frames)
        recoveries[dtype] = traced(model, clashing, opened(model, weak), groups=["video"])
    full, half = recoveries["float32"], recoveries["bfloat16"]
    assert (half["min_gap"].values > 100 * full["min_gap"].values).all()
    inside = (full["recovery"] >= 0) & (full["recovery"] <= 1)
    off = abs(half["recovery"] - full["recovery"]).where(inside)
    assert not (off > 0.25).any(), off.max()


def test_the_floor_is_what_rounding_does(model: avjax.Model, clashing: Conflict):
    prompt = next(iter(clashing.prompts.values()))
    floor, exact = noise_floor(model, prompt), float32_logits(model, prompt)
    clean = avjax.sweep(model, prompt, [[]], Logits(range(len(exact))), progress=False)["logits_clean"].values.ravel()
    off = clean - exact
    assert abs(off - np.median(off)).max() <= floor
    assert (1e-7 < floor < 1e-4) if str(model.dtype) == "float32" else (1e-3 < floor < 0.5)
