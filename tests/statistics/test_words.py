"""A word is scored by all its tokens; where only one can be read, a fragment is refused."""

import itertools

import numpy as np
import pytest

import avjax
from avjax import metrics
from avjax.analysis import attribute, logit_lens

WORDS = ("xylophone", "xenon", "water", "dog")  # the first two share a fragment, the last are also one token
RULE = "answer->[2:9]@1"


@pytest.fixture(scope="module")
def prompt(omni_model) -> avjax.Prompt:
    ids = np.random.default_rng(5).integers(0, 300, 24)
    return omni_model.prompt_from_hf({"input_ids": ids[None]})


def forms_of(model: avjax.Model, word: str) -> list[tuple[int, ...]]:
    return [tuple(model.processor.tokenizer(f, add_special_tokens=False)["input_ids"]) for f in (word, f" {word}")]


def log_prob(model: avjax.Model, prompt: avjax.Prompt, form: tuple[int, ...], edited: bool) -> float:
    """Token by token, each in a pass of its own."""
    total, last = 0.0, len(prompt) - 1
    for step, token in enumerate(form):
        rules = [f"[{last}:{last + 1 + step}]->[2:9]@1"] if edited else []
        row = np.asarray(avjax.run(model, prompt.continued(form[:step]), *rules).logits[0], np.float64)
        total += row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
    return total


@pytest.fixture(scope="module")
def expected(omni_model, prompt):
    """Log-probabilities of each form, by word and run."""
    return {
        (word, edited): [log_prob(omni_model, prompt, form, edited) for form in forms_of(omni_model, word)]
        for word, edited in itertools.product(WORDS, (False, True))
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("executor", ["replay", "reference"])
def test_probabilities(omni_model, prompt, expected, executor):
    asked = [m(w, name=f"{m.__name__}_{w}") for m in (metrics.Prob, metrics.LogProb) for w in WORDS]
    got = avjax.sweep(omni_model, prompt, RULE, asked, executor=executor, progress=False)
    for word, edited in itertools.product(WORDS, (False, True)):
        value = np.logaddexp.reduce(expected[word, edited])
        suffix = "" if edited else "_clean"
        np.testing.assert_allclose(got[f"LogProb_{word}{suffix}"].item(), value, atol=2e-5)
        np.testing.assert_allclose(got[f"Prob_{word}{suffix}"].item(), np.exp(value), rtol=2e-5)
        assert got[f"Prob_{word}"].attrs["answer_tokens"] == str([list(f) for f in forms_of(omni_model, word)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("pair", [*itertools.combinations(WORDS, 2)], ids="-".join)
def test_logit_differences(omni_model, prompt, expected, pair):
    """Of words that share their first token too, and of words of one token as before."""
    got = avjax.sweep(omni_model, prompt, RULE, metrics.LogitDiff(*pair), progress=False)
    for suffix, edited in (("", True), ("_clean", False)):
        value = max(expected[pair[0], edited]) - max(expected[pair[1], edited])
        np.testing.assert_allclose(got[f"logit_diff{suffix}"].item(), value, atol=5e-5)


@pytest.mark.exhaustive
def test_slopes_of_words_are_those_of_their_value(omni_model, prompt):
    """Estimates are the metric's slopes, though two continuations are differentiated along."""
    metric, fields = metrics.LogitDiff("xylophone", "xenon"), {"queries": "last", "keys": ["[2:9]"], "top": 0}
    data = attribute(omni_model, prompt, metric, progress=False, **fields)
    step = 0.03
    grid = [
        avjax.ScaleAttention(query="last", key="[2:9]", factor=factor, layers=[layer], heads=[head])
        for factor in (1 - step, 1 + step)
        for layer, head in itertools.product(range(data.sizes["layer"]), range(data.sizes["head"]))
    ]
    less, more = avjax.sweep(omni_model, prompt, grid, metric, progress=False).logit_diff.values.reshape(2, -1)
    slopes = (more - less) / (2 * step)
    np.testing.assert_allclose(-data.edge_estimate.values.ravel(), slopes, atol=0.01 * np.abs(slopes).max())
    assert int(data.edges.item()) == 7


def test_what_cannot_be_told_apart_or_read_at_once_is_refused(omni_model, prompt):
    cases = [
        (metrics.Rank("xylophone"), r"'xylophone'.*one token.*'x'.*LogProb"),
        (metrics.LogitDiff("dog", "dog"), "cannot be told apart"),
        (metrics.LogitDiff("dog", forms_of(omni_model, "dog")[0][0]), "cannot be told apart"),
    ]
    for metric, message in cases:
        with pytest.raises(ValueError, match=message):
            avjax.sweep(omni_model, prompt, RULE, metric, progress=False)
    with pytest.raises(ValueError, match=r"'xylophone'.*one token"):
        logit_lens(omni_model, prompt, answers=["xylophone"], progress=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", [("xylophone",), ("water", "dog")])
def test_a_blocked_query_reads_the_prompt_alone_under_the_published_behaviour(omni_model, prompt, text):
    """Not the word that is fed after it: the first token's probability is that of a run without it."""
    asked = [metrics.Logits([5, 9, 70]), *(metrics.LogProb(word, name=word) for word in text)]
    settings = {"compat": "published", "progress": False}
    got = avjax.sweep(omni_model, prompt, "all->all@1", asked, **settings)
    run = avjax.run(omni_model, prompt, "all->all@1", compat="published")
    np.testing.assert_allclose(got.logits.values.ravel(), np.asarray(run.logits[0])[[5, 9, 70]], atol=2e-5)
    reference = avjax.sweep(omni_model, prompt, "all->all@1", asked, executor="reference", **settings)
    for word in text:
        np.testing.assert_allclose(got[word], reference[word], atol=2e-5)
