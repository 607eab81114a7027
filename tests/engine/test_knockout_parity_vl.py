"""Knockouts on an image in Qwen2.5-VL: the same tokens and logits as hooks on the torch model."""

from typing import Literal

import numpy as np
import pytest
from PIL import Image

import avjax
from tests.engine.knockout_oracle import Oracle, Rule
from tests.engine.knockout_rules import edits
from tests.tiny_hf import TinyCheckpoint

NEW_TOKENS = 20
TOLERANCE = 1e-4  # on logits, float32
ALL = tuple(range(8))
RULE_SETS = (
    (Rule("generated", "image", (2, 3, 4, 5)),),
    (Rule("answer", "image", ALL),),
    (Rule("query_text", "image", (0, 1, 2), (0, 3)), Rule("generated", "query_text", (5, 6))),
    (Rule("query_text", "query_text", ALL),),  # text before the image is left without a key
    (Rule("image", "query_text", (1, 2)), Rule("image", "image", (1, 2))),  # and so is every image token here
    tuple(Rule("answer", key, (3, 4), (1, 2)) for key in ("query_text", "image", "generated")),
)


@pytest.fixture(scope="module")
def prompt(vl_model: avjax.Model, tmp_path_factory: pytest.TempPathFactory) -> avjax.Prompt:
    path = tmp_path_factory.mktemp("image") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (140, 196, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    prompt = vl_model.prompt("What does the picture show?", image=path)
    assert prompt.counts()["image"] == 35
    return prompt


@pytest.fixture(scope="module")
def oracle(vl: TinyCheckpoint, prompt: avjax.Prompt) -> Oracle:
    return Oracle(vl.torch_model, prompt)


@pytest.mark.exhaustive
@pytest.mark.parametrize("compat", ["published", None], ids=["published", "zero"])
def test_continuations(
    vl_model: avjax.Model, prompt: avjax.Prompt, oracle: Oracle, compat: Literal["published"] | None
):
    variants = [edits(rules) for rules in RULE_SETS]
    batch = avjax.generate_variants(vl_model, prompt, variants, max_new_tokens=NEW_TOKENS, compat=compat)
    for rules, got in zip(RULE_SETS, batch, strict=True):
        expected = oracle.generate(rules, NEW_TOKENS, zero_rows=compat is None)
        np.testing.assert_array_equal(got.tokens, expected.tokens, err_msg=str(rules))
        assert np.abs(got.logits - expected.logits).max() <= TOLERANCE, rules
        counts = oracle.touched(rules, len(prompt) + len(got.tokens) - 1)
        assert (got.touched.edges, got.touched.blocked_queries) == counts
    assert len({tuple(got.tokens.tolist()) for got in batch}) >= 4, "rules must change what is said"
    assert sum(got.touched.blocked_queries > 0 for got in batch) >= 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("compat", ["published", None], ids=["published", "zero"])
@pytest.mark.parametrize("rules", [RULE_SETS[i] for i in (2, 3, 4)], ids=["partial", "text", "image"])
def test_every_prompt_position(
    vl_model: avjax.Model,
    prompt: avjax.Prompt,
    oracle: Oracle,
    rules: tuple[Rule, ...],
    compat: Literal["published"] | None,
):
    got = avjax.run(vl_model, prompt, *edits(rules), at="all", compat=compat, allow_noop=True)
    assert np.abs(np.asarray(got.logits) - oracle.prefill(rules, zero_rows=compat is None)).max() <= TOLERANCE
