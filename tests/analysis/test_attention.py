"""Attention along captions against sums over Hugging Face's eager attention weights, and counts of keys by hand."""

import numpy as np
import pytest

import avjax
from avjax.analysis import attention_mass
from avjax.models.sites import Site
from avjax.organism import evidence, world
from avjax.tokens import MODALITIES
from tests.analysis.torch_readings import media, readings
from tests.engine.edits_oracle import EditsOracle, Factor

TOLERANCE = 1e-5
CAPTION = [5, 9, 11, 12, 300, 2]
KEYS = ["audio", "video", "text", "generated", "audio[0:20]"]
QUERIES = {"generated": [0, 1, 2, 3, 4], "answer": [-1, 0, 1, 2, 3, 4], "last": [-1]}  # from the prompt's end on


@pytest.fixture(scope="module")
def prompts(omni_model) -> dict[str, avjax.Prompt]:
    return {"long": media(omni_model), "short": media(omni_model, 4, 1.0)}


@pytest.fixture(scope="module")
def hf(omni, omni_model, prompts):
    return {name: readings(omni, omni_model, prompt, CAPTION[:-1]) for name, prompt in prompts.items()}


def members(prompt: avjax.Prompt, key: str) -> np.ndarray:
    """Positions, by hand."""
    size = len(prompt)
    if key == "generated":
        return np.arange(size, size + len(CAPTION) - 1)
    places = np.flatnonzero(prompt.kinds == MODALITIES.index(key.split("[")[0]))
    return places[:20] if key.endswith("]") else places


@pytest.mark.parametrize("query", ["generated", "answer"])
def test_masses_are_sums_of_torch_attention(omni_model, prompts, hf, query: str):
    found = attention_mass(omni_model, prompts, KEYS, query, CAPTION, progress=False)
    assert dict(found.sizes) == {"sample": 2, "key": len(KEYS), "layer": 8, "head": 4}
    for name, prompt in prompts.items():
        rows = [len(prompt) + i for i in QUERIES[query]]
        weights, weighted = hf[name].pattern[:, :, rows], (hf[name].pattern * hf[name].value_norm[:, :, None])[:, :, rows]
        one = found.sel(sample=name)
        for key in KEYS if query != "last" else KEYS[:3]:
            held = members(prompt, key)
            counts = [int(np.sum(held <= row)) for row in rows]
            share = np.mean([count / (row + 1) for count, row in zip(counts, rows, strict=True)])
            mass = weights[..., held].sum(-1).mean(-1)
            np.testing.assert_allclose(one.mass.sel(key=key), mass, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(one.per_key.sel(key=key), mass / share, rtol=0, atol=1e-4)
            sums = weighted[..., held].sum(-1)
            np.testing.assert_allclose(one.value_weighted.sel(key=key), sums.mean(-1), rtol=0, atol=TOLERANCE)
            shares = (sums / weighted.sum(-1)).mean(-1)
            np.testing.assert_allclose(one.value_share.sel(key=key), shares, rtol=0, atol=TOLERANCE)
        assert int(one.queries) == len(rows)
    assert float(np.abs(found.value_share - found.mass).max()) > 0.01, "values differ in norm"
