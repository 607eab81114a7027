"""The counts that every result carries equal a count over each pair of positions, one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.touched import count_touched

NUM_LAYERS, NUM_HEADS = 8, 4
SELECTORS = ("text", "audio", "video", "image", "generated", "last", "answer", "all", "all - audio", "text | video")
subsets = [st.none() | st.sets(st.integers(0, n - 1), min_size=1).map(sorted) for n in (NUM_LAYERS, NUM_HEADS)]
knockouts = st.builds(
    avjax.Knockout,
    query=st.sampled_from(SELECTORS),
    key=st.sampled_from(SELECTORS),
    layers=subsets[0],
    heads=subsets[1],
)


def is_named(selector: str, types: list[str], at: int) -> bool:
    """Whether a selector names a position; those past the prompt are generated."""
    generated, last = at >= len(types), at == len(types) - 1
    kind = "generated" if generated else types[at]
    match selector:
        case "all":
            return True
        case "all - audio":
            return kind != "audio"
        case "text | video":
            return kind in ("text", "video")
        case "last":
            return last
        case "answer":
            return last or generated
        case _:
            return kind == selector


def count(edits: list[avjax.Knockout], types: list[str], decoded: int) -> tuple[int, int]:
    size = len(types) + decoded
    edges = starved = 0
    for layer in range(NUM_LAYERS):
        for head in range(NUM_HEADS):
            live = [
                edit
                for edit in edits
                if (edit.layers is None or layer in edit.layers) and (edit.heads is None or head in edit.heads)
            ]
            for query in range(size):
                cut = sum(
                    any(is_named(e.query, types, query) and is_named(e.key, types, key) for e in live)
                    for key in range(query + 1)
                )
                edges += cut
                starved += cut == query + 1
    return edges, starved


@settings(max_examples=60)
@given(
    types=st.lists(st.sampled_from(["text", "audio", "video", "image"]), min_size=1, max_size=9),
    edits=st.lists(knockouts, min_size=1, max_size=3),
    decoded=st.integers(0, 3),
)
def test_touched_equals_a_count_of_pairs(
    omni_model: avjax.Model, types: list[str], edits: list[avjax.Knockout], decoded: int
):
    size, config = len(types), omni_model.config.decoder
    embeddings = np.zeros((size, config.embed_dim), np.float32)
    prompt = omni_model.prompt_from_embeddings(embeddings, np.broadcast_to(np.arange(size), (3, size)), types)
    # A second variant makes the partition finer than the first one needs.
    variants = [edits, [avjax.Knockout(query="answer", key="text")]]
    lowered = lower(prompt, config, variants, num_decoded=decoded, allow_noop=True, clean=CleanRuns(omni_model))
    got = count_touched(lowered, 0, decoded)
    assert (got.edges, got.blocked_queries) == count(edits, types, decoded)


@pytest.mark.exhaustive
def test_generation_counts_the_tokens_that_were_fed_back(omni_model: avjax.Model):
    """Of n tokens n - 1 become queries, and a stop token ends the count."""
    types = ["text"] * 5 + ["audio"] * 3 + ["text"] * 4
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(12, omni_model.config.decoder.embed_dim))
    prompt = omni_model.prompt_from_embeddings(embeddings, np.broadcast_to(np.arange(12), (3, 12)), types)
    rule = avjax.Knockout(query="generated", key="audio | generated", layers=[1, 2], heads=[3])
    for limit in (1, 2, 7):
        got = avjax.generate(omni_model, prompt, rule, max_new_tokens=limit, allow_noop=True)
        fed = len(got.tokens) - 1
        assert got.touched.edges == 2 * sum(3 + step for step in range(1, fed + 1))
        assert got.touched.blocked_queries == 0
