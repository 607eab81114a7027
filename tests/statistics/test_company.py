"""A metric's value does not depend on the metrics beside it, nor on how many continuations ride in one pass."""

import functools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import avjax
from avjax import metrics
from avjax.sweeping.prepare import MOST_FED

SIZE = 24
GRID = ["answer->[2:9]@1", "[8:20]->[0:4]", "generated->[0:6]; last->[3:5]*2"]
TOLERANCE = {"nats": 1e-5}  # what float32 programs of other shapes differ by in logits of order 10; others: 1e-6


@pytest.fixture(scope="module")
def prompt(omni_model) -> avjax.Prompt:
    ids = np.random.default_rng(5).integers(0, 300, SIZE)
    return omni_model.prompt_from_hf({"input_ids": ids[None]})


def every_metric(vocab: int) -> list[metrics.Metric]:
    long = tuple(np.random.default_rng(1).integers(0, vocab, 12).tolist())
    return [
        metrics.Prob("water"),
        metrics.LogProb("dog", name="log_prob"),
        metrics.Rank(7),
        metrics.LogitDiff("water", "dog"),
        metrics.LogLikelihood(long),
        metrics.LogLikelihood(long[:4], mean=True, name="begins_alike"),
        metrics.LogLikelihood((9, 4, 4), name="other_text"),
        metrics.KL(),
        metrics.TotalVariation(),
        metrics.TopK(3),
        metrics.Logits([1, 2, 3]),
        metrics.AttentionMass("[2:9]", query="answer"),
        metrics.AttentionMass("all", query="generated", text=long[:4], name="mass_of_text"),
        metrics.Caption(4),
    ]


def swept(model: avjax.Model, prompt: avjax.Prompt, chosen: list[metrics.Metric], executor: str = "replay"):
    return avjax.sweep(model, prompt, GRID, chosen, executor=executor, allow_noop=True, progress=False)


def assert_alike(alone, together, names) -> None:
    for name in names:
        a, b = alone[name].values, together[name].values
        if a.dtype.kind == "f":
            tolerance = TOLERANCE.get(alone[name].attrs["units"].split(",")[0], 1e-6)
            np.testing.assert_allclose(b, a, rtol=1e-6, atol=tolerance, err_msg=str(name))
        else:
            np.testing.assert_array_equal(b, a, err_msg=str(name))
        assert alone[name].attrs == together[name].attrs, name


def values_of(dataset) -> list[str]:
    """The variables of metrics, without counts and floors, which are of a sweep."""
    return [n for n, v in dataset.data_vars.items() if f"{n}_clean" in dataset or str(n).endswith("_clean")]


@pytest.fixture(scope="module")
def alone(omni_model, prompt):
    """By metric, its own sweep; begun when it is asked for."""
    chosen = {metric.name: metric for metric in every_metric(omni_model.config.decoder.vocab_size)}
    return functools.cache(lambda name: swept(omni_model, prompt, [chosen[name]]))


def check_company(model, prompt, alone, company: list[metrics.Metric]) -> None:
    together = swept(model, prompt, company)
    for metric in company:
        own = alone(metric.name)
        assert_alike(own, together, values_of(own))
        for count in ("edges", "positions", "blocked_queries"):
            counted = f"{metric.name}_{count}"
            counts = together[counted if counted in together else count]
            np.testing.assert_array_equal(counts, own[count], err_msg=counted)


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [1, -1], ids=["in order", "in reverse"])
def test_all_together(omni_model, prompt, alone, step: int):
    """Every metric beside every other, in both orders."""
    check_company(omni_model, prompt, alone, every_metric(omni_model.config.decoder.vocab_size)[::step])


@pytest.mark.exhaustive
@settings(max_examples=12)
@given(pair=st.permutations(range(14)))
def test_drawn_pairs(omni_model, prompt, alone, pair):
    chosen = every_metric(omni_model.config.decoder.vocab_size)
    check_company(omni_model, prompt, alone, [chosen[i] for i in pair[:2]])


@pytest.mark.exhaustive
def test_the_reference_executor_agrees(omni_model, prompt):
    chosen = every_metric(omni_model.config.decoder.vocab_size)
    replayed, referenced = (swept(omni_model, prompt, chosen, executor) for executor in ("replay", "reference"))
    for name in values_of(replayed):
        if replayed[name].dtype.kind == "f":
            np.testing.assert_allclose(replayed[name], referenced[name], rtol=1e-5, atol=1e-5, err_msg=str(name))
        else:
            np.testing.assert_array_equal(replayed[name], referenced[name], err_msg=str(name))


@pytest.mark.exhaustive
@pytest.mark.parametrize("compat", [None, "published"])
def test_many_continuations_are_what_they_are_alone(omni_model, prompt, compat):
    """Branches of one pass, passes where there are too many, and a plain run over each longer prompt: one number."""
    rng = np.random.default_rng(3)
    texts = [tuple(rng.integers(0, 300, n).tolist()) for n in (1, 2, 5, 9, 17, 33, 40)]
    assert sum(map(len, texts)) - len(texts) > MOST_FED
    chosen = [metrics.LogLikelihood(text, name=f"text_{i}") for i, text in enumerate(texts)]
    rule = "answer->[0:24]@1" if compat else GRID[0]  # whose queries see no prompt key at all
    got = avjax.sweep(omni_model, prompt, rule, chosen, compat=compat, progress=False)
    for i, text in enumerate(texts if compat is None else texts[:1]):  # an opened prompt has no published behaviour
        total = 0.0
        for step, token in enumerate(text):
            fed = prompt.continued(text[:step])
            run = avjax.run(omni_model, fed, f"[{SIZE - 1}:{SIZE + step}]->{rule.split('->')[1]}", compat=compat)
            row = np.asarray(run.logits[0], np.float64)
            total += row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
        np.testing.assert_allclose(got[f"text_{i}"].item(), total, rtol=2e-6, atol=2e-5)
