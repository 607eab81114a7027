"""Random masks have as many edges as the pathway that they are compared with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax.analysis import edge_sufficiency
from avjax.analysis.random_keys import KeyEdges
from avjax.metrics import Caption, LogLikelihood, Prob
from avjax.prompts.selectors import select

L, N, D = 8, 4, 64


def prompt_of(model: avjax.Model, types: list[str], seed: int = 0) -> avjax.Prompt:
    embeddings = np.random.default_rng(seed).normal(size=(len(types), D))
    return model.prompt_from_embeddings(embeddings, np.tile(np.arange(len(types)), (3, 1)), types)


def edges_to(prompt: avjax.Prompt, query: str, keys: np.ndarray, fed: int) -> int:
    """Pairs of a query and a key at or before it, one by one; `fed` generated tokens ask too."""
    asking = select(prompt, query)
    queries = [*np.flatnonzero(asking[:-1]), *(len(prompt) + np.arange(fed) if asking[-1] else [])]
    return sum(key <= q for q in queries for key in np.flatnonzero(keys))


kinds = st.lists(st.sampled_from(["text", "audio", "video"]), min_size=8, max_size=40)


@settings(max_examples=150)
@given(
    types=kinds, query=st.sampled_from(["all", "text", "answer", "video | text"]), fed=st.integers(0, 3), data=st.data()
)
def test_a_random_set_has_the_pathways_edges(omni_model: avjax.Model, types: list[str], query: str, fed: int, data):
    prompt = prompt_of(omni_model, types)
    asking = select(prompt, query)
    keys = KeyEdges.of(asking, ~select(prompt, "answer")[:-1], fed)
    for position, edges in zip(keys.positions, keys.edges, strict=True):
        assert edges == edges_to(prompt, query, np.arange(len(prompt)) == position, fed)
    if len(keys.positions) < 2:
        return
    size = data.draw(st.integers(1, len(keys.positions) - 1))
    pathway = np.zeros(len(keys.positions), bool)
    pathway[data.draw(st.permutations(range(len(pathway))))[:size]] = True
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sets = keys.drawn(pathway, [rng.permutation(len(pathway)) for _ in range(3)], rng)
    for drawn in sets:
        assert keys.edges[drawn].sum() == keys.edges[pathway].sum()
        if len(set(keys.edges.tolist())) == 1:
            assert drawn.sum() == size


@settings(max_examples=10)
@given(seed=st.integers(0, 999), count=st.integers(200, 400))
def test_sets_of_many_keys_are_no_copies_of_the_pathway(seed: int, count: int):
    """Where every token asks, early keys have the most edges: as many keys with as many edges are the same ones."""
    query = np.ones(count + 1, bool)
    keys = KeyEdges.of(query, np.arange(count) < count - 1, 0)
    rng = np.random.default_rng(seed)
    size = int(rng.integers(20, count // 2))
    scattered = np.isin(np.arange(count - 1), rng.choice(count - 1, size, replace=False))
    for pathway, as_many in ((np.arange(count - 1) < size, False), (scattered, True)):
        sets = keys.drawn(pathway, [rng.permutation(count - 1) for _ in range(4)], rng)
        assert all(keys.edges[s].sum() == keys.edges[pathway].sum() for s in sets)
        assert not as_many or all(s.sum() == size for s in sets)
        shared = np.mean([(s & pathway).sum() for s in sets]) / size
        assert shared < 0.5 * (1 + np.mean([s.sum() for s in sets]) / count) + 0.05
        assert len({s.tobytes() for s in sets}) == 4


def test_what_cannot_be_met_is_the_nearest():
    """Edges 4 and 1, 1, 1: no other set than the first key has four edges."""
    keys = KeyEdges(positions=np.arange(4), edges=np.array([4, 1, 1, 1]))
    rng = np.random.default_rng(0)
    for drawn in keys.drawn(np.array([True, False, False, False]), [np.array([1, 2, 3, 0])] * 3, rng):
        assert abs(int(keys.edges[drawn].sum()) - 4) <= 1


TYPES = ["video"] * 5 + ["text"] * 2 + ["audio", "video"] * 4 + ["text"] * 5


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("query", "metric", "fed"),
    [
        ("all", Prob([5]), 0),
        ("text", LogLikelihood([5, 7, 9]), 2),
        ("text | generated", LogLikelihood([5, 7, 9]), 2),
        ("answer", Caption(3), 2),
    ],
    ids=["all", "text", "text and generated", "answer"],
)
def test_the_dataset_says_the_edges_of_both(omni_model: avjax.Model, query: str, metric, fed: int):
    prompts = {"a": prompt_of(omni_model, TYPES), "b": prompt_of(omni_model, TYPES[3:], 1)}
    pathways = ["audio", "video", "text"]
    found = edge_sufficiency(
        omni_model, prompts, metric, query=query, pathways=pathways, layers=[2, 3], num_random=5, progress=False
    )
    for name in ("edges", "kept_edges", "keys"):
        assert found[name].dims == ("pathway", "sample")
        assert dict(found[f"{name}_random"].sizes) == {"draw": 5, "pathway": 3, "sample": 2}
        assert found[name].attrs["units"] == found[f"{name}_random"].attrs["units"] == "count"
    assert (found["kept_edges_random"] == found["kept_edges"]).all()
    for name, prompt in prompts.items():
        free = ~select(prompt, "answer")[:-1]
        for pathway in pathways:
            kept = select(prompt, pathway)[:-1] & free
            cell = found.sel(sample=name, pathway=pathway)
            assert int(cell["kept_edges"]) == edges_to(prompt, query, kept, fed)
            whole = edges_to(prompt, query, free, fed)
            assert int(cell["edges"]) == 2 * N * (whole - int(cell["kept_edges"]))
            if not isinstance(metric, Caption):
                assert (cell["edges_random"] == cell["edges"]).all()


def test_a_pathway_that_no_query_sees_is_refused(omni_model: avjax.Model):
    late = prompt_of(omni_model, ["text"] * 6 + ["audio"] * 4 + ["text"] * 2)
    with pytest.raises(
        ValueError, match=r"pathway 'audio': .*, got 0 \(no query '\[2:6\]' comes at or after one of its 4"
    ):
        edge_sufficiency(omni_model, late, Prob([5]), query="[2:6]", pathways=["audio"], progress=False)
