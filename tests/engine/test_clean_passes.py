"""A prompt's clean pass is computed once for all that is asked over it, and never taken for another's."""

import dataclasses
import gc
import weakref
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax.engine import clean_passes, session
from avjax.engine.clean_pass import CleanPass
from avjax.metrics import KL, AttentionMass, Caption, Logits, LogLikelihood, Prob
from avjax.runs import sweep as stored
from tests.engine.test_knockout_compiles import prompt_of

RULES = ["last->video", "last->text", "text->video@1", "last->video@2", "video->text"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of each clean pass that is computed."""
    computed: list[int] = []
    original = session.clean_pass

    def counted(*args, num_rows: int, **settings):
        computed.append(num_rows)
        return original(*args, num_rows=num_rows, **settings)

    monkeypatch.setattr(session, "clean_pass", counted)
    monkeypatch.setattr(clean_passes, "_by_host", weakref.WeakKeyDictionary())
    yield computed


def swept(model: avjax.Model, prompt: avjax.Prompt, rules: list[str], *metrics, **settings):
    return avjax.sweep(model, prompt, rules, metrics or [KL()], progress=False, **settings)


def test_blocks_of_a_store_share_it(omni_model, passes: list[int], tmp_path, monkeypatch: pytest.MonkeyPatch):
    prompts = {name: prompt_of(omni_model, size) for name, size in {"a": 90, "b": 70}.items()}
    rules = ["last->video@1", "last->video@2", "last->text", "last->audio@0:2", "last->audio"]
    whole = avjax.sweep(omni_model, prompts, rules, KL(), progress=False)
    assert len(passes) == 2
    passes.clear()
    monkeypatch.setattr(stored, "CELLS_PER_BLOCK", 2)
    blocks = avjax.sweep(omni_model, prompts, rules, KL(), progress=False, store=tmp_path / "run")
    assert len(passes) == 2, "three blocks of each of two prompts"
    np.testing.assert_allclose(blocks.kl, whole.kl, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(blocks.kl_clean, whole.kl_clean)


@pytest.mark.exhaustive
def test_metrics_and_sweeps_share_it(omni_model, passes: list[int]):
    prompt = prompt_of(omni_model, 90)
    first = swept(omni_model, prompt, RULES, KL(), Caption(3))
    assert len(passes) == 1
    again = swept(omni_model, prompt, RULES, KL(), Prob([5]))
    fewer = swept(omni_model, prompt, RULES[:1], KL())
    assert len(passes) == 1
    np.testing.assert_array_equal(again.kl, first.kl)
    np.testing.assert_allclose(fewer.kl.values, first.kl.values[:1], rtol=0, atol=1e-6)


@pytest.mark.exhaustive
def test_more_rows_are_another_pass(omni_model, passes: list[int]):
    prompt = prompt_of(omni_model, 90)
    swept(omni_model, prompt, RULES[:1])
    more = swept(omni_model, prompt, RULES)
    assert len(passes) == 2 and passes[0] < passes[1]
    passes.clear()
    reference = swept(omni_model, prompt, RULES, executor="reference")
    np.testing.assert_allclose(more.kl, reference.kl, rtol=0, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("metric", [LogLikelihood([3, 4, 5]), AttentionMass("video")], ids=["fed", "masses"])
def test_what_is_read_else_is_another_pass(omni_model, passes: list[int], metric):
    prompt = prompt_of(omni_model, 90)
    alone = swept(omni_model, prompt, RULES, metric)
    passes.clear()
    swept(omni_model, prompt, RULES, KL())
    beside = swept(omni_model, prompt, RULES, metric)
    assert passes, "the one of KL holds less"
    np.testing.assert_array_equal(beside[metric.name], alone[metric.name])


@pytest.mark.exhaustive
def test_another_prompt_takes_its_place(omni_model, passes: list[int]):
    a, b = prompt_of(omni_model, 90), prompt_of(omni_model, 91)
    first, other, back = (swept(omni_model, prompt, RULES) for prompt in (a, b, a))
    assert len(passes) == 3
    np.testing.assert_array_equal(back.kl, first.kl)
    assert not np.array_equal(other.kl, first.kl)


@pytest.mark.exhaustive
def test_other_parameters_are_another_model(omni_model, passes: list[int]):
    """A model that is made from another one has its host."""
    prompt = prompt_of(omni_model, 90)
    changed = dataclasses.replace(omni_model, network=jax.tree.map(lambda leaf: leaf * 1.25, omni_model.network))
    before, after = (swept(model, prompt, RULES, Logits((1,))) for model in (omni_model, changed))
    assert len(passes) == 2
    assert not np.allclose(before.logits_clean, after.logits_clean)


def test_what_is_kept_is_bounded():
    one_model = clean_passes.CleanPasses()
    nothing = jnp.zeros(0)
    clean = CleanPass(keys=jnp.zeros(1000), values=nothing, residual=nothing, final=nothing, mass=None, largest=nothing)
    computed, parameters = [], [jnp.ones(3)]

    def compute(key: str) -> CleanPass:
        computed.append(key)
        return clean

    def take(key: str, num_rows: int = 1, prompt: bytes = b"a") -> str:
        one_model.take(prompt, key, num_rows, parameters, lambda: compute(key), spare_bytes=2 * 4000)
        return "".join(computed)

    assert take("p") == "p" and take("p") == "p"
    assert take("q") == "pq" and take("r") == "pqr"
    assert take("q") == "pqr", "two beside the one that is asked for"
    assert take("s") == "pqrs", "and the oldest goes"
    assert take("p") == "pqrsp"
    assert take("p", num_rows=2) == "pqrspp", "of more rows"
    assert take("p", num_rows=1) == "pqrspp"
    assert take("p", prompt=b"b") == "pqrsppp"


def test_a_prompt_that_was_changed_in_place_is_another(omni_model, passes: list[int]):
    prompt = prompt_of(omni_model, 90)
    prompt = dataclasses.replace(prompt, embeddings=prompt.embeddings.copy())
    before = swept(omni_model, prompt, RULES[:1], Logits((1, 2)))
    prompt.embeddings[5] += 1
    after = swept(omni_model, prompt, RULES[:1], Logits((1, 2)))
    assert len(passes) == 2 and not np.allclose(before.logits_clean, after.logits_clean)


def test_parameters_that_were_donated_are_no_longer_asked(omni_model, passes: list[int]):
    prompt = prompt_of(omni_model, 90)
    network = jax.tree.map(jnp.array, omni_model.network)
    copied = dataclasses.replace(omni_model, network=network)
    expected = swept(copied, prompt, RULES[:1], Logits((1, 2)))
    jax.tree.map(lambda leaf: leaf.delete(), network)  # as a training step does
    got = swept(omni_model, prompt, RULES[:1], Logits((1, 2)))
    np.testing.assert_array_equal(got.logits, expected.logits)
    assert len(passes) == 2


def test_no_model_is_kept_alive(omni_model, passes: list[int]):
    network = jax.tree.map(jnp.array, omni_model.network)
    leaf = weakref.ref(jax.tree.leaves(network)[0])
    copied = dataclasses.replace(omni_model, network=network)
    swept(copied, prompt_of(omni_model, 90), RULES[:1])
    del copied, network
    gc.collect()
    assert leaf() is None


def test_another_prompt_meanwhile_takes_nothing_of_this_one():
    """Two threads over one model: each gets what it computed."""
    one_model, parameters = clean_passes.CleanPasses(), [jnp.ones(3)]
    nothing = jnp.zeros(0)

    def clean(value: float) -> CleanPass:
        number = jnp.full(1, value)
        return CleanPass(keys=number, values=nothing, residual=nothing, final=nothing, mass=None, largest=nothing)

    def take(prompt: bytes, compute) -> float:
        return float(one_model.take(prompt, "key", 1, parameters, compute, spare_bytes=0).keys[0])

    inner = []

    def slow() -> CleanPass:
        inner.append(take(b"b", lambda: clean(2.0)))  # another thread's, while this one computes
        return clean(1.0)

    assert take(b"a", slow) == 1 and inner == [2]
    assert take(b"b", lambda: clean(2.0)) == 2 and take(b"a", lambda: clean(1.0)) == 1
