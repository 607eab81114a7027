"""Knockout windows, heads and pathways: against single runs, and on tiny-av the paper's direction."""

from pathlib import Path

import numpy as np
import pytest

import avjax
from avjax.analysis import edge_sufficiency, knockout_heads, knockout_windows, sweep_samples
from avjax.engine import session
from avjax.metrics import LogitDiff, LogProb, Prob
from avjax.organism.conflict import Conflict
from avjax.prompts.selectors import select


@pytest.mark.exhaustive
def test_each_sample_is_scored_by_its_own_metric(omni_model: avjax.Model, prompt: avjax.Prompt):
    prompts, answers = {"a": prompt, "b": prompt}, {"a": ([5], [9]), "b": ([11, 12], [5])}
    metrics = {name: LogitDiff(*pair) for name, pair in answers.items()}
    found = knockout_windows(omni_model, prompts, metrics, width=2, progress=False)
    assert found["logit_diff"].dims == ("key", "layers", "sample")
    for name, pair in answers.items():
        alone = avjax.sweep(omni_model, prompt, "answer->video@1:3", LogitDiff(*pair), progress=False)
        there = found["logit_diff"].sel(sample=name, key="video").where(found["layers_window"] == "1:3", drop=True)
        np.testing.assert_allclose(there.values.ravel(), alone["logit_diff"].values.ravel(), atol=1e-6)
        clean = alone["logit_diff_clean"].values[0]
        np.testing.assert_allclose(found["logit_diff_clean"].sel(sample=name), clean, atol=1e-6)
    assert "a" not in found["logit_diff"].attrs  # answers differ, so that no attribute names one


@pytest.mark.exhaustive
def test_heads_are_those_of_single_rules(omni_model: avjax.Model, prompt: avjax.Prompt):
    found = knockout_heads(omni_model, prompt, LogProb([5]), keys=["audio"], progress=False)
    one = avjax.sweep(omni_model, prompt, "answer->audio@2#h1", LogProb([5]), progress=False)
    np.testing.assert_allclose(found["log_prob"].sel(key="audio", layers=2, heads=1), one["log_prob"][0], atol=1e-6)


@pytest.mark.exhaustive
def test_a_pathway_alone_is_all_others_cut(omni_model: avjax.Model, prompt: avjax.Prompt):
    found = edge_sufficiency(omni_model, prompt, LogProb([5]), num_random=3, progress=False)
    cut = avjax.Knockout(query="answer", key="all - video - answer")
    expected = avjax.sweep(omni_model, prompt, cut, LogProb([5]), progress=False)
    np.testing.assert_allclose(found["log_prob"].sel(pathway="video"), expected["log_prob"][0], atol=1e-6)
    assert found["keys"].sel(pathway="video").item() == select(prompt, "video").sum()
    assert dict(found["log_prob_random"].sizes) == {"draw": 3, "pathway": 3, "sample": 1}
    random = found["log_prob_random"].sel(pathway="audio").values
    assert len(np.unique(random)) == 3 and not np.isin(found["log_prob"].sel(pathway="audio").values, random).any()
    again = edge_sufficiency(omni_model, prompt, LogProb([5]), num_random=3, progress=False)
    np.testing.assert_array_equal(again["log_prob_random"], found["log_prob_random"])


@pytest.mark.exhaustive
def test_random_draws_share_clean_passes(omni_model: avjax.Model, monkeypatch: pytest.MonkeyPatch):
    calls, original = [], session.clean_pass

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(session, "clean_pass", counted)
    rng = np.random.default_rng(0)
    for size in (60, 400):  # the second in two sweeps, of selectors that are too many for one
        types = ["text"] * 8 + ["audio"] * (size // 2) + ["video"] * (size // 2) + ["text"] * 4
        positions = np.tile(np.arange(len(types)), (3, 1))
        one = omni_model.prompt_from_embeddings(rng.normal(size=(len(types), 64)), positions, types)
        calls.clear()
        found = edge_sufficiency(
            omni_model, one, Prob([5]), query="last", always="last", pathways=["audio", "video"], num_random=7
        )
        assert found["prob_random"].sizes == {"draw": 7, "pathway": 2, "sample": 1}
        assert len(calls) == 1
        assert (found["edges"] > 0).all() and (found["edges_random"] == found["edges"]).all()


@pytest.mark.exhaustive
def test_a_store_takes_one_sample_of_metrics_by_sample(omni_model: avjax.Model, prompt: avjax.Prompt, tmp_path: Path):
    settings = {"progress": False, "allow_noop": True}
    asked = {"a": LogProb([5]), "b": LogProb([9])}
    alone = sweep_samples(omni_model, {"a": prompt}, "last->text", {"a": asked["a"]}, store=tmp_path / "a", **settings)
    in_memory = sweep_samples(omni_model, {"a": prompt, "b": prompt}, "last->text", asked, **settings)
    np.testing.assert_allclose(alone["log_prob"], in_memory["log_prob"].sel(sample=["a"]), atol=1e-6)
    assert not np.allclose(in_memory["log_prob"].sel(sample="a"), in_memory["log_prob"].sel(sample="b"), atol=1e-3)
    with pytest.raises(ValueError, match="store: expected one metric for all samples"):
        sweep_samples(omni_model, {"a": prompt, "b": prompt}, "last->text", asked, store=tmp_path / "b", **settings)
    assert not (tmp_path / "b").exists()


def test_refusals(omni_model: avjax.Model, prompt: avjax.Prompt):
    with pytest.raises(ValueError, match="expected one for each sample, got none for 'b'"):
        sweep_samples(omni_model, {"a": prompt, "b": prompt}, "answer->audio", {"a": LogProb([5])}, progress=False)
    with pytest.raises(ValueError, match="the same kinds and names for each sample"):
        sweep_samples(
            omni_model, {0: prompt, 1: prompt}, "answer->audio", {0: LogProb([5]), 1: Prob([5])}, progress=False
        )
    with pytest.raises(
        ValueError, match=r"pathway 'image': expected some, but not all, of the .* keys outside 'answer', got 0"
    ):
        edge_sufficiency(omni_model, prompt, LogProb([5]), pathways=["image"], progress=False)
    with pytest.raises(ValueError, match="num_random: expected at least 1"):
        edge_sufficiency(omni_model, prompt, LogProb([5]), num_random=0, progress=False)


@pytest.mark.exhaustive
def test_deep_windows_bring_the_true_sound_back(tiny_av: avjax.Model, clashing: Conflict):
    """Claim 3 of the paper on tiny-av: deep windows of answer->video move the choice to the sound that is heard."""
    found = knockout_windows(tiny_av, clashing.prompts, clashing.metrics, placement="leading", progress=False)
    change = (found["logit_diff"] - found["logit_diff_clean"]).mean("sample")
    assert change.sel(key="video", layers=4) > change.sel(key="video", layers=0) + 3  # nats
    assert change.sel(key="audio").max() < 1
    assert found["logit_diff_clean"].mean() < -2


@pytest.mark.exhaustive
def test_the_picture_alone_gives_the_suggested_sound(tiny_av: avjax.Model, clashing: Conflict):
    found = edge_sufficiency(
        tiny_av, clashing.prompts, clashing.metrics, pathways=["audio", "video"], num_random=2, progress=False
    )
    means = found["logit_diff"].mean("sample")
    assert means.sel(pathway="audio") > means.sel(pathway="video") + 3
    assert found["logit_diff_random"].mean(("sample", "draw")).sel(pathway="audio") < means.sel(pathway="audio")
