"""Latent audio understanding against ranks of the lens itself, and what it refuses."""

import numpy as np
import pytest

import avjax
from avjax.analysis import latent_audio_understanding, logit_lens
from avjax.analysis.latent_audio import whole_word_tokens
from tests.analysis.test_lens_tuned import prompt_of

EVENTS = {"a": ["dog", "street"], "b": ["hear"], "c": ["music", "dog"]}  # whole tokens of the tiny tokenizer


@pytest.fixture(scope="module")
def prompts(omni_model: avjax.Model) -> dict[str, avjax.Prompt]:
    return {name: prompt_of(omni_model, seed, 40) for seed, name in enumerate(EVENTS)}


def recall(model: avjax.Model, prompt: avjax.Prompt, words: list[str], layers: range, k: int) -> float:
    """From the tokens that the lens lists."""
    top = logit_lens(model, prompt, layers=layers, k=k, progress=False)["top_token"].values
    return float(np.mean([np.isin(top, whole_word_tokens(model, word)).any() for word in words]))


@pytest.mark.exhaustive
def test_recall_is_that_of_the_lens_s_own_list(omni_model: avjax.Model, prompts):
    swapped = {"a": ["hear"], "b": ["street", "music"], "c": ["sound"]}
    seen = set()
    for k, band in ((5, range(2, 6)), (60, range(1, 2)), (60, range(8))):
        found = latent_audio_understanding(omni_model, prompts, EVENTS, swapped, layers=band, k=k, progress=False)
        for name, prompt in prompts.items():
            own, other = (recall(omni_model, prompt, of[name], band, k) for of in (EVENTS, swapped))
            one = found.sel(sample=name)
            assert (float(one["recall"]), float(one["recall_swapped"])) == (own, other)
            assert float(one["understanding"]) == own - other
            alone = [recall(omni_model, prompt, EVENTS[name], range(i, i + 1), k) for i in band]
            assert one["recall_by_layer"].values.tolist() == alone
            seen |= {own, other}
        assert float(found["recall_mean"]) == pytest.approx(float(found["recall"].mean()))
        assert np.isnan(found["understanding_low"]) and found.attrs["interval"].startswith("none: 3 samples")
    assert {0.0, 1.0} <= seen


def test_without_swapped_events_those_of_the_next_clip_that_shares_none(omni_model: avjax.Model, prompts):
    found = latent_audio_understanding(omni_model, prompts, EVENTS, progress=False)
    assert found["swapped_events"].values.tolist() == ["hear", "music, dog", "hear"]  # a and c share the dog
    assert found["layer"].values.tolist() == [2, 3, 4, 5]
    assert "avjax's own" in found.attrs["definition"]
    assert all(v.attrs["units"] and v.attrs["long_name"] for v in found.data_vars.values())


def test_a_single_clip_has_no_interval(omni_model: avjax.Model, prompts):
    found = latent_audio_understanding(omni_model, prompts["a"], "dog", "hear", progress=False)
    assert float(found["recall_mean"]) == float(found["recall"].squeeze())
    for bound in ("low", "high"):
        assert np.isnan(found[f"recall_{bound}"]) and np.isnan(found[f"understanding_by_layer_{bound}"]).all()


@pytest.mark.parametrize(
    ("references", "swapped", "message"),
    [
        ("dog", None, "expected the events of each of 3 samples by name"),
        ({"a": "dog", "b": "rain"}, None, "references: expected events for sample 'c', got none"),
        ({**EVENTS, "b": []}, None, r"events of one word each for sample 'b', got \[\]"),
        ({**EVENTS, "b": "a dog barks"}, None, "events of one word each for sample 'b'"),
        (EVENTS, {"a": "siren", "b": "rain"}, "swapped: expected events for sample 'c', got none"),
        (EVENTS, {"a": "dog", "b": "rain", "c": "siren"}, "'dog' of sample 'a' is an event of both the clip and"),
        (
            dict.fromkeys("abc", "xylophone"),
            dict.fromkeys("abc", "dog"),
            "references: .* got xylophone of several tokens",
        ),
        (EVENTS, {name: ["xylophone", "siren"] for name in "abc"}, "swapped: expected words that are one token"),
        (dict.fromkeys("abc", "dog"), None, "every other sample shares an event with 'a'"),
    ],
)
def test_what_does_not_fit_is_refused(omni_model: avjax.Model, prompts, references, swapped, message, monkeypatch):
    def compiled(*args, **kwargs):
        raise AssertionError("refused too late")

    monkeypatch.setattr("avjax.analysis.lens.lens_pass", compiled)
    with pytest.raises(ValueError, match=message):
        latent_audio_understanding(omni_model, prompts, references, swapped)


@pytest.mark.exhaustive
def test_a_word_of_several_tokens_is_named_and_not_scored(omni_model: avjax.Model, prompts):
    """Not by the token of a bare space or a letter that it begins with, even if the lens lists every token there is."""
    vocab = omni_model.config.decoder.vocab_size
    references = {"a": ["dog", "xylophone"], "b": ["xylophone"], "c": "music"}
    found = latent_audio_understanding(
        omni_model, prompts, references, dict.fromkeys("abc", "hear"), k=vocab, progress=False
    )
    assert found["recall"].values.tolist()[::2] == [1.0, 1.0] and np.isnan(found["recall"].values[1])
    assert np.isnan(found["understanding_by_layer"].sel(sample="b")).all()
    assert found["scorable"].values.tolist() == [1, 0, 1] and found["scorable_swapped"].values.tolist() == [1, 1, 1]
    assert float(found["recall_mean"]) == 1.0, "a missing sample is left out"
    assert found.attrs["not_scorable"] == "xylophone" and "whole token" in found.attrs["scored"]
    dog = omni_model.encode_text(" dog")
    assert len(dog) == 1 and f"dog: {dog[0]}" in found.attrs["event_tokens"]
    assert whole_word_tokens(omni_model, "dog") == dog and whole_word_tokens(omni_model, "xylophone") == ()
    assert "xylophone" not in found.attrs["event_tokens"]
