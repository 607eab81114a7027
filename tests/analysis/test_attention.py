"""Attention along captions against sums over Hugging Face's eager attention weights, and counts of keys by hand."""

import numpy as np
import pytest

import avjax
from avjax.analysis import attention_mass
from avjax.models.sites import Site
from avjax.organism import behaviour, world
from avjax.prompts.selectors import MODALITIES
from tests.analysis.torch_readings import media, readings
from tests.engine.edits_oracle import EditsOracle, Factor

TOLERANCE = 1e-5
CAPTION = [5, 9, 11, 12, 300, 2]
KEYS = ["audio", "video", "text", "generated", "audio[0:20]"]
QUERIES = {"generated": [0, 1, 2, 3, 4], "answer": [-1, 0, 1, 2, 3, 4]}  # from the prompt's end on


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


@pytest.mark.parametrize("query", QUERIES)
def test_masses_are_sums_of_torch_attention(omni_model, prompts, hf, query: str):
    found = attention_mass(omni_model, prompts, KEYS, query, CAPTION, progress=False)
    assert dict(found.sizes) == {"sample": 2, "key": len(KEYS), "layer": 8, "head": 4}
    for name, prompt in prompts.items():
        rows = [len(prompt) + i for i in QUERIES[query]]
        weights, weighted = (
            hf[name].pattern[:, :, rows],
            (hf[name].pattern * hf[name].value_norm[:, :, None])[:, :, rows],
        )
        one = found.sel(sample=name)
        for key in KEYS:
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


@pytest.mark.exhaustive
def test_each_token_has_its_own(omni_model, prompts, hf):
    """Captions of different lengths: the shorter one's missing tokens are missing, not zero."""
    captions = {"long": CAPTION, "short": CAPTION[:3]}
    found = attention_mass(omni_model, prompts, KEYS[:3], "answer", captions, per_token=True, progress=False)
    assert found.mass.dims == ("sample", "token", "key", "layer", "head") and found.sizes["token"] == len(CAPTION)
    for name, prompt in prompts.items():
        count = len(captions[name])
        rows = len(prompt) - 1 + np.arange(count)
        assert found.position.sel(sample=name).values.tolist() == [*rows, *[-1] * (len(CAPTION) - count)]
        held = members(prompt, "video")
        expected = hf[name].pattern[:, :, rows][..., held].sum(-1).transpose(2, 0, 1)
        one = found.sel(sample=name, key="video")
        np.testing.assert_allclose(one.mass[:count], expected, rtol=0, atol=TOLERANCE)
        share = len(held) / (rows + 1)
        np.testing.assert_allclose(one.per_key[:count], expected / share[:, None, None], rtol=0, atol=1e-4)
        assert all(np.isnan(one[v][count:]).all() for v in ("mass", "per_key", "value_weighted", "value_share"))
    together = attention_mass(omni_model, prompts, KEYS[:3], "answer", captions, progress=False)
    for name in ("mass", "value_weighted", "value_share"):
        np.testing.assert_allclose(found[name].mean("token"), together[name], rtol=0, atol=1e-6)


def test_a_query_that_sees_no_such_key_has_no_mass_per_key(omni_model, prompts):
    """Prompt tokens as queries: the first words come before the clip."""
    prompt = prompts["short"]
    found = attention_mass(omni_model, prompt, ["audio"], "text", CAPTION, per_token=True, progress=False).isel(key=0)
    first = int(members(prompt, "audio")[0])
    before = found.position.values[0] < first
    assert before.any() and not before.all()
    assert np.isnan(found.per_key.values[0, before]).all() and np.isfinite(found.per_key.values[0, ~before]).all()
    assert (found.mass.values[0, before] == 0).all()


@pytest.mark.parametrize("query", ["generated", "all", "audio"])
def test_a_partition_of_the_keys_has_all_attention(omni_model, prompts, query: str):
    keys = ["audio", "video[f0:f2]", "video - video[f0:f2]", "text", "generated"]
    keys = keys[:-1] if query == "audio" else keys
    found = attention_mass(omni_model, prompts["long"], keys, query, CAPTION, progress=False)
    for name in ("mass", "value_share"):
        np.testing.assert_allclose(found[name].sum("key"), 1, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def words(omni, omni_model) -> avjax.Prompt:
    ids = np.random.default_rng(3).integers(0, omni.ids["endoftext"], 40)[None]
    return omni_model.prompt_from_hf({"input_ids": ids})


def test_under_edits_of_edges(omni, omni_model, words):
    """Edits speak of the caption's tokens as generated ones."""
    edits = [
        avjax.ScaleAttention(query="generated", key="[3:9]", factor=3.0, layers=[1, 4]),
        "answer->[20:30]@2:4#h0,h3",
    ]
    after = tuple(range(40, 45))
    changes = [
        Factor(after, tuple(range(3, 9)), 3.0, (1, 4), (0, 1, 2, 3)),
        Factor((39, *after), tuple(range(20, 30)), 1e-30, (2, 3), (0, 3)),
    ]
    _, seen = EditsOracle(omni.torch_model, omni_model, words).run(changes, CAPTION[:-1])
    _, clean = EditsOracle(omni.torch_model, omni_model, words).run((), CAPTION[:-1])
    keys = ["[3:9]", "[20:30]", "[0:3]"]
    found = attention_mass(omni_model, words, keys, "answer", CAPTION, edits=edits, progress=False)
    for key, span in zip(keys, (range(3, 9), range(20, 30), range(3)), strict=True):
        mass, before = (x["pattern"][:, :, 39:][..., list(span)].sum(-1).mean(-1) for x in (seen, clean))
        np.testing.assert_allclose(found.mass.sel(sample=0, key=key), mass, rtol=0, atol=TOLERANCE)
        assert np.abs(mass - before).max() > 1e-3
    assert found.attrs["edits"] == "generated->[3, 4, 5, 6, 7, 8]*3@1,4; answer->[20:30]@2:4#h0,h3".replace(
        "[3, 4, 5, 6, 7, 8]", "[3:9]"
    )


def test_values_are_those_after_edits(omni_model, words):
    keys = ["[0:10]", "[10:40]"]
    clean, scaled = (
        attention_mass(omni_model, words, keys, "answer", CAPTION, edits=edits, progress=False)
        for edits in ((), avjax.Scale("[0:10]", 3.0, site="value", layers=[0]))
    )
    first = scaled.value_weighted[0, :, 0] / clean.value_weighted[0, :, 0]
    np.testing.assert_allclose(first[0], 3, rtol=1e-5)
    np.testing.assert_allclose(first[1], 1, rtol=1e-5)


def test_a_blocked_query_counts_as_zero(omni_model, words):
    found = attention_mass(
        omni_model, words, ["text"], "answer", CAPTION, edits="answer->all@3#h1", per_token=True, progress=False
    )
    blocked = found.isel(sample=0, key=0, layer=3, head=1)
    for name in ("mass", "value_weighted", "value_share"):
        assert (blocked[name] == 0).all()
    assert (found.mass.isel(layer=3, head=0) > 0).all()


@pytest.mark.exhaustive
def test_without_a_caption_the_model_says_its_own(omni_model, prompts):
    own = avjax.generate(omni_model, prompts["short"], max_new_tokens=4)
    found = attention_mass(omni_model, prompts["short"], max_new_tokens=4, progress=False)
    given = attention_mass(omni_model, prompts["short"], captions=own.tokens.tolist(), progress=False)
    np.testing.assert_array_equal(found.mass, given.mass)
    assert found.caption.item() == own.text
    assert all(v.attrs["units"] and v.attrs["long_name"] for v in found.data_vars.values())


@pytest.mark.exhaustive
def test_the_streamed_sites_equal_the_pattern(omni_model, words):
    """Also under edits, and where a query is blocked in the published way."""
    groups = ["[0:12]", "[10:40]"]
    for compat in (None, "published"):
        got = avjax.run(
            omni_model,
            words,
            "[12:20]->all@2#h1; text->[3:6]*2",
            capture=["pattern", "value_mass", "received", "value"],
            groups=groups,
            compat=compat,
        )
        pattern = np.asarray(got.captures[Site.PATTERN], np.float64)
        norms = np.linalg.norm(np.asarray(got.captures["value"], np.float64), axis=-1)  # L T K
        norms = np.repeat(norms.transpose(0, 2, 1), 2, axis=1)[:, :, None]
        earlier = np.tril(np.ones((40, 40)), -1)
        for group, span in zip(groups, (slice(0, 12), slice(10, 40)), strict=True):
            chosen = got.members[group]
            weighted = np.asarray(got.captures["value_mass"])[..., chosen].sum(-1)
            np.testing.assert_allclose(weighted, (pattern * norms)[..., span].sum(-1), rtol=0, atol=TOLERANCE)
            received = np.asarray(got.captures["received"])[:, :, chosen].sum(2)
            np.testing.assert_allclose(received, (pattern * earlier)[:, :, span].sum(2), rtol=0, atol=TOLERANCE)
    assert (pattern[2, 1, 12:20] > 0).all(), "published: blocked queries attend to all"


@pytest.mark.exhaustive
def test_on_tiny_av_the_word_of_the_sound_is_chosen_by_sight():
    model = avjax.load("tiny-av")
    clips = [world.clip("test", i, "counterfactual") for i in range(len(world.KINDS))]
    prompts = {f"clip {i}": prompt for i, (_, prompt) in enumerate(behaviour.prompts_of(model, clips))}
    captions = {name: world.caption(c.seen, c.heard) for name, c in zip(prompts, clips, strict=True)}
    found = attention_mass(model, prompts, ["audio", "video"], "answer", captions, per_token=True, progress=False).sel(
        token=behaviour.SOUND_WORD
    )
    assert set(found.query_text.values.tolist()) == {" hear"}
    shallow, deep = (found.sel(layer=part).mean(("sample", "layer", "head")) for part in (slice(0, 3), slice(4, 7)))
    assert deep.per_key.sel(key="video") > 3 * deep.per_key.sel(key="audio")
    assert shallow.per_key.sel(key="video") < 2 * shallow.per_key.sel(key="audio")
    assert shallow.mass.sel(key="audio") > 1.5 * shallow.mass.sel(key="video"), "by count the sound has more keys"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ["image"]}, "sample 'a': the prompt has no image tokens"),
        ({"keys": ["audoi"]}, "unknown token type 'audoi'"),
        ({"keys": []}, "keys: expected a list of selectors"),
        ({"keys": "audio"}, "keys: expected a list of selectors, got 'audio'"),
        ({"keys": ["audio", "audio"]}, "expected different selectors"),
        ({"query": "image"}, r"no image tokens \(query\)"),
        ({"query": "[0:2]", "keys": ["audio"]}, r"no \[0:2\] token comes at or after a audio token"),
        ({"captions": [5]}, "never fed back, so no generated token attends to anything; use query='answer'"),
        ({"captions": "  "}, "caption of sample 'a' is empty"),
        ({"captions": {"b": "words"}}, "got none for 'a'"),
        ({"edits": "generated->image"}, "prompt has no image tokens"),
        ({"edits": "generated->video@7:9"}, r"layers within 0:8"),
        (
            {"edits": avjax.Knockout(query="generated", key={"b": [1]})},
            "expected its key to include sample 'a', got 'b'",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(omni_model, prompts, monkeypatch, changes: dict, message: str):
    """Before anything runs."""
    for place in ("avjax.analysis.attention._masses", "avjax.analysis.captions.generate_variants"):
        monkeypatch.setattr(place, lambda *a, **k: pytest.fail("something was computed"))
    options = {"captions": CAPTION, "progress": False} | changes
    with pytest.raises(ValueError, match=message):
        attention_mass(omni_model, {"a": prompts["short"]}, **options)
