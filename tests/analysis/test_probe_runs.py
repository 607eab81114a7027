"""Probes of real runs: features, directions that steer, files, and what the built-in checkpoint shows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import avjax
from avjax.analysis import Probes, probe_features, train_probes
from avjax.organism import behaviour, world

LAYER, WHERE = 4, "text"
WORDS = ("What do you hear", "Describe the picture", "Name a sound", "Who is there", "Say it again", "Nothing much")


@pytest.fixture(scope="module")
def prompts(omni_model: avjax.Model) -> dict[str, avjax.Prompt]:
    return {f"{words} {i}": omni_model.prompt(f"{words}, {i} times {i}?") for i in range(6) for words in WORDS}


@pytest.fixture(scope="module")
def features(omni_model: avjax.Model, prompts: dict[str, avjax.Prompt]) -> xr.Dataset:
    return probe_features(omni_model, prompts, ("resid_post", "attn_out"), WHERE, progress=False)


@pytest.fixture(scope="module")
def probes(features: xr.Dataset) -> Probes:
    return train_probes(
        features, [WORDS.index(str(n)[:-2]) % 3 for n in features.sample.values], strengths=[1e-3, 1e-1], seeds=(0, 1)
    )


@pytest.mark.exhaustive
def test_features_are_pooled_activations(omni_model: avjax.Model, prompts: dict, features: xr.Dataset):
    assert features.features.dims == ("sample", "site", "pooling", "layer", "feature")
    assert features.features.attrs["units"] and features.attrs["where"] == WHERE
    for name in list(prompts)[:4]:
        seen = avjax.run(omni_model, prompts[name], capture=["resid_post", "attn_out"]).captures
        places = np.flatnonzero(avjax.prompts.selectors.select(prompts[name], WHERE)[:-1])
        assert int(features.positions.sel(sample=name)) == len(places)
        for site in ("resid_post", "attn_out"):
            x = np.asarray(seen[site])[:, places]
            for pooling, expected in (("mean", x.mean(1)), ("last", x[:, -1]), ("max", x.max(1))):
                found = features.features.sel(sample=name, site=site, pooling=pooling)
                np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_are_those_of_torch(omni: Any, omni_model: avjax.Model, features: xr.Dataset, prompts: dict):
    name = next(iter(prompts))
    ids = torch.tensor(prompts[name].token_ids[None].astype(np.int64))
    hidden = omni.torch_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    mask = avjax.prompts.selectors.select(prompts[name], WHERE)[:-1]
    for layer in range(omni_model.config.decoder.num_layers - 1):  # the last one that torch returns is normalised
        expected = hidden[layer + 1][0].numpy()[mask].mean(0)
        found = features.features.sel(sample=name, site="resid_post", pooling="mean", layer=layer)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"where": "audio"}, "the prompt of sample 'What do you hear 0' has no 'audio' tokens"),
        (
            {"sites": ["pattern"]},
            "expected a site that each layer has, such as resid_post, without a layer number, got 'pattern'",
        ),
        ({"sites": ["blocks.3.hook_resid_post"]}, "got 'blocks.3.hook_resid_post'"),
        ({"sites": ["resid_post", "value"]}, "sites of one size"),
        ({"sites": []}, "one or more sites"),
        ({"pooling": "median"}, "pooling among mean, last, max, each once, got ['median']"),
    ],
)
def test_features_that_do_not_exist_are_refused(
    omni_model: avjax.Model, prompts: dict, changed: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=re.escape(message)):
        probe_features(omni_model, prompts, **{"where": WHERE, **changed})


@pytest.mark.exhaustive
@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_a_direction_steers_the_probe_as_computed(omni_model: avjax.Model, prompts: dict, probes: Probes, pooling: str):
    place = {"layer": LAYER, "site": "resid_post", "pooling": pooling, "seed": 1, "strength": 1e-1}
    one = probes.at(**place)
    prompt = next(iter(prompts.values()))
    places = np.flatnonzero(avjax.prompts.selectors.select(prompt, WHERE)[:-1])
    pool = {"mean": lambda x: x.mean(0), "last": lambda x: x[-1], "max": lambda x: x.max(0)}[pooling]

    def logits(*edits: avjax.Steer) -> np.ndarray:
        seen = avjax.run(omni_model, prompt, *edits, capture=["resid_post"]).captures["resid_post"]
        x = pool(np.asarray(seen)[LAYER, places])
        dims = ("sample", "site", "pooling", "layer", "feature")
        coords = {"sample": ["steered"], "site": ["resid_post"], "pooling": [pooling], "layer": [LAYER]}
        return one.logits(xr.DataArray(x[None, None, None, None], dims=dims, coords=coords)).values.reshape(-1)

    def margin(z: np.ndarray, k: int) -> float:
        return float(z[k] - np.delete(z, k).mean())

    clean = logits()
    for k, name in enumerate(probes.classes):
        vector = probes.direction(name, **place)
        assert vector.shape == (omni_model.config.decoder.embed_dim,)
        for scale in (2.5, -1.0):
            steered = logits(avjax.Steer(WHERE, vector, scale=scale, layers=[LAYER]))
            assert margin(steered, k) - margin(clean, k) == pytest.approx(scale, abs=2e-3)
    against = probes.direction(2, against=0, **place)
    steered = logits(avjax.Steer(WHERE, against, scale=3.0, layers=[LAYER]))
    assert (steered[2] - steered[0]) - (clean[2] - clean[0]) == pytest.approx(3.0, abs=3e-3)


def test_probes_come_back_from_disk(features: xr.Dataset, probes: Probes, tmp_path: Path):
    probes.save(tmp_path / "probes")
    back = Probes.load(tmp_path / "probes")
    xr.testing.assert_identical(back.weights, probes.weights)
    xr.testing.assert_identical(back.results, probes.results)
    np.testing.assert_array_equal(back.logits(features), probes.logits(features))
    assert {p.suffix for p in (tmp_path / "probes").iterdir()} == {".json", ".safetensors"}
    about = json.loads((tmp_path / "probes" / "weights.json").read_text())
    (tmp_path / "probes" / "weights.json").write_text(json.dumps({**about, "format": 9}))
    with pytest.raises(ValueError, match="expected format 1, got 9"):
        Probes.load(tmp_path / "probes")
    with pytest.raises(ValueError, match=r"a directory that Probes\.save wrote"):
        Probes.load(tmp_path)


def test_probes_apply_to_some_runs_and_name_what_is_missing(features: xr.Dataset, probes: Probes):
    some = probes.at(layer=[2, 3], pooling="mean", site="resid_post")
    found = some.logits(features.isel(sample=[5, 2]))
    assert found.dims == ("sample", "site", "pooling", "layer", "seed", "strength", "class")
    whole = probes.logits(features).isel(sample=[5, 2]).sel(layer=[2, 3], pooling=["mean"], site=["resid_post"])
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert set(np.unique(probes.predict(features))) <= set(probes.classes)
    for call, message in (
        (lambda: some.logits(features.sel(layer=[2])), "expected features for layer 3, got only [2]"),
        (lambda: some.logits(features.isel(feature=slice(9))), "expected 64 features, got 9"),
        (lambda: some.logits(features.isel(layer=0)), "expected features with dimensions"),
        (lambda: probes.direction(1, layer=LAYER), "expected one probe, got several"),
        (lambda: probes.direction("dog"), "a class among (0, 1, 2), got 'dog'"),
        (lambda: probes.direction(1, against=1), "another class than 1"),
        (lambda: probes.at(layer=99), "layer among [0, 1, 2, 3, 4, 5, 6, 7], got 99"),
        (lambda: probes.at(head=1), "dimensions among site, pooling, layer, seed, strength, got 'head'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


@pytest.mark.exhaustive
def test_a_direction_at_heads_steers_them(omni_model: avjax.Model, prompts: dict):
    name, prompt = next(iter(prompts.items()))
    features = probe_features(omni_model, prompts, "z", WHERE, "mean", progress=False)
    labels = [i % 2 for i in range(len(prompts))]
    vector = train_probes(features, labels, strengths=[0.1]).direction(1, layer=LAYER)
    assert vector.shape == (64,) and name in features.sample
    flat, heads = (
        np.asarray(avjax.run(omni_model, prompt, avjax.Steer(WHERE, v, site="z", layers=[LAYER])).logits)
        for v in (vector, vector.reshape(4, 16))
    )
    np.testing.assert_array_equal(flat, heads)
    assert np.abs(flat - np.asarray(avjax.run(omni_model, prompt).logits)).max() > 1e-4


@pytest.mark.exhaustive
def test_the_sound_is_read_at_audio_tokens_although_the_caption_names_another():
    """The headline: direction and margin; the script has the numbers."""
    model = avjax.load("tiny-av")
    clips = [world.clip("train", i, "counterfactual") for i in range(112)]
    prompts = {str(i): prompt for i, (_, prompt) in enumerate(behaviour.prompts_of(model, clips))}
    features = probe_features(model, prompts, pooling="mean", progress=False)
    sounds = [world.KINDS[clip.heard].sound for clip in clips if clip.heard is not None]
    pairs = [f"{clip.seen // 8} {clip.heard}" for clip in clips if clip.seen is not None]  # types that recur
    probes = train_probes(features, sounds, control=pairs, strengths=[1e-3], seeds=(0, 1))
    assert float(probes.results["control_seen"].min()) > 0.7
    middle = probes.results.sel(layer=LAYER).mean("seed").squeeze()
    assert float(middle.accuracy) > 0.6 and float(middle.auroc) > 0.9 and float(middle.selectivity) > 0.3
    test = np.flatnonzero(probes.results.split.sel(seed=0) == 2)[:12]
    named = [behaviour.score(behaviour.clean_caption(model, prompts[str(i)]).text or "", clips[i]).sound for i in test]
    assert float(middle.accuracy) > np.mean(named) + 0.3
