"""Metrics against float64 numpy, from logits that a plain run gives."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax import metrics
from avjax.analysis.gradient_cases import cases, exact
from avjax.sweeping import compute
from tests.engine.test_knockout_compiles import count_compilations
from tests.tiny_hf import TinyCheckpoint

VARIANTS = ("all->all@2#h1", "answer->[0:9]*5", "[8:20]->[0:4]")
CONTINUATION = (17, 250, 3, 301)


@pytest.fixture(scope="module")
def ids(omni: TinyCheckpoint) -> np.ndarray:
    return np.random.default_rng(2).integers(0, omni.ids["endoftext"], 24)


@pytest.fixture(scope="module")
def prompt(omni_model, ids) -> avjax.Prompt:
    return omni_model.prompt_from_hf({"input_ids": ids[None]})


@pytest.fixture(scope="module")
def logits(omni_model, prompt) -> np.ndarray:
    """float64 [1 + variants, V]; clean first."""
    rows = [avjax.run(omni_model, prompt, *edits).logits[0] for edits in ((), *((v,) for v in VARIANTS))]
    return np.asarray(rows, np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Entropy(metrics.Metric):
    name: str = "entropy"
    unit: ClassVar[str] = "nats"

    def __call__(self, view: metrics.View) -> jax.Array:
        return jax.scipy.special.entr(jax.nn.softmax(view.logits)).sum()


@dataclasses.dataclass(frozen=True)
class WrongShape(metrics.Metric):
    name: str = "wrong"

    def __call__(self, view: metrics.View) -> jax.Array:
        return view.logits


@dataclasses.dataclass(frozen=True)
class Broken(metrics.Metric):
    name: str = "broken"

    def __call__(self, view: metrics.View) -> jax.Array:
        return view.logits @ jnp.ones(3)


@dataclasses.dataclass(frozen=True)
class NoArray(metrics.Metric):
    name: str = "none"

    def __call__(self, view: metrics.View) -> Any:
        return None


A, B = (12, 40, 333), 77


@pytest.fixture(scope="module")
def swept(omni_model, prompt):
    asked = [
        metrics.LogProb(A),
        metrics.Prob(A),
        metrics.Rank(A),
        metrics.Rank(B, name="rank_b"),
        metrics.Logits([5, 1, 460]),
        metrics.LogitDiff(A, B),
        metrics.KL(),
        metrics.KL("reverse"),
        metrics.TotalVariation(),
        metrics.TopK(4),
        metrics.LogLikelihood(CONTINUATION),
        metrics.LogLikelihood(CONTINUATION, mean=True, name="per_token"),
        metrics.AttentionMass("[2:9]", query="[5:20]"),
        Entropy(),
    ]
    return avjax.sweep(omni_model, prompt, list(VARIANTS), asked, progress=False)


def test_next_token_metrics(swept, logits):
    lp = log_softmax(logits)
    p = np.exp(lp)
    kl = (p[:1] * (lp[:1] - lp)).sum(-1), (p * (lp - lp[:1])).sum(-1)
    best = logits[:, list(A)].max(-1)
    expected = {
        "log_prob": np.log(p[:, list(A)].sum(-1)),
        "prob": p[:, list(A)].sum(-1),
        "rank": 1 + (logits > best[:, None]).sum(-1),
        "rank_b": 1 + (logits > logits[:, [B]]).sum(-1),
        "logits": logits[:, [5, 1, 460]],
        "logit_diff": best - logits[:, B],
        "kl": kl[0],
        "kl_reverse": kl[1],
        "total_variation": 0.5 * np.abs(p - p[:1]).sum(-1),
        "top_k": np.argsort(-logits, axis=-1)[:, :4],
        "top_k_prob": -np.sort(-p, axis=-1)[:, :4],
        "entropy": -(p * lp).sum(-1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(swept[name].values[:, 0], value[1:], rtol=2e-5, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(swept[f"{name}_clean"].values[0], value[0], rtol=2e-5, atol=2e-6, err_msg=name)
    assert kl[0][1:].min() > 1e-5 and np.abs(kl[0] - kl[1])[1:].max() > 1e-6, "the directions must differ"
    assert len(set(expected["rank"].tolist())) > 1


@pytest.mark.exhaustive
def test_only_the_tokens_that_metrics_name_are_unembedded(omni_model, prompt, swept, monkeypatch):
    widths, read_block = [], compute.read_block

    def recorded(*arguments):
        found = read_block(*arguments)
        widths.append(found[0].shape[-1])
        return found

    monkeypatch.setattr(compute, "read_block", recorded)
    mass = metrics.AttentionMass("[2:9]", query="[5:20]")
    asked = [metrics.Logits([460, 5, 1, 5], name="four"), metrics.LogitDiff(A, B), mass]
    got = avjax.sweep(omni_model, prompt, list(VARIANTS), asked, progress=False)
    assert set(widths) == {len({460, 5, 1, *A, B})}
    np.testing.assert_allclose(got["four"], swept["logits"].values[..., [2, 0, 1, 0]], rtol=2e-5, atol=2e-6)
    for name in ("logit_diff", "logit_diff_clean", "attention_mass", "attention_mass_clean"):
        np.testing.assert_allclose(got[name], swept[name], rtol=2e-5, atol=2e-6, err_msg=name)
    widths.clear()
    avjax.sweep(omni_model, prompt, list(VARIANTS), mass, progress=False)
    avjax.sweep(omni_model, prompt, list(VARIANTS), [asked[0], metrics.KL()], progress=False)
    assert list(dict.fromkeys(widths)) == [0, omni_model.config.decoder.vocab_size]


def test_log_likelihood_is_a_loop_over_growing_prompts(omni_model, ids, swept):
    """The continuation counts as generated: in each longer prompt the edits name its positions by number."""
    size = len(ids)
    sums = []
    for edits in ([], *([v] for v in VARIANTS)):
        total = 0.0
        for n, token in enumerate(CONTINUATION):
            longer = omni_model.prompt_from_hf({"input_ids": np.append(ids, CONTINUATION[:n])[None].astype(np.int64)})
            late = [v.replace("answer", f"[{size - 1}:{size + n}]") for v in edits]
            total += log_softmax(np.asarray(avjax.run(omni_model, longer, *late).logits[0], np.float64))[token]
        sums.append(total)
    got = [swept["log_likelihood_clean"].values[0], *swept["log_likelihood"].values[:, 0]]
    np.testing.assert_allclose(got, sums, rtol=1e-5)
    np.testing.assert_allclose(swept["per_token"].values[:, 0], np.array(sums[1:]) / len(CONTINUATION), rtol=1e-5)
    assert np.ptp(sums) > 1e-2


@pytest.mark.exhaustive
def test_attention_mass(omni_model, prompt, swept):
    visible = [sum(2 <= k < 9 and k <= q for k in range(24)) / (q + 1) for q in range(5, 20)]
    for i, edits in enumerate([(), *((v,) for v in VARIANTS)]):
        pattern = np.asarray(avjax.run(omni_model, prompt, *edits, capture=["pattern"]).captures["pattern"], np.float64)
        mass = pattern[:, :, 5:20, 2:9].sum(-1).mean(-1)
        for name, value in (("attention_mass", mass), ("attention_mass_per_key", mass / np.mean(visible))):
            got = swept[f"{name}_clean"].values[0] if i == 0 else swept[name].values[i - 1, 0]
            np.testing.assert_allclose(got, value, atol=5e-6, err_msg=name)
    assert swept["attention_mass"].dims == ("variant", "sample", "layer", "head")


@pytest.mark.exhaustive
def test_attention_from_generated_tokens(omni_model, ids, prompt):
    """Tokens of a metric's own text that are fed count as generated; edits of `answer` reach them."""
    fed, rules = len(CONTINUATION) - 1, "answer->[0:9]*5"
    longer = omni_model.prompt_from_hf({"input_ids": np.append(ids, CONTINUATION[:fed])[None].astype(np.int64)})
    queries = {"generated": range(24, 24 + fed), "answer": range(23, 24 + fed)}
    asked = [metrics.AttentionMass("[0:9] | generated", query=q, name=q, text=CONTINUATION) for q in queries]
    got = avjax.sweep(omni_model, prompt, rules, asked, progress=False)
    keys = [*range(9), *range(24, 24 + fed)]
    for edits, suffix in (((), "_clean"), (("[23:27]->[0:9]*5",), "")):
        pattern = np.asarray(avjax.run(omni_model, longer, *edits, capture=["pattern"]).captures["pattern"], np.float64)
        for name, rows in queries.items():
            mass = pattern[:, :, rows][..., keys].sum(-1).mean(-1)
            share = np.mean([sum(k <= q for k in keys) / (q + 1) for q in rows])
            values = [got[f"{n}{suffix}"].values.reshape(mass.shape) for n in (name, f"{name}_per_key")]
            np.testing.assert_allclose(values[0], mass, atol=5e-6)
            np.testing.assert_allclose(values[1], mass / share, rtol=1e-4)


@pytest.mark.exhaustive
def test_metrics_of_other_lengths_have_dimensions_of_their_own(omni_model, prompt):
    asked = [metrics.Logits([1, 2], name="a"), metrics.Logits([3, 4, 5], name="b"), metrics.TopK(5)]
    got = avjax.sweep(omni_model, prompt, VARIANTS[0], asked, progress=False)
    assert [got[n].dims[-1] for n in ("a", "b", "a_clean", "top_k")] == ["a_token", "b_token", "a_token", "top"]
    assert (got.sizes["a_token"], got.sizes["b_token"]) == (2, 3)


def test_ids_count_once(omni_model, prompt):
    asked = [metrics.Prob([7], name="one"), metrics.Prob((7, 7), name="two")]
    got = avjax.sweep(omni_model, prompt, VARIANTS[0], asked, progress=False)
    np.testing.assert_array_equal(got["one"], got["two"])
    assert metrics.LogProb(np.int64(5)) == metrics.LogProb((5,))
    for wrong in ([1.7], [True]):
        with pytest.raises(TypeError, match=r"expected integers|Expected type"):
            metrics.Prob(wrong)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([metrics.KL(), metrics.Prob(5, name="kl_clean")], "'kl_clean' is also a variable of the metric 'kl'"),
        (
            [metrics.TopK(3), metrics.Prob(5, name="top_k_prob")],
            "'top_k_prob' is also a variable of the metric 'top_k'",
        ),
        ([metrics.Prob(5, name="edges")], "'edges' is also a reserved name"),
        ([metrics.Prob(5, name="cell")], "'cell' is also a reserved name"),
        (
            [metrics.TopK(3), metrics.Prob(5, name="top")],
            "'top' is a variable of the metric 'top' and also a dimension",
        ),
        ([metrics.AttentionMass("[9]", query="[2]")], r"no \[2\] token comes at or after a \[9\] token"),
    ],
)
def test_names_and_masks_that_would_mean_nothing(omni_model, prompt, asked, message: str):
    with count_compilations() as seen, pytest.raises(ValueError, match=message):
        avjax.sweep(omni_model, prompt, VARIANTS[0], asked, progress=False)
    assert [name for name in seen if "replay" in name or "clean" in name or "score" in name or "prefill" in name] == []


def test_answers_by_text(omni_model, prompt, logits):
    """A word counts over its surface forms; a rank takes the likeliest of those that are one token."""
    tokenizer = omni_model.processor.tokenizer
    forms = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("a", " a")]
    asked = [metrics.Prob("a"), metrics.Rank("a"), metrics.LogitDiff("a", "b")]
    got = avjax.sweep(omni_model, prompt, VARIANTS[0], asked, progress=False)
    p, singles = np.exp(log_softmax(logits[1])), [form[0] for form in forms if len(form) == 1]
    assert len(set(singles)) == 2
    np.testing.assert_allclose(got["prob"].values.item(), p[singles].sum(), rtol=1e-5)
    assert got["rank"].values.item() == 1 + (logits[1] > logits[1][singles].max()).sum()
    assert got["prob"].attrs["answer_tokens"] == str(forms)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (WrongShape(), r"'wrong'.*expected an array with the dimensions \[\].*shape \[467\]"),
        (Broken(), "'broken': it cannot be computed"),
        (NoArray(), "'none'.*no array"),
        (metrics.TopK(10_000), "top_k"),
        (metrics.LogProb(10_000), "token ids within 0:467"),
        (metrics.Prob(" ", name="blank"), "expected a word"),
        (metrics.LogitDiff((3, 4), 4), "cannot be told apart"),
        (metrics.LogLikelihood(()), "expected token ids|at least one token"),
        (metrics.LogLikelihood(""), "at least one token"),
        (metrics.AttentionMass("video"), "no video tokens"),
        (metrics.AttentionMass("[0]", query="generated"), "no generated tokens"),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_refusals_come_before_compilation(omni_model, prompt, metric, message: str):
    avjax.sweep(omni_model, prompt, VARIANTS[0], metrics.Prob(3), progress=False)
    with count_compilations() as seen, pytest.raises(ValueError, match=message):
        avjax.sweep(omni_model, prompt, VARIANTS[0], [metrics.Prob(3), metric], progress=False)
    assert [name for name in seen if "replay" in name or "clean" in name or "score" in name or "prefill" in name] == []


def test_names_of_metrics(omni_model, prompt):
    with pytest.raises(ValueError, match="'prob' occurs twice"):
        avjax.sweep(omni_model, prompt, VARIANTS[0], [metrics.Prob(3), metrics.Prob(4)], progress=False)
    with pytest.raises(ValueError, match="at least one"):
        avjax.sweep(omni_model, prompt, VARIANTS[0], [], progress=False)


@dataclasses.dataclass(frozen=True)
class OfFirstToken(metrics.LogProb):
    """A user's metric whose function reads the answer itself."""

    def __call__(self, view: metrics.View) -> jax.Array:
        return jax.nn.log_softmax(view.logits)[self.answer[0]]


@pytest.mark.exhaustive
def test_a_subclass_that_reads_its_answer_gets_it(omni_model, prompt, logits):
    expected = log_softmax(logits)[:, 5]
    data = avjax.sweep(omni_model, prompt, VARIANTS, OfFirstToken((5,)), progress=False)
    np.testing.assert_allclose(data.log_prob.values[:, 0], expected[1:], atol=1e-5)
    np.testing.assert_allclose(data.log_prob_clean.item(), expected[0], atol=1e-5)
    case = cases(omni_model, prompt, OfFirstToken((5,)))[0]
    values, clean = exact(omni_model, case, [[variant] for variant in VARIANTS])
    np.testing.assert_allclose([clean, *values], expected, atol=1e-5)
