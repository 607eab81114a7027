"""Causal tracing: against single patches, its ends, refusals, and what restoring the sound does to tiny-av."""

import dataclasses

import numpy as np
import pytest

import avjax
from avjax.analysis import deciding_modality, trace
from avjax.metrics import LogitDiff, Prob
from avjax.organism.conflict import Conflict, opened

CLEAN, CORRUPT = [5], [9]


def test_cells_are_single_patches(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    found = trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=["audio", "last"], width=2, progress=False)
    assert found["ie_clean"].dims == ("group", "site", "layers", "sample")
    window = [int(i) for i in found["layers_window"].sel(layers=2).item().split(":")]
    patch = avjax.Patch("audio", source=prompt, site="resid_post", layers=range(*window))
    metrics = [Prob(CLEAN, name="a"), Prob(CORRUPT, name="b"), LogitDiff(CLEAN, CORRUPT)]
    one = avjax.sweep(omni_model, muted, patch, metrics, progress=False)
    run = avjax.sweep(omni_model, prompt, [[]], metrics, progress=False)
    cell = found.sel(group="audio", site="resid_post", layers=2)
    np.testing.assert_allclose(cell["ie_clean"], one["a"][0] - one["a_clean"], atol=1e-7)
    np.testing.assert_allclose(cell["ie_corrupt"], one["b_clean"] - one["b"][0], atol=1e-7)
    gap = run["logit_diff_clean"] - one["logit_diff_clean"]
    expected = (one["logit_diff"][0] - one["logit_diff_clean"]) / gap
    np.testing.assert_allclose(cell["recovery"], expected, rtol=1e-3, atol=1e-5)
    assert found["ie_clean"].attrs["units"] == "probability"


def test_restoring_the_last_residual_restores_everything(
    omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt
):
    found = trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=["last", "all"], progress=False)
    last = omni_model.config.decoder.num_layers - 1
    np.testing.assert_allclose(found["recovery"].sel(group="last", layers=last), 1, atol=1e-3)
    np.testing.assert_allclose(found["recovery"].sel(group="all"), 1, atol=1e-3)


def test_equal_runs_have_nothing_to_recover(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    found = trace(omni_model, prompt, prompt, CLEAN, CORRUPT, groups=["last"], progress=False)
    assert np.isnan(found["recovery"]).all()
    np.testing.assert_allclose(found["ie_clean"], 0, atol=1e-6)


def test_refusals(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    with pytest.raises(ValueError, match="the prompts of sample 0 cannot be aligned"):
        trace(omni_model, prompt, muted.continued([5]), CLEAN, CORRUPT, progress=False)
    with pytest.raises(ValueError, match="expected as many image tokens in both prompts of sample 0, got 0 clean"):
        trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=["image"], progress=False)
    with pytest.raises(ValueError, match="clean and corrupt prompts of the same samples"):
        trace(omni_model, {"a": prompt}, {"b": muted}, CLEAN, CORRUPT, progress=False)
    with pytest.raises(ValueError, match="clean_answers: expected one for each sample, got none for 0"):
        trace(omni_model, prompt, muted, {1: CLEAN}, CORRUPT, progress=False)
    with pytest.raises(ValueError, match="decides: expected a share"):
        deciding_modality(omni_model, prompt, CLEAN, decides=1.0, progress=False)


def test_the_picture_decides_tiny_av_under_conflict(tiny_av: avjax.Model, clashing: Conflict):
    found = deciding_modality(tiny_av, clashing.prompts, clashing.suggested, progress=False)
    assert (found["by"].values == "video").mean() >= 0.6
    assert found["lost"].sel(modality="video").mean() > found["lost"].sel(modality="audio").mean() + 0.4


def test_restoring_the_picture_restores_its_sound(tiny_av: avjax.Model, clashing: Conflict):
    """Clean: as the clip is; corrupt: with a black picture. Its tokens carry the suggested sound until deep."""
    blank = {name: dataclasses.replace(c, frames=np.zeros_like(c.frames)) for name, c in clashing.clips.items()}
    corrupt = opened(tiny_av, blank)
    answers = clashing.suggested, clashing.heard
    found = trace(tiny_av, clashing.prompts, corrupt, *answers, groups=["audio", "video"], progress=False)
    means = found["ie_clean"].mean("sample").isel(site=0)
    assert means.sel(group="video", layers=0) > means.sel(group="audio").max() + 0.3
    assert means.sel(group="video", layers=0) > means.sel(group="video", layers=7) + 0.3
