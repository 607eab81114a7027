"""A planted head is found by every method, in float32 and in bfloat16, among heads that do next to nothing."""

from typing import Any

import jax
import numpy as np
import pytest

import avjax
from avjax import metrics
from avjax.analysis import attribute, learn_gates, trace

LAYER, HEAD, FAINT = 2, 1, 0.01
TYPES = ["text"] * 4 + ["audio"] * 10 + ["video"] * 10 + ["text"] * 8
VIDEO = slice(14, 24)
SAMPLES = [f"s{seed}" for seed in range(6)]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, omni) -> avjax.Model:
    """All heads but one write a hundredth of what they did."""

    def faint(path: Any, leaf: jax.Array) -> jax.Array:
        if "decoder.layers.attn.o.kernel" not in jax.tree_util.keystr(path, simple=True, separator="."):
            return leaf
        strength = np.full(leaf.shape[:2], FAINT)
        strength[LAYER, HEAD] = 2.0
        return (leaf * strength[:, :, None, None]).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(faint, avjax.load(omni.directory, dtype=request.param))


def embeddings(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(TYPES), 64))


def as_prompt(model: avjax.Model, values: np.ndarray) -> avjax.Prompt:
    return model.prompt_from_embeddings(values, np.tile(np.arange(len(TYPES)), (3, 1)), TYPES)


@pytest.fixture(scope="module")
def clean(model: avjax.Model) -> dict[str, avjax.Prompt]:
    return {name: as_prompt(model, embeddings(seed)) for seed, name in enumerate(SAMPLES)}


@pytest.fixture(scope="module")
def corrupt(model: avjax.Model) -> dict[str, avjax.Prompt]:
    """The same words and sounds under another video."""
    prompts = {}
    for seed, name in enumerate(SAMPLES):
        values = embeddings(seed)
        values[VIDEO] = embeddings(seed + 100)[VIDEO]
        prompts[name] = as_prompt(model, values)
    return prompts


@pytest.fixture(scope="module")
def wanted(model: avjax.Model, clean: dict[str, avjax.Prompt]) -> dict[str, metrics.LogitDiff]:
    """By sample, the two logits that cutting the planted head moves most apart."""
    asked = {}
    for name, prompt in clean.items():
        runs = [avjax.run(model, prompt, *edits) for edits in ([], [f"last->video@{LAYER}#h{HEAD}"])]
        kept, cut = (np.asarray(run.logits[0], np.float64) for run in runs)
        asked[name] = metrics.LogitDiff([int(np.argmax(cut - kept))], [int(np.argmin(cut - kept))])
    return asked


@pytest.mark.exhaustive
def test_knockout_finds_it(model, clean, wanted):
    edit = avjax.Knockout(query="last", key="video", layers=avjax.windows(1), heads=avjax.each_head())
    data = avjax.analysis.sweep_samples(model, clean, avjax.grid(edit), wanted, progress=False)
    change = avjax.bootstrap(data)["logit_diff_change"]
    assert np.unravel_index(int(np.argmax(np.abs(change.values))), change.shape) == (LAYER, HEAD)
    means = avjax.bootstrap(data).isel(layers=LAYER, heads=HEAD)
    assert not bool(means["logit_diff_below_floor"]) and float(means["logit_diff_change_low"]) > 0


@pytest.mark.exhaustive
def test_attribution_finds_it(model, clean, wanted):
    data = attribute(model, clean, wanted, queries="last", keys="video", sites=(), top=3, progress=False)
    estimate = np.abs(data["edge_estimate"].mean("sample").values.squeeze((-2, -1)))
    assert np.unravel_index(int(np.argmax(estimate)), estimate.shape) == (LAYER, HEAD)
    assert str(data.candidate.values[0]) == f"last->video@{LAYER}#h{HEAD}"


@pytest.mark.exhaustive
def test_tracing_finds_its_layer(model, clean, corrupt):
    answers: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for name in SAMPLES:
        kept, other = (np.asarray(avjax.run(model, p[name]).logits[0], np.float64) for p in (clean, corrupt))
        answers[0][name], answers[1][name] = [int(np.argmax(kept - other))], [int(np.argmin(kept - other))]
    data = trace(model, clean, corrupt, *answers, groups=["last"], sites=["attn_out"], width=1, progress=False)
    recovery = data["recovery"].squeeze(["group", "site"], drop=True)
    strongest = recovery.mean("sample").argmax("layers")
    assert int(strongest) == LAYER and int(recovery.isel(layers=LAYER).notnull().sum()) >= 5
    np.testing.assert_allclose(recovery.isel(layers=LAYER).dropna("sample"), 1, atol=0.3)


@pytest.mark.exhaustive
def test_gates_find_it_and_nothing_else(model, clean, wanted):
    settings: dict[str, Any] = {"steps": 60, "learning_rate": 0.2, "batch": 4, "num_random": 3, "progress": False}
    found = learn_gates(model, clean, wanted, held_out=0.5, query="last", penalty="l0", strength=0.01, **settings)
    cut = np.zeros(found["cut"].shape, bool)
    cut[LAYER, HEAD] = True
    np.testing.assert_array_equal(found["cut"], cut)
