"""Causal tracing: against single patches, its ends, refusals, and what restoring the sound does to tiny-av."""

import dataclasses

import numpy as np
import pytest

import avjax
from avjax.analysis import deciding_modality, select_random, trace
from avjax.metrics import LogitDiff, Prob
from avjax.organism.conflict import Conflict, opened
from avjax.prompts.selectors import BySample, select

CLEAN, CORRUPT = [5], [9]


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_the_inputs_of_attention_and_mlp_are_sites(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    """And inside a window they are others than the residual before it, which carries what earlier layers wrote."""
    sites = ["attn_in", "mlp_in", "resid_pre"]
    found = trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=["last"], sites=sites, width=3, progress=False)
    assert found["site"].values.tolist() == sites
    for site in sites[:2]:
        patch = avjax.Patch("last", source=prompt, site=site, layers=[2, 3, 4])
        one = avjax.sweep(omni_model, muted, patch, Prob(CLEAN, name="a"), progress=False)
        cell = found["ie_clean"].sel(group="last", site=site, layers=3, sample=0)
        np.testing.assert_allclose(cell, one["a"].item() - one["a_clean"].item(), atol=1e-7)
    apart = abs(found["recovery"].sel(site=sites[:2]) - found["recovery"].sel(site="resid_pre")).max("layers")
    assert (apart > 1e-2).all()


@pytest.mark.exhaustive
def test_restoring_the_last_residual_restores_everything(
    omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt
):
    found = trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=["last", "all"], progress=False)
    last = omni_model.config.decoder.num_layers - 1
    np.testing.assert_allclose(found["recovery"].sel(group="last", layers=last), 1, atol=1e-3)
    np.testing.assert_allclose(found["recovery"].sel(group="all"), 1, atol=1e-3)


@pytest.mark.exhaustive
def test_groups_may_differ_by_sample(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    clean, corrupt = {"a": prompt, "b": prompt.continued([3])}, {"a": muted, "b": muted.continued([3])}
    few = BySample.of({"a": [4, 9], "b": [20, 21, 25]}, "few")
    random = select_random(clean, few, among="all", seed=1)
    groups = ["all", few, random]
    found = trace(omni_model, clean, corrupt, CLEAN, CORRUPT, groups=groups, progress=False)
    assert found["group"].values.tolist() == ["all", "few", "random like few"]
    for name in clean:
        for group in (few, random):
            patch = avjax.Patch(group.at(name), source=clean[name], site="resid_post", layers=[3])
            one = avjax.sweep(omni_model, corrupt[name], patch, Prob(CLEAN, name="a"), progress=False)
            cell = found["ie_clean"].sel(group=str(group), layers=3, sample=name)
            np.testing.assert_allclose(cell, [one["a"].item() - one["a_clean"].item()], atol=1e-7)
    with pytest.raises(ValueError, match="selector few: it has no positions for sample 0"):
        trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=[few], progress=False)


def test_random_tokens_are_as_many_others(prompt: avjax.Prompt):
    named = {"a": prompt, "b": prompt}
    like = BySample.of({"a": np.flatnonzero(select(prompt, "video"))[:10], "b": []})
    drawn, again, other = (select_random(named, like, seed=seed) for seed in (0, 0, 1))
    assert drawn == again != other and [len(p) for p in drawn.positions] == [10, 0]
    media = np.flatnonzero(select(prompt, "video | audio")[:-1])
    assert set(drawn.at("a")) <= set(media) - set(like.at("a"))
    seen = {i for seed in range(200) for i in select_random(named, like, seed=seed).at("a")}
    assert seen == set(media) - set(like.at("a"))
    with pytest.raises(ValueError, match="'video' tokens other than video in sample 0, got 0; widen among="):
        select_random(prompt, "video", among="video")


@pytest.mark.exhaustive
def test_equal_runs_have_nothing_to_recover(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    found = trace(omni_model, prompt, prompt, CLEAN, CORRUPT, groups=["last"], progress=False)
    assert np.isnan(found["recovery"]).all()
    np.testing.assert_allclose(found["ie_clean"], 0, atol=1e-6)


@pytest.mark.exhaustive
def test_refusals(omni_model: avjax.Model, prompt: avjax.Prompt, muted: avjax.Prompt):
    with pytest.raises(ValueError, match="the prompts of sample 0 cannot be aligned"):
        trace(omni_model, prompt, muted.continued([5]), CLEAN, CORRUPT, progress=False)
    same = "expected the same number of image tokens, at least 1, in both prompts of sample 0, got 0 clean"
    with pytest.raises(ValueError, match=same):
        trace(omni_model, prompt, muted, CLEAN, CORRUPT, groups=["image"], progress=False)
    with pytest.raises(ValueError, match="clean and corrupt prompts of the same samples"):
        trace(omni_model, {"a": prompt}, {"b": muted}, CLEAN, CORRUPT, progress=False)
    with pytest.raises(ValueError, match="clean_answers: expected one for each sample, got none for 0"):
        trace(omni_model, prompt, muted, {1: CLEAN}, CORRUPT, progress=False)
    with pytest.raises(ValueError, match=r"got a probability below 0.01 for sample 0; start the answer"):
        deciding_modality(omni_model, prompt, CLEAN, progress=False)
    with pytest.raises(ValueError, match="decides: expected a share"):
        deciding_modality(omni_model, prompt, CLEAN, decides=1.0, progress=False)


@pytest.mark.exhaustive
def test_the_picture_decides_tiny_av_under_conflict(tiny_av: avjax.Model, clashing: Conflict):
    found = deciding_modality(tiny_av, clashing.prompts, clashing.suggested, progress=False)
    assert (found["by"].values == "video").mean() >= 0.6
    assert found["lost"].sel(modality="video").mean() > found["lost"].sel(modality="audio").mean() + 0.4


@pytest.mark.exhaustive
def test_restoring_the_picture_restores_its_sound(tiny_av: avjax.Model, clashing: Conflict):
    """Clean: as the clip is; corrupt: with a black picture. Its tokens carry the suggested sound until deep."""
    blank = {name: dataclasses.replace(c, frames=np.zeros_like(c.frames)) for name, c in clashing.clips.items()}
    corrupt = opened(tiny_av, blank)
    answers = clashing.suggested, clashing.heard
    found = trace(tiny_av, clashing.prompts, corrupt, *answers, groups=["audio", "video"], progress=False)
    means = found["ie_clean"].mean("sample").isel(site=0)
    assert means.sel(group="video", layers=0) > means.sel(group="audio").max() + 0.3
    assert means.sel(group="video", layers=0) > means.sel(group="video", layers=7) + 0.3
