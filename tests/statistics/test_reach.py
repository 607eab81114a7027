"""A cell counts what it did to what a metric reads; where it can do nothing, there is no value."""

from pathlib import Path

import numpy as np
import pytest

import avjax
from avjax import metrics

SIZE, KEYS = 24, 6
TEXT = (9, 4, 4, 17)
RULES = ["generated->[0:6]", "answer->[0:6]", "last->[0:6]"]


@pytest.fixture(scope="module")
def prompt(omni_model) -> avjax.Prompt:
    ids = np.random.default_rng(5).integers(0, 300, SIZE)
    return omni_model.prompt_from_hf({"input_ids": ids[None]})


def test_an_edit_that_cannot_reach_a_metric_is_refused(omni_model, prompt):
    both = [metrics.Prob(3), metrics.LogLikelihood(TEXT)]
    why = r"metric 'prob'.*cannot reach.*generated tokens only.*answer.*allow_noop"
    for edits in (RULES[0], avjax.Scale("generated", 0.5, site="embed"), f"{RULES[0]}; {RULES[1]}"):
        with pytest.raises(ValueError, match=why):
            avjax.sweep(omni_model, prompt, edits, both, progress=False)
    with pytest.raises(ValueError, match=r"'caption'.*cannot reach"):
        avjax.sweep(omni_model, prompt, RULES[0], [metrics.LogLikelihood(TEXT), metrics.Caption(1)], progress=False)


@pytest.mark.exhaustive
def test_or_has_no_value_and_no_count(omni_model, prompt, tmp_path: Path):
    """Beside metrics that it does reach, in memory and from a store."""
    asked = [metrics.Prob(3), metrics.LogLikelihood(TEXT), metrics.TopK(2), metrics.Caption(3)]
    settings = {"allow_noop": True, "progress": False}
    in_memory = avjax.sweep(omni_model, prompt, RULES, asked, **settings)
    stored = avjax.sweep(omni_model, prompt, RULES, asked, store=tmp_path / "run", **settings)
    heads = omni_model.config.decoder.num_layers * omni_model.config.decoder.num_heads
    fed = len(TEXT) - 1
    for data in (in_memory, stored):
        late, both, last = (data.isel(variant=i, sample=0) for i in range(3))
        assert np.isnan(late.prob) and (late.top_k == -1).all() and np.isnan(late.top_k_prob).all()
        assert "none can reach" in data.prob.attrs["missing"] and "missing" not in data.log_likelihood.attrs
        assert np.isfinite(data.log_likelihood).all() and late.log_likelihood != data.log_likelihood_clean[0]
        assert np.isfinite(both.prob) and both.prob == last.prob
        assert [int(cell.prob_edges) for cell in (late, both, last)] == [0, KEYS * heads, KEYS * heads]
        assert [int(cell.log_likelihood_edges) for cell in (late, both, last)] == [
            fed * KEYS * heads,
            (fed + 1) * KEYS * heads,
            KEYS * heads,
        ]
        counts = max(int(both[f"{metric.name}_edges"]) for metric in asked)
        np.testing.assert_array_equal(data.edges.sel(variant=RULES[1]), counts)
    np.testing.assert_array_equal(in_memory.prob_edges, stored.prob_edges)


@pytest.mark.exhaustive
def test_alike_counts_stand_once(omni_model, prompt):
    data = avjax.sweep(omni_model, prompt, RULES[2], [metrics.Prob(3), metrics.LogLikelihood(TEXT)], progress=False)
    assert "prob_edges" not in data and int(data.edges.item()) > 0
