"""Knockouts on text with sound inside video: the same tokens and logits as hooks on the torch model.

Every set runs under the published semantics and under avjax's own, in which a query without a key reads zero.
"""

import functools
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import avjax
from tests.engine.knockout_oracle import Continuation, Oracle, Rule
from tests.engine.knockout_rules import draw_rules, draw_starving, edits
from tests.tiny_hf import TinyCheckpoint

NEW_TOKENS = 20
TOLERANCE = 1e-4  # on logits, float32
PUBLISHED_TYPES = ("query_text", "audio", "video", "generated")
ALL_TYPES = (*PUBLISHED_TYPES, "last", "answer")
NUM_STARVING, NUM_PUBLISHED, NUM_ANSWER = 16, 8, 6
NUM_SETS = NUM_STARVING + NUM_PUBLISHED + NUM_ANSWER

Compat = Literal["published"] | None
both_semantics = pytest.mark.parametrize("compat", ["published", None], ids=["published", "zero"])


@pytest.fixture(scope="module")
def prompt(omni_model: avjax.Model, clip: Path) -> avjax.Prompt:
    prompt = omni_model.prompt(
        "Describe what you see and hear.", video=clip, audio="from_video", max_pixels=56 * 84, min_pixels=28 * 28
    )
    assert 128 < len(prompt) <= 400
    return prompt


@pytest.fixture(scope="module")
def oracle(omni: TinyCheckpoint, prompt: avjax.Prompt) -> Oracle:
    return Oracle(omni.torch_model, prompt)


@pytest.fixture(scope="module")
def rule_sets(oracle: Oracle) -> list[tuple[Rule, ...]]:
    rng, size = np.random.default_rng(0), oracle.prompt_length + NEW_TOKENS - 1
    starving = [draw_starving(rng, oracle, i, ALL_TYPES, size) for i in range(NUM_STARVING)]
    published = [draw_rules(rng, oracle, PUBLISHED_TYPES, size) for _ in range(NUM_PUBLISHED)]
    answer = [draw_rules(rng, oracle, ("answer", "last", "audio", "video"), size) for _ in range(NUM_ANSWER)]
    return starving + published + answer


@pytest.fixture(scope="module")
def continued(oracle: Oracle, rule_sets: list[tuple[Rule, ...]]):
    """The torch model's continuation under a set, once per semantics."""

    @functools.cache
    def continued(index: int, compat: Compat) -> Continuation:
        return oracle.generate(rule_sets[index], NEW_TOKENS, zero_rows=compat is None)

    return continued


@pytest.fixture(scope="module")
def batched(omni_model: avjax.Model, prompt: avjax.Prompt, rule_sets: list[tuple[Rule, ...]]):
    """avjax's continuations under all sets at once, once per semantics."""

    @functools.cache
    def batched(compat: Compat) -> list[avjax.Generation]:
        variants = [edits(rules) for rules in rule_sets]
        return avjax.generate_variants(omni_model, prompt, variants, max_new_tokens=NEW_TOKENS, compat=compat)

    return batched


@pytest.mark.exhaustive
@both_semantics
@pytest.mark.parametrize("index", range(NUM_SETS))
def test_continuation(batched, continued, oracle: Oracle, rule_sets, index: int, compat: Compat):
    got, expected = batched(compat)[index], continued(index, compat)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert np.abs(got.logits - expected.logits).max() <= TOLERANCE
    counts = oracle.touched(rule_sets[index], oracle.prompt_length + len(got.tokens) - 1)
    assert (got.touched.edges, got.touched.blocked_queries) == counts


@pytest.mark.exhaustive
@both_semantics
@pytest.mark.parametrize("index", [1, 6, 20])
def test_alone_as_in_the_batch(omni_model, prompt, batched, rule_sets, index: int, compat: Compat):
    alone = avjax.generate(omni_model, prompt, *edits(rule_sets[index]), max_new_tokens=NEW_TOKENS, compat=compat)
    together = batched(compat)[index]
    np.testing.assert_array_equal(alone.tokens, together.tokens)
    assert np.abs(alone.logits - together.logits).max() <= TOLERANCE
    assert alone.touched == together.touched


@pytest.mark.exhaustive
@both_semantics
@pytest.mark.parametrize("index", range(0, NUM_SETS, 3))
def test_every_prompt_position(omni_model, prompt, oracle: Oracle, rule_sets, index: int, compat: Compat):
    """Rules on `generated` touch no edge of a prompt, and are allowed not to."""
    rules = rule_sets[index]
    got = avjax.run(omni_model, prompt, *edits(rules), at="all", compat=compat, allow_noop=True)
    expected = oracle.prefill(rules, zero_rows=compat is None)
    assert got.logits.shape == expected.shape
    assert np.abs(np.asarray(got.logits) - expected).max() <= TOLERANCE
    assert (got.touched.edges, got.touched.blocked_queries) == oracle.touched(rules, oracle.prompt_length)


@pytest.mark.exhaustive
def test_clean_model(omni_model, prompt, oracle: Oracle):
    expected = oracle.generate((), NEW_TOKENS)
    got = avjax.generate(omni_model, prompt, max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert np.abs(got.logits - expected.logits).max() <= TOLERANCE


@pytest.mark.exhaustive
def test_the_sets_can_tell_semantics_apart(continued, oracle: Oracle, rule_sets):
    """The comparison above is empty unless sets starve queries and change what is said."""
    size = oracle.prompt_length + NEW_TOKENS - 1
    starved = [i for i, rules in enumerate(rule_sets) if oracle.touched(rules, size)[1]]
    assert len(starved) >= 10
    prompt_only = [oracle.touched(rules, oracle.prompt_length)[1] for rules in rule_sets]
    assert any(not prompt_only[i] for i in starved), "some set must starve queries in decoding alone"
    assert any(prompt_only[i] for i in starved)
    differ = [
        i for i in starved if np.abs(continued(i, "published").logits[0] - continued(i, None).logits[0]).max() > 0.01
    ]
    assert len(differ) >= 5, "filling with the minimum and reading zero must differ where queries starve"
    assert sum(any(rule.heads for rule in rules) for rules in rule_sets) >= 8
    assert sum(any("answer" in (rule.query, rule.key) for rule in rules) for rules in rule_sets) >= 6
    texts = {tuple(continued(i, "published").tokens.tolist()) for i in range(NUM_SETS)}
    assert len(texts) >= 15, "rules must change what is said"
    assert sum(len(continued(i, "published").tokens) == NEW_TOKENS for i in range(NUM_SETS)) >= 25


@pytest.mark.exhaustive
def test_generated_spares_the_first_token_and_answer_does_not(omni_model, prompt, oracle: Oracle):
    layers = tuple(range(len(oracle.layers)))
    clean = oracle.generate((), 1)
    for query, spared in (("generated", True), ("answer", False)):
        rules = (Rule(query, "video", layers),)
        got = avjax.generate(omni_model, prompt, *edits(rules), max_new_tokens=NEW_TOKENS)
        expected = oracle.generate(rules, NEW_TOKENS)
        assert np.abs(got.logits - expected.logits).max() <= TOLERANCE
        assert (np.abs(got.logits[0] - clean.logits[0]).max() <= TOLERANCE) == spared
